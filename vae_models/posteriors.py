r"""Posterior heads: modules from features, of shape ``(N, num_features)``, to a distribution over
:math:`\mathbb{R}^d`, of batch shape ``(N,)``. They know nothing of the network that the features come from.

A scale is :math:`e^{v/2}` of a linear log-variance v, as in Kingma & Welling (arXiv:1312.6114): the divergence from a
standard normal then holds v by :math:`\tfrac12 (e^v - v - 1)`, whose gradient in v is finite on both sides. A
correlation is :math:`\tanh \alpha` of a linear :math:`\alpha`, and the divergence holds :math:`\alpha` by
:math:`\log\cosh\alpha` per pair.

Note:
    Nothing is clamped, and the distributions do not validate their parameters. Every finite :math:`\alpha` is valid,
    though its tanh may round to 1; a scale that has underflowed to 0 or overflowed, and NaN, make the loss infinite or
    NaN, on which :mod:`vae_models.training` stops.
"""

from collections.abc import Callable

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ar1_dist import AR1Normal

__all__ = ["AR1", "POSTERIORS", "Diagonal", "Markov"]


class Diagonal(nn.Module):
    """Independent coordinates, each with its own scale: the mean-field posterior of Kingma & Welling."""

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Linear(num_features, latent_dim)
        self.log_variance = nn.Linear(num_features, latent_dim)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        scale = (0.5 * self.log_variance(features)).exp()
        return dist.Normal(self.loc(features), scale, validate_args=False).to_event(1)


class AR1(nn.Module):
    r"""One scale and one correlation per image: the ρ-VAE of Ferdowsi et al. (arXiv:1909.06236), covariance
    :math:`s\,\mathrm{Toeplitz}(1, \rho, \rho^2, \dots)`. Its covariance takes two linear units where the diagonal one
    takes d."""

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Linear(num_features, latent_dim)
        self.log_variance = nn.Linear(num_features, 1)
        self.atanh_rho = nn.Linear(num_features, 1)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        scale = (0.5 * self.log_variance(features)).exp()
        return AR1Normal(self.loc(features), scale, atanh_rho=self.atanh_rho(features), validate_args=False)


class Markov(nn.Module):
    """A scale per coordinate and a correlation per pair of neighbours: any Gauss–Markov chain. Training starts at
    correlation zero, the diagonal posterior."""

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Linear(num_features, latent_dim)
        self.log_variance = nn.Linear(num_features, latent_dim)
        # With one latent there is no pair; AR1Normal then ignores the correlation.
        self.atanh_rho = nn.Linear(num_features, max(latent_dim - 1, 1))
        nn.init.zeros_(self.atanh_rho.weight)
        nn.init.zeros_(self.atanh_rho.bias)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        scale = (0.5 * self.log_variance(features)).exp()
        return AR1Normal(self.loc(features), scale, atanh_rho=self.atanh_rho(features), validate_args=False)


POSTERIORS: dict[str, Callable[[int, int], nn.Module]] = {"diagonal": Diagonal, "ar1": AR1, "markov": Markov}
