r"""Posterior heads: modules from features, of shape ``(N, num_features)``, to a distribution over
:math:`\mathbb{R}^d`, of batch shape ``(N,)``. They know nothing of the network that the features come from.

A scale is :math:`e^{v/2}` of a linear log-variance v, as in Kingma & Welling (arXiv:1312.6114): the divergence from a
standard normal then holds v by :math:`\tfrac12 (e^v - v - 1)`, whose gradient in v is finite on both sides. A
correlation is :math:`\tanh \alpha` of a linear :math:`\alpha`, and the divergence holds :math:`\alpha` by
:math:`\log\cosh\alpha` per pair.

Every covariance starts at the identity, but for the low-rank factor, which zero would hold in a saddle point. With
random weights there, the first steps of Adam at 1e-3 through wide layers let a scale grow by orders of magnitude.

Note:
    Nothing is clamped, and the distributions do not validate their parameters. Every finite :math:`\alpha` is valid,
    though its tanh may round to 1; a scale that has underflowed to 0 or overflowed, and NaN, make the loss infinite or
    NaN, on which :mod:`vae_models.training.fitting` stops.
"""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ar1_dist import AR1Normal

__all__ = ["AR1", "POSTERIORS", "Banded", "Diagonal", "Full", "LowRank", "Markov"]


class Diagonal(nn.Module):
    """Independent coordinates, each with its own scale: the mean-field posterior of Kingma & Welling.

    Example:

        >>> Diagonal(num_features=8, latent_dim=3)(torch.randn(2, 8))
        Independent(Normal(loc: torch.Size([2, 3]), scale: torch.Size([2, 3])), 1)

    Args:
        num_features (int): size of the features.
        latent_dim (int): d.
    """

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.loc = _linear(num_features, latent_dim)
        self.log_variance = _linear(num_features, latent_dim, zero=True)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        scale = (0.5 * self.log_variance(features)).exp()
        return dist.Normal(self.loc(features), scale, validate_args=False).to_event(1)


class AR1(nn.Module):
    r"""One scale and one correlation per image: the ρ-VAE of Ferdowsi et al. (arXiv:1909.06236), covariance
    :math:`s\,\mathrm{Toeplitz}(1, \rho, \rho^2, \dots)`. Its covariance takes two linear units where the diagonal one
    takes d.

    Example:

        >>> AR1(num_features=8, latent_dim=3)(torch.randn(2, 8))
        AR1Normal(loc: torch.Size([2, 3]), scale: torch.Size([2, 1]), atanh_rho: torch.Size([2, 1]))

    Args:
        num_features (int): size of the features.
        latent_dim (int): d.
        per_pair (bool): whether there is a correlation for every pair of neighbours.
    """

    def __init__(self, num_features: int, latent_dim: int, per_pair: bool = False) -> None:
        super().__init__()
        self.loc = _linear(num_features, latent_dim)
        self.log_variance = _linear(num_features, 1, zero=True)
        # With one latent there is no pair; AR1Normal then ignores the correlation.
        self.atanh_rho = _linear(num_features, max(latent_dim - 1, 1) if per_pair else 1, zero=True)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        scale = (0.5 * self.log_variance(features)).exp()
        return AR1Normal(self.loc(features), scale, atanh_rho=self.atanh_rho(features), validate_args=False)


class Markov(nn.Module):
    """A scale per coordinate and a correlation per pair of neighbours: any Gauss–Markov chain.

    Example:

        >>> Markov(num_features=8, latent_dim=3)(torch.randn(2, 8))
        AR1Normal(loc: torch.Size([2, 3]), scale: torch.Size([2, 3]), atanh_rho: torch.Size([2, 2]))

    Args:
        num_features (int): size of the features.
        latent_dim (int): d.
        shared_rho (bool): whether there is one correlation for all pairs.
    """

    def __init__(self, num_features: int, latent_dim: int, shared_rho: bool = False) -> None:
        super().__init__()
        self.loc = _linear(num_features, latent_dim)
        self.log_variance = _linear(num_features, latent_dim, zero=True)
        # With one latent there is no pair; AR1Normal then ignores the correlation.
        self.atanh_rho = _linear(num_features, 1 if shared_rho else max(latent_dim - 1, 1), zero=True)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        scale = (0.5 * self.log_variance(features)).exp()
        return AR1Normal(self.loc(features), scale, atanh_rho=self.atanh_rho(features), validate_args=False)


