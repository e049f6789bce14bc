"""Events whose time is not their last dimension: which one it is, and a chain along it."""

from collections.abc import Sequence
from typing import Any

from pyro.distributions import ExpandedDistribution, GaussianMRF, MaskedDistribution
from pyro.distributions.hmm import HiddenMarkovModel, IndependentHMM
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Size, Tensor
from torch.distributions import Distribution, Independent, Normal, constraints, kl_divergence, register_kl

from ar1_dist.ar1_normal import AR1Normal, unwrap
from ar1_dist.kl import check_event_shapes

__all__ = ["MovedimDistribution", "find_time_dim"]

# Their events are (time, features).
_TIME_COMES_FIRST = (HiddenMarkovModel, IndependentHMM, GaussianMRF)


def find_time_dim(prior: TorchDistributionMixin) -> int | None:
    """Which dimension of a prior's events is time, where that is plain.

    It is by the type of the prior, of which :class:`AR1Normal` has its time last and Pyro's hidden Markov models have
    (time, features); else it is the only dimension of more than one element.

    Example:

        >>> import pyro.distributions as dist, torch
        >>> [find_time_dim(dist.Normal(torch.zeros(shape), 1.0).to_event(2)) for shape in ((7, 1), (1, 7), (7, 2))]
        [-2, -1, None]

    Args:
        prior (Distribution): with at least one event dimension.

    Returns:
        int or None: the dimension, negative, or None where it is not plain.
    """
    innermost: Distribution = prior
    while isinstance(innermost, Independent | MaskedDistribution | ExpandedDistribution):
        innermost = innermost.base_dist
    if isinstance(innermost, AR1Normal):
        return -1
    if isinstance(innermost, MovedimDistribution):
        return innermost.dim
    if isinstance(innermost, _TIME_COMES_FIRST):
        return -len(innermost.event_shape)
    long = [dim for dim in range(-prior.event_dim, 0) if prior.event_shape[dim] > 1]
    if len(long) > 1:
        return None
    return long[0] if long else -1


class MovedimDistribution(TorchDistribution):
    """A distribution whose values are those of another one, with the last event dimension moved to another place.

    Example:

        >>> import torch
        >>> chains = AR1Normal(torch.zeros(2, 5), 1.0, 0.5).to_event(1)
        >>> MovedimDistribution(chains, -2).sample().shape
        torch.Size([5, 2])

    Args:
        base_dist (Distribution): of real vectors or arrays, reparametrised.
        dim (int): where its last dimension goes, a negative event dimension.

    Note:
        From a chain there is a closed form of :func:`torch.distributions.kl_divergence` to another one that is moved
        alike, and to independent univariate distributions.
    """

    arg_constraints = {}

    def __init__(self, base_dist: TorchDistributionMixin, dim: int, validate_args: bool | None = None) -> None:
        self.base_dist, self.dim, self.has_rsample = base_dist, dim, base_dist.has_rsample
        *others, last = base_dist.event_shape
        others.insert(len(others) + 1 + dim, last)
        super().__init__(base_dist.batch_shape, Size(others), validate_args=validate_args)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_dist}, {self.dim})"

    @property
    def support(self) -> constraints.Constraint | None:
        return self.base_dist.support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "MovedimDistribution":
        return type(self)(self.base_dist.expand(batch_shape), self.dim, validate_args=False)

    def rsample(self, sample_shape: Size | list[int] | tuple[int, ...] = Size()) -> Tensor:
        return self.base_dist.rsample(sample_shape).movedim(-1, self.dim)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base_dist.log_prob(value.movedim(self.dim, -1))

    def entropy(self) -> Tensor:
        return self.base_dist.entropy()

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean.movedim(-1, self.dim)

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance.movedim(-1, self.dim)


@register_kl(MovedimDistribution, MovedimDistribution)
def _kl_moved_moved(q: MovedimDistribution, p: MovedimDistribution) -> Tensor:
    if q.dim != p.dim:
        raise NotImplementedError(f"No KL is implemented between chains along dimensions {q.dim} and {p.dim}.")
    return kl_divergence(q.base_dist, p.base_dist)


@register_kl(MovedimDistribution, Independent)
def _kl_moved_independent(q: MovedimDistribution, p: Independent) -> Tensor:
    """That of the marginals, and the total correlation of the chains: see :mod:`ar1_dist.kl`."""
    (chain, ndims), (base, p_ndims) = unwrap(q.base_dist), unwrap(p)
    if not (isinstance(chain, AR1Normal) and len(base.event_shape) == 0 and p_ndims == ndims + 1):
        raise NotImplementedError(f"No KL(p || q) is implemented for p type {q} and q type {p}")
    check_event_shapes(q, p)
    marginals = kl_divergence(Normal(q.mean, q.stddev, validate_args=False), base).sum(tuple(range(-p_ndims, 0)))
    return marginals + (chain.total_correlation.sum(tuple(range(-ndims, 0))) if ndims else chain.total_correlation)
