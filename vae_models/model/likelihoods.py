"""Likelihoods: modules from the decoder's output, of shape ``(..., C, H, W)``, to a distribution over images.

The attribute ``support`` is the constraint on pixels. The distributions do not validate them: a grey value is neither 0
nor 1.
"""

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

__all__ = ["LIKELIHOODS", "Bernoulli", "ContinuousBernoulli", "Gaussian"]


class Bernoulli(nn.Module):
    r"""Pixels in {0, 1} given logits: :math:`x \log \pi + (1 - x) \log(1 - \pi)`.

    Example:

        >>> Bernoulli()(torch.zeros(2, 1, 8, 8)).log_prob(torch.ones(2, 1, 8, 8)) / 64  # log 1/2 per pixel
        tensor([-0.6931, -0.6931])

    Note:
        On grey values, as in the ρ-VAE paper (arXiv:1909.06236), it is not normalised: its bounds compare with each
        other, but not with those on binarised images.
    """

    support = constraints.unit_interval

    def forward(self, output: Tensor) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=output, validate_args=False).to_event(3)


class ContinuousBernoulli(nn.Module):
    """Pixels in [0, 1] given logits: the Bernoulli, normalised for grey values (Loaiza-Ganem & Cunningham,
    arXiv:1907.06845).

    Example:

        >>> ContinuousBernoulli()(torch.zeros(2, 1, 8, 8)).mean.unique()
        tensor([0.5000])
    """

    support = constraints.unit_interval

    def forward(self, output: Tensor) -> TorchDistributionMixin:
        return dist.ContinuousBernoulli(logits=output, validate_args=False).to_event(3)


class Gaussian(nn.Module):
    """Pixels in R, normal around the decoder's output with one standard deviation for all.

    Example:

        >>> Gaussian(scale=0.2)(torch.zeros(2, 1, 8, 8)).stddev.unique()
        tensor([0.2000])

    Args:
        scale (float): the standard deviation, positive.
        learn_scale (bool): whether it is trained, from there on.

    Raises:
        ValueError: if ``scale`` is not positive.
    """

    support = constraints.real
    log_scale: Tensor

    def __init__(self, scale: float = 0.1, learn_scale: bool = False) -> None:
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}")
        super().__init__()
        log_scale = torch.tensor(math.log(scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, output: Tensor) -> TorchDistributionMixin:
        return dist.Normal(output, self.log_scale.exp(), validate_args=False).to_event(3)


LIKELIHOODS: dict[str, Callable[..., nn.Module]] = {
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
}
"""The likelihoods by name. Each value makes a module from the options of its class.

:meta hide-value:
"""
