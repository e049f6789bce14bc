r"""Kullback–Leibler divergences between autoregressive, factorised, dense and low-rank normals, in closed form.

Importing :mod:`ar1_dist` registers them with :func:`torch.distributions.kl_divergence`. They broadcast over batch
shapes; the result has the common batch shape and is in nats.

====================================  ==================================================  ===================
from                                  to                                                  cost
====================================  ==================================================  ===================
AR1Normal                             AR1Normal                                           d
AR1Normal                             Independent(p, 1), p univariate with a KL from      d
                                      Normal (Normal, Laplace, Gumbel, ...)
AR1Normal                             MultivariateNormal                                  d³
AR1Normal                             LowRankMultivariateNormal, of rank r                d r²
Independent(Normal, 1)                AR1Normal                                           d
Independent(Delta, 1), Pyro's         AR1Normal                                           d
MultivariateNormal                    AR1Normal                                           d²
LowRankMultivariateNormal, of rank r  AR1Normal                                           d r
MultivariateNormal                    Independent(p, 1), as above                         d²
LowRankMultivariateNormal, of rank r  Independent(p, 1), as above                         d r²
====================================  ==================================================  ===================

The last two are registered only where torch and Pyro lack them. That from a point v is Pyro's convention,
:math:`-\log p(v)`.

Note:
    :func:`torch.compile` can't trace the first look-up of a pair, so that importing :mod:`ar1_dist` looks all of
    these up once. A later :func:`torch.distributions.register_kl` makes torch forget them; call
    :func:`torch.distributions.kl_divergence` once for the pair, outside the compiled function, to have it back.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions
import torch
from pyro.distributions import Delta
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)
from torch.distributions.kl import _KL_MEMOIZE, _dispatch_kl

from ar1_dist.ar1_normal import AR1Normal, unwrap
from ar1_dist.functional import kl_to_chain, kl_to_normal, whiten, widen
from ar1_dist.kernels import is_transformed
from ar1_dist.recurrence import linear_recurrence
from ar1_dist.validation import or_limit

__all__: list[str] = []

Divergence = Callable[[Any, Any], Tensor]


def _register(q_type: type[Distribution], p_type: type[Distribution]) -> Callable[[Divergence], Divergence]:
    """Register a divergence from or to a chain, which at the edges of parameters is a number or raises."""

    def decorate(divergence: Divergence) -> Divergence:
        @functools.wraps(divergence)
        def checked(q: Distribution, p: Distribution) -> Tensor:
            kl = divergence(q, p)
            is_validated = any(isinstance(chain, AR1Normal) and chain._validate_args for chain in (q, p))
            return _or_infinity(kl, q, p, is_validated)

        register_kl(q_type, p_type)(checked)
        return divergence

    return decorate


def _or_infinity(kl: Tensor, q: Distribution, p: Distribution, is_validated: bool) -> Tensor:
    """An error in the place of a NaN that nobody put in, or without validation the limit, as far as it is infinity: not
    between two distributions both of which are singular."""
    if is_transformed() or kl.is_meta or not (is_validated or kl.is_cpu) or not kl.isnan().any():
        return kl
    given = {f"{name}'s {key}": x for name, of in (("q", q), ("p", p)) for key, x in _describe(of).items()}
    is_singular = [((fn.stddev == 0).any(-1) | _is_determined(fn)).any() for fn in (q, p)]
    return or_limit("The divergence", kl, lambda: math.inf, is_validated or all(is_singular), **given)


def _describe(fn: Distribution) -> dict[str, Tensor]:
    return fn.transform.parameters() if isinstance(fn, AR1Normal) else {"mean": fn.mean, "scale": fn.stddev}


def _is_determined(fn: Distribution) -> Tensor | bool:
    return fn.transform.atanh_rho.isinf().any(-1) if isinstance(fn, AR1Normal) else False


@_register(AR1Normal, AR1Normal)
def _kl_ar1_ar1(q: AR1Normal, p: AR1Normal) -> Tensor:
    """:func:`ar1_dist.functional.kl_to_chain`."""
    check_event_shapes(q, p)
    # loc has the batch shape, which not every parameter has
    return kl_to_chain(q.loc, *q.transform.chain[1:], p.loc, *p.transform.chain[1:])


@_register(Independent, AR1Normal)
def _kl_independent_ar1(q: Independent, p: AR1Normal) -> Tensor:
    _common_event_size(q, p)
    base, ndims = unwrap(q)
    if isinstance(base, Delta) and ndims + base.event_dim == 1:  # a guide of points: Pyro's convention
        return -p.log_prob(base.v)
    if not (isinstance(base, Normal) and ndims == 1):
        raise NotImplementedError(f"No KL(p || q) is implemented for p type {q} and q type {type(p).__name__}")
    return _kl_ar1_ar1(AR1Normal(base.loc, base.scale, 0.0, validate_args=False), p)


@_register(MultivariateNormal, AR1Normal)
def _kl_mvn_ar1(q: MultivariateNormal, p: AR1Normal) -> Tensor:
    _common_event_size(q, p)
    return _kl_from_trace(_trace_of_factor(q.scale_tril, p), q, p)


@_register(LowRankMultivariateNormal, AR1Normal)
def _kl_lowrank_ar1(q: LowRankMultivariateNormal, p: AR1Normal) -> Tensor:
    _common_event_size(q, p)
    share = q.cov_diag / p.transform.scale.square()
    # The precision's diagonal, without the scale, is 1 + sinh^2(alpha_t) + sinh^2(alpha_{t+1}).
    diagonal = share.sum(-1) + (p.transform.atanh_rho.sinh().square() * (share[..., 1:] + share[..., :-1])).sum(-1)
    return _kl_from_trace(_trace_of_factor(q.cov_factor, p) + diagonal, q, p)


@_register(AR1Normal, MultivariateNormal)
def _kl_ar1_mvn(q: AR1Normal, p: MultivariateNormal) -> Tensor:
    _common_event_size(q, p)
    white = torch.linalg.solve_triangular(p.scale_tril, q.scale_tril, upper=False)
    return _kl_from_trace(white.square().sum((-2, -1)), q, p)


@_register(AR1Normal, LowRankMultivariateNormal)
def _kl_ar1_lowrank(q: AR1Normal, p: LowRankMultivariateNormal) -> Tensor:
    r"""By Woodbury's identity, with p's covariance :math:`W W^\top + D`, :math:`M M^\top = I + W^\top D^{-1} W` and
    L the Cholesky factor of q's covariance, :math:`\operatorname{tr}(\Sigma_p^{-1} \Sigma_q) = \sum_t
    \sigma_t^2/D_t - \lVert M^{-1} W^\top D^{-1} L \rVert^2`, where :math:`L^\top` is the recurrence run backwards.
    """
    _common_event_size(q, p)
    weighted = p.cov_factor.mT / p.cov_diag.unsqueeze(-2)  # W^T D^-1
    capacitance = weighted @ p.cov_factor + torch.eye(weighted.shape[-2], dtype=weighted.dtype, device=weighted.device)
    projected = _transposed_scale_tril(q, weighted)
    shrunk = torch.linalg.solve_triangular(torch.linalg.cholesky(capacitance), projected, upper=False)
    return _kl_from_trace((q.variance / p.cov_diag).sum(-1) - shrunk.square().sum((-2, -1)), q, p)


def _kl_from_trace(trace: Tensor, q: Distribution, p: Distribution) -> Tensor:
    r"""The divergence of normals, :math:`-\mathbb{E}_q \log p - H(q)`, given :math:`\operatorname{tr}(\Sigma_p^{-1}
    \Sigma_q)`, by which the first term exceeds :math:`-\log p(\mathrm{loc}_q)`."""
    return 0.5 * trace - p.log_prob(q.mean) - q.entropy()


def _trace_of_factor(factor: Tensor, p: AR1Normal) -> Tensor:
    r""":math:`\operatorname{tr}(\Sigma_p^{-1} F F^\top)`, the sum of squares of the whitened columns of F."""
    columns = widen(factor).mT / p.transform.scale.unsqueeze(-2)
    atanh_rho = p.transform.atanh_rho.unsqueeze(-2)
    return whiten(columns, atanh_rho, atanh_rho.dtype).square().sum((-2, -1))


def _transposed_scale_tril(q: AR1Normal, x: Tensor) -> Tensor:
    """``scale_tril.mT`` applied to each row of x, which has shape ``(..., r, d)``."""
    rho, scale = q.transform.rho.unsqueeze(-2), q.transform.scale.unsqueeze(-2)
    coloured = linear_recurrence(rho, scale * x, reverse=True)
    innovations = coloured[..., 1:] / q.transform.atanh_rho.unsqueeze(-2).cosh()
    return torch.cat([coloured[..., :1], innovations], -1)


def _kl_normal_independent(q: AR1Normal | MultivariateNormal | LowRankMultivariateNormal, p: Independent) -> Tensor:
    r"""For any joint normal q and factorised p, :math:`\operatorname{KL}(q \Vert \prod_t p_t) = \sum_t
    \operatorname{KL}(q_t \Vert p_t) + \operatorname{TC}(q)`, with :math:`q_t` the marginals and TC the total
    correlation :math:`\sum_t H(q_t) - H(q)`. For q an AR1Normal and p standard normal it is eq. (6) of the ρ-VAE."""
    _common_event_size(q, p)
    base, ndims = unwrap(p)
    if ndims == 0:
        return kl_divergence(q, base)
    if isinstance(q, AR1Normal) and isinstance(base, Normal):
        kl = kl_to_normal(*q.transform.arguments, base.loc, base.scale, atanh=q.transform.atanh)
        return kl if kl.shape == q.batch_shape else kl.expand(broadcast_shape(q.batch_shape, kl.shape))
    marginals = Normal(q.mean, q.stddev, validate_args=False)
    total_correlation = q.total_correlation if isinstance(q, AR1Normal) else marginals.entropy().sum(-1) - q.entropy()
    return kl_divergence(marginals, base).sum(-1) + total_correlation


def check_event_shapes(q: Distribution, p: Distribution) -> None:
    """Raise unless they are equal."""
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"KL divergence needs equal event shapes; got {tuple(q.event_shape)} of {type(q).__name__} and "
            f"{tuple(p.event_shape)} of {type(p).__name__}."
        )


def _common_event_size(q: Distribution, p: Distribution) -> int:
    check_event_shapes(q, p)
    return q.event_shape[0]


_register(AR1Normal, Independent)(_kl_normal_independent)
for _joint in (MultivariateNormal, LowRankMultivariateNormal):
    if _dispatch_kl(_joint, Independent) is NotImplemented:
        register_kl(_joint, Independent)(_kl_normal_independent)


def look_up_every_pair(*others: type[Distribution]) -> None:
    """Fill torch's table of dispatches, which each registration empties, for torch's classes, Pyro's and others."""
    names = ("Independent", "MultivariateNormal", "LowRankMultivariateNormal", "Normal", "Laplace", "Gumbel")
    types: list[type] = [AR1Normal, *others]
    types += [getattr(library, name) for library in (torch.distributions, pyro.distributions) for name in names]
    for q_type, p_type in itertools.product(types, repeat=2):
        _KL_MEMOIZE[q_type, p_type] = _dispatch_kl(q_type, p_type)