class LowRank(nn.Module):
    r"""Covariance :math:`D (I + F F^\top) D` with D the diagonal matrix of :math:`e^{v/2}` and F of d rows and ``rank``
    columns: factor analysis of the posterior, each coordinate in its own scale. On validation images that is better
    than :math:`W W^\top + D^2`, in which what a step of a unit of W does depends on the scale of its latent
    (``benchmarks/parametrisations.py``).

    Example:

        >>> LowRank(num_features=8, latent_dim=3, rank=2)(torch.randn(2, 8)).cov_factor.shape
        torch.Size([2, 3, 2])

    Args:
        num_features (int): size of the features.
        latent_dim (int): d.
        rank (int): number of factors.

    Raises:
        ValueError: if ``rank`` is less than 1.
    """

    def __init__(self, num_features: int, latent_dim: int, rank: int = 1) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        super().__init__()
        self.loc = _linear(num_features, latent_dim)
        self.log_variance = _linear(num_features, latent_dim, zero=True)
        self.factor = _linear(num_features, latent_dim * rank)
        self.shape = (latent_dim, rank)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        scale = (0.5 * self.log_variance(features)).exp()
        factor = scale.unsqueeze(-1) * self.factor(features).unflatten(-1, self.shape)
        return dist.LowRankMultivariateNormal(self.loc(features), factor, scale.square(), validate_args=False)


class Banded(nn.Module):
    r"""A normal in which each coordinate depends on the ``order`` ones before it, and on those alone:

    .. math::

        z_t = \mathrm{loc}_t + e^{v_t/2} u_t, \qquad
        u_t = \sum_{j=1}^{\min(p, t - 1)} \varphi_{t,j} u_{t-j} + \epsilon_t, \qquad \epsilon_t \sim \mathcal{N}(0, 1),

    antedependence of order p (Gabriel, *Ante-dependence analysis of an ordered set of variables*, 1962): an
    autoregression with coefficients of its own for each coordinate, whose precision has p bands below the diagonal and
    p above (Pourahmadi, *Joint mean-covariance models*, 1999, by its modified Cholesky factor). The family is that of
    ``markov`` for p = 1 and of ``full`` for p = d - 1.

    Example:

        >>> Banded(num_features=8, latent_dim=5, order=2)(torch.randn(2, 8)).scale_tril.shape
        torch.Size([2, 5, 5])

    Args:
        num_features (int): size of the features.
        latent_dim (int): d.
        order (int): p; d - 1 if it is more than that.

    Raises:
        ValueError: if ``order`` is less than 1.

    Note:
        The factor is the dense inverse of a triangular matrix of d rows: for d of tens.
    """

    places: Tensor

    def __init__(self, num_features: int, latent_dim: int, order: int = 3) -> None:
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        super().__init__()
        places = _below(latent_dim, order)
        self.loc = _linear(num_features, latent_dim)
        self.log_variance = _linear(num_features, latent_dim, zero=True)
        self.coefficients = _linear(num_features, max(places.shape[1], 1), zero=True)
        self.register_buffer("places", places, persistent=False)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        scale = (0.5 * self.log_variance(features)).exp()
        whitening = _unit_lower(-self.coefficients(features), self.places, scale.shape[-1])
        identity = torch.eye(scale.shape[-1], dtype=scale.dtype, device=scale.device)
        factor = torch.linalg.solve_triangular(whitening, identity, upper=False, unitriangular=True)
        scale_tril = scale.unsqueeze(-1) * factor
        return dist.MultivariateNormal(self.loc(features), scale_tril=scale_tril, validate_args=False)


class Full(Banded):
    """Any covariance: each coordinate depends on all those before it, :class:`Banded` of order d - 1.

    Of six ways to write a full covariance, ``benchmarks/parametrisations.py`` found this one the best on validation
    images, or no worse than the best. In the worst one, the Cholesky factor with a linear unit for each entry below the
    diagonal, what a step of a unit does depends on the scale of the latent that it moves, and the posterior loses to
    the diagonal one.

    Example:

        >>> Full(num_features=8, latent_dim=3)(torch.randn(2, 8)).covariance_matrix[0]
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]], grad_fn=<SelectBackward0>)

    Args:
        num_features (int): size of the features.
        latent_dim (int): d.
    """

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__(num_features, latent_dim, order=max(latent_dim - 1, 1))


def _below(d: int, order: int) -> Tensor:
    """Rows and columns of the places in the first ``order`` bands below the diagonal."""
    rows, columns = torch.tril_indices(d, d, -1)
    kept = rows - columns <= order
    return torch.stack([rows[kept], columns[kept]])


def _unit_lower(values: Tensor, places: Tensor, d: int) -> Tensor:
    """Triangular matrices of ones on the diagonal and these values at these places below it. With one latent there are
    no places, but a value, for torch's layers have no zero outputs."""
    matrix = torch.diag_embed(values.new_ones(*values.shape[:-1], d))
    rows, columns = places
    matrix[..., rows, columns] = values[..., : len(rows)]
    return matrix


def _linear(num_features: int, size: int, *, zero: bool = False) -> nn.Linear:
    """A linear layer with Xavier's weights (Glorot & Bengio, 2010), or with zeros, and with a bias of zero."""
    layer = nn.Linear(num_features, size)
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


POSTERIORS: dict[str, Callable[..., nn.Module]] = {
    "diagonal": Diagonal,
    "ar1": AR1,
    "markov": Markov,
    "low_rank": LowRank,
    "banded": Banded,
    "full": Full,
}
"""The posteriors by name. Each value makes a head from ``num_features``, ``latent_dim`` and the options of its class.

:meta hide-value:
"""
