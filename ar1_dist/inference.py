r"""Exact inference on chains, in closed form and linear in the dimension: construct, marginalise, condition, update.

:class:`~ar1_dist.AR1Normal` has each of these as a method, which says what it takes and returns. Notation: in the
standardised coordinates :math:`u_t = (z_t - \mathrm{loc}_t)/\mathrm{scale}_t` the chain is

.. math:: u_t \mid u_{t-1} \sim \mathcal{N}(\rho_t u_{t-1},\ c_t^2), \qquad \rho_t = \tanh \alpha_t, \qquad
    c_t^2 = 1 - \rho_t^2 = \operatorname{sech}^2 \alpha_t ,

and the same from right to left, as every :math:`u_t` has variance 1. A chain comes out of every computation by its
conditionals: if one coordinate has slope k and variance q given its neighbour, which has variance v,

.. math:: \operatorname{artanh} \operatorname{Corr} = \operatorname{arsinh}(k \sqrt{v / q}) ,

which needs no :math:`1 - \rho^2`. Variances and information obey recurrences of positive terms alone
(:mod:`ar1_dist.recurrence`), so that nothing cancels but what the parameters make cancel: differences of locations, of
neighbours and of correlations, which are taken in the next wider type.
"""

import itertools
import math
import numbers
import warnings
from collections.abc import Sequence

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.nn.functional import pad

from ar1_dist.ar1_normal import AR1Normal
from ar1_dist.functional import is_floating, join, sign_of, sum_shared, whiten, widen
from ar1_dist.hyperparameters import advice, warn_of_plate_as_coordinates
from ar1_dist.kernels import has_values, is_transformed
from ar1_dist.recurrence import linear_recurrence, moebius_recurrence
from ar1_dist.transforms import AR1Transform, as_tensor, at_least_1d
from ar1_dist.validation import refuse_nan

__all__ = ["Index", "condition", "conjugate_update", "from_times", "from_transitions", "marginal"]

Index = Sequence[int] | Sequence[bool] | Tensor | slice
_SEQUENCES = (list, tuple)  # as a union, torch 2.9's compiler doesn't know it


# --- Chains from other parametrisations ---


def from_times(
    times: Tensor,
    loc: Tensor,
    scale: Tensor | float,
    timescale: Tensor | float,
    *,
    validate_args: bool | None = None,
) -> AR1Normal:
    """See :meth:`AR1Normal.from_times <ar1_dist.AR1Normal.from_times>`."""
    d = _event_size(loc)
    is_time = isinstance(times, Tensor) and not times.is_complex() and times.dtype != torch.bool
    if not is_time or times.shape[-1:] != (d,) or (times.is_floating_point() and not is_floating(times)):
        raise ValueError(f"times must be a tensor of numbers of shape (..., {d}), as loc has; got {_describe(times)}.")
    unit = _as_parameter("timescale", timescale, loc, d - 1)
    _broadcast(loc=loc.shape[:-1], times=times.shape[:-1], timescale=unit.shape[:-1])
    # In times' own type, which may be a wider one than loc's, or in int64: a narrow or unsigned integer wraps around.
    gap = (widen(times) if times.is_floating_point() else times.long()).diff(dim=-1)
    _check_gaps(times, gap)
    if _is_validated(validate_args):
        _require("times", times, "be finite", times.isfinite())
        _require("timescale", unit, "be finite and positive", unit.isfinite(), unit > 0)
    wide = widen(unit)
    ratio = gap.to(wide.device, wide.dtype) / _expand(wide, d - 1)
    # artanh rho as log1p(2 rho/(1 - rho))/2, without a rounded 1 - rho.
    atanh_rho = 0.5 * (-2 * (-ratio).exp() / torch.expm1(-ratio)).log1p()
    refuse_nan("The chain", atanh_rho, times=times, timescale=unit)
    _warn_of_plate("scale", scale)
    return _checked(loc, scale, atanh_rho.to(unit.dtype), validate_args)


def from_transitions(
    loc: Tensor,
    coefficient: Tensor | float,
    noise_scale: Tensor | float,
    initial_scale: Tensor | float,
    *,
    validate_args: bool | None = None,
) -> AR1Normal:
    """See :meth:`AR1Normal.from_transitions <ar1_dist.AR1Normal.from_transitions>`."""
    d = _event_size(loc)
    c = _as_parameter("coefficient", coefficient, loc, d - 1)
    n = _as_parameter("noise_scale", noise_scale, loc, d - 1)
    initial = _as_parameter("initial_scale", initial_scale, loc, 1)
    _broadcast(loc=loc.shape[:-1], coefficient=c.shape[:-1], noise_scale=n.shape[:-1], initial_scale=initial.shape[:-1])
    if _is_validated(validate_args):
        _require("coefficient", c, "be finite", c.isfinite())
        _require("noise_scale", n, "be finite and positive", n.isfinite(), n > 0)
        _require("initial_scale", initial, "be finite and positive", initial.isfinite(), initial > 0)
    dtype = torch.promote_types(c.dtype, torch.promote_types(n.dtype, initial.dtype))
    c, n, initial = _expand(widen(c), d - 1), _expand(widen(n), d - 1).abs(), widen(initial)
    variance = linear_recurrence(c.square(), join(initial.square(), n.square()))
    scale = join(initial.abs(), variance[..., 1:].sqrt())  # whose gradient is a number at an initial scale of 0 too
    atanh_rho = (c * scale[..., :-1] / n).asinh()
    refuse_nan("The chain", scale, atanh_rho, coefficient=c, noise_scale=n, initial_scale=initial)
    return _checked(loc, scale.to(dtype), atanh_rho.to(dtype), validate_args)


# --- Some of the coordinates ---


def marginal(q: AR1Normal, index: Index) -> AR1Normal:
    r"""See :meth:`AR1Normal.marginal <ar1_dist.AR1Normal.marginal>`. Over a gap :math:`i < t \le j` of the index,

    .. math:: \operatorname{artanh} \prod_t \rho_t = \operatorname{arsinh}\Big(\prod_t \rho_t \Big/ \sqrt{S_j}\Big),
        \qquad S_t = c_t^2 + \rho_t^2 S_{t-1}, \quad S_i = 0,

    where :math:`S_j = 1 - \prod_t \rho_t^2` is a sum of positive terms. Both recurrences start anew after each
    coordinate of the index, by a coefficient of zero.
    """
    d = q.event_shape[0]
    kept = _positions(index, d, q.loc.device)
    n = kept.numel()
    if n == 0:
        raise ValueError("index must name at least one coordinate; an AR1Normal has no event of size 0.")
    if n == d:
        return q
    atanh_rho = _expand(widen(q.transform.atanh_rho), d - 1)
    rho = atanh_rho.tanh()
    is_first = _mask(kept, d)[:-1]  # of the pairs of its gap
    coefficient = torch.where(is_first, 0.0, rho)
    product = linear_recurrence(coefficient, pad(torch.where(is_first, rho, 0.0), (1, 0)))
    variance = linear_recurrence(coefficient.square(), pad(_sech_squared(atanh_rho), (1, 0)))
    before, after = kept[:-1], kept[1:]
    over_gap = (product[..., after] / variance[..., after].sqrt()).asinh()
    over_gap = torch.where(after - before == 1, atanh_rho[..., after - 1], over_gap)  # what is kept is kept exactly
    scale = q.transform.scale
    scale = scale if scale.shape[-1] == 1 else scale[..., kept]
    return _like(q, q.transform.loc[..., kept], scale, over_gap.to(q.transform.atanh_rho.dtype), q.batch_shape)


def condition(q: AR1Normal, index: Index, value: Tensor) -> AR1Normal:
    r"""See :meth:`AR1Normal.condition <ar1_dist.AR1Normal.condition>`. It is a Kalman filter without noise, and the
    smoother. Given what is observed up to t, :math:`u_t` has mean :math:`m_t` and variance :math:`P_t`, where

    .. math:: m_t = \rho_t m_{t-1}, \qquad P_t = E_{t-1} = c_t^2 + \rho_t^2 P_{t-1} ,

    unless it is observed itself: then :math:`P_t = 0`. Given the next coordinate too,

    .. math:: u_t \mid u_{t+1} \sim \mathcal{N}\Big(\frac{\rho_{t+1} P_t}{E_t}\, u_{t+1} + \frac{c_{t+1}^2}{E_t}
        \, m_t,\ \frac{c_{t+1}^2}{E_t}\, P_t\Big) ,

    with slope and variance zero where t is observed: what lies before it and what lies after it are independent.
    """
    d = q.event_shape[0]
    observed = _positions(index, d, q.loc.device)
    n = observed.numel()
    if not isinstance(value, Tensor) or not is_floating(value) or value.shape[-1:] != (n,):
        raise ValueError(
            f"value must be a floating-point tensor of shape (..., {n}), one number for each coordinate of index; "
            f"got {_describe(value)}."
        )
    if n == d:
        raise ValueError(
            f"index must leave at least one of the {d} coordinates: an AR1Normal has no event of size 0 (the density "
            "of all of them together is log_prob(value))."
        )
    batch_shape = _broadcast(q.batch_shape, value=value.shape[:-1])
    if n == 0:
        return q.expand(batch_shape)
    if q._validate_args and has_values():
        _require("value", value, "be finite", value.isfinite())
    dtype = torch.promote_types(q.loc.dtype, value.dtype)
    loc, scale = widen(q.transform.loc), _expand(widen(q.transform.scale), d)
    atanh_rho = _expand(widen(q.transform.atanh_rho), d - 1)
    rho, innovation = atanh_rho.tanh(), _sech_squared(atanh_rho)
    is_free = ~_mask(observed, d)
    deviation = (widen(value) - loc[..., observed]) / scale[..., observed]
    start = torch.zeros(deviation.shape[:-1] + (d,), dtype=deviation.dtype, device=deviation.device)
    start = start.index_copy(-1, observed, deviation)

    coefficient = torch.where(is_free[1:], rho, 0.0)
    filtered_mean = linear_recurrence(coefficient, start)
    filtered = linear_recurrence(coefficient.square(), torch.where(is_free, pad(innovation, (1, 0), value=1.0), 0.0))
    predicted = innovation + rho.square() * filtered[..., :-1]
    slope = rho * filtered[..., :-1] / predicted
    share = pad(innovation / predicted, (0, 1), value=1.0)
    remainder = share * filtered
    mean = linear_recurrence(slope, share * filtered_mean, reverse=True)
    variance = linear_recurrence(slope.square(), remainder, reverse=True)

    free = _places(is_free, d - n)
    before, after = free[:-1], free[1:]
    is_pair = after - before == 1
    # Guarded twice: what follows an observed coordinate's neighbour has no part in value or gradient.
    ratio = torch.where(is_pair, variance[..., after], 1.0) / remainder[..., before]
    correlation = torch.where(is_pair, (slope[..., before] * ratio.sqrt()).asinh(), 0.0)
    loc = loc[..., free] + scale[..., free] * mean[..., free]
    refuse_nan("condition", loc, variance, correlation, value=value, **q.transform.parameters())
    scale = scale[..., free] * variance[..., free].sqrt()
    return _like(q, loc.to(dtype), scale.to(dtype), correlation.to(dtype), batch_shape)


# --- Products ---


def conjugate_update(q: AR1Normal, other: Distribution) -> tuple[AR1Normal, Tensor]:
    r"""See :meth:`AR1Normal.conjugate_update <ar1_dist.AR1Normal.conjugate_update>`. With m the mean of the product and
    P its precision matrix, the normaliser is

    .. math:: \log \int q(z)\, p(z)\, dz = \log q(m) + \log p(m) + \tfrac{d}{2} \log 2\pi - \tfrac12 \log \det P ,

    in which the quadratic forms are sums of squares, and to first order do not depend on m.
    """
    if isinstance(other, AR1Normal):
        return _update_by_chain(q, other)
    base, ndims = other, 0
    while isinstance(base, Independent):
        base, ndims = base.base_dist, ndims + base.reinterpreted_batch_ndims
    if not isinstance(base, Normal) or ndims != 1:
        raise ValueError(
            "other must be an AR1Normal or an Independent(Normal, 1); got "
            f"{type(base).__name__} with {ndims} reinterpreted dimensions."
        )
    return _update_by_factors(q, base.loc, base.scale)


def _update_by_factors(q: AR1Normal, value: Tensor, noise_scale: Tensor) -> tuple[AR1Normal, Tensor]:
    r"""Each factor is :math:`\exp(\eta_t u_t - \tfrac12 \lambda_t u_t^2)` in the standardised coordinates, with
    :math:`\lambda_t = (\mathrm{scale}_t/\tau_t)^2` and :math:`\eta_t = \lambda_t (x_t - \mathrm{loc}_t)/
    \mathrm{scale}_t`. Where :math:`\lambda_t` is so much more than the precision of :math:`u_t` given its neighbours,
    :math:`1 + \sinh^2\alpha_t + \sinh^2\alpha_{t+1}`, that this rounds away beside it, the posterior's mean is the
    reading; without noise it is the limit, with a scale of 0."""
    d, batch_shape = q.event_shape[0], _common_batch_shape(q, value)
    dtype = torch.promote_types(q.loc.dtype, value.dtype)
    loc, scale = widen(q.transform.loc), widen(q.transform.scale)
    atanh_rho = _expand(widen(q.transform.atanh_rho), d - 1)
    # Guarded twice: what is not observed is replaced before the arithmetic and after it, so that neither value nor
    # gradient meets an infinity or a NaN. A NaN scale is no such mark, and comes through.
    is_observed = noise_scale != math.inf
    is_exact = (scale > 0) & (noise_scale.abs() <= scale * torch.finfo(scale.dtype).max ** -0.4)
    tau = torch.where(is_observed & ~is_exact, widen(noise_scale), 1.0)
    deviation = torch.where(is_observed, widen(value), 0.0) - loc
    standardised = deviation / torch.where(scale > 0, scale, 1.0)
    ratio = scale / tau
    with torch.no_grad():
        growth = atanh_rho.sinh().square()
        own = 1 + pad(growth, (1, 0)) + pad(growth, (0, 1))
        unbounded = own * torch.finfo(own.dtype).max ** 0.5
    information = torch.where(is_exact, unbounded, torch.where(is_observed, ratio.square(), 0.0))
    score = torch.where(is_exact, unbounded * standardised, torch.where(is_observed, ratio * (deviation / tau), 0.0))
    is_sharp = information.detach() * torch.finfo(own.dtype).eps >= own

    spread = pad(_sech_squared(atanh_rho), (0, 1), value=1.0)
    mean, variance, correlation, log_det = _smooth(atanh_rho.tanh(), spread, information, score)
    mean = torch.where(is_sharp, standardised, mean)
    squares = torch.where(is_observed & ~is_sharp, (deviation - scale * mean) / tau, 0.0).square().sum(-1)
    squares = squares + whiten(mean, atanh_rho, mean.dtype).square().sum(-1)
    log_variance = 2 * torch.where(is_exact, scale, tau).log() - torch.where(is_exact, unbounded.log(), 0.0)
    log_noise = torch.where(is_observed, math.log(2 * math.pi) + log_variance, 0.0).sum(-1)
    log_normalizer = (-0.5 * (squares + log_det + log_noise)).to(dtype)
    refuse_nan("conjugate_update", log_normalizer, value=value, noise_scale=noise_scale, **q.transform.parameters())
    loc = torch.where(is_sharp, widen(value), loc + scale * mean)
    scale = torch.where(is_exact, widen(noise_scale), scale * variance.sqrt())
    updated = _like(q, loc.to(dtype), scale.to(dtype), correlation.to(dtype), batch_shape)
    return updated, log_normalizer.expand(batch_shape)


def _update_by_chain(q: AR1Normal, p: AR1Normal) -> tuple[AR1Normal, Tensor]:
    r"""In q's standardised coordinates and from right to left, q has :math:`u_{t-1} \mid u_t \sim \mathcal{N}(k_t u_t,
    N_t)` and p has :math:`\mathcal{N}(k'_t u_t + \nu_t, N'_t)`. With :math:`M_t = N_t + N'_t` their product is

    .. math:: \mathcal{N}\Big(u_{t-1};\ \frac{k_t N'_t + k'_t N_t}{M_t}\, u_t + \frac{N_t}{M_t}\, \nu_t,\
        \frac{N_t N'_t}{M_t}\Big)\; \mathcal{N}\big(\nu_t;\ (k_t - k'_t)\, u_t,\ M_t\big) ,

    a chain's conditional, and an observation of :math:`u_t` whose information :math:`(k_t - k'_t)^2/M_t` is not
    negative: where couplings of opposite signs cancel in the one, they add up in the other. Of the last coordinate,
    the product of :math:`\mathcal{N}(0, 1)` and :math:`\mathcal{N}(\delta_d, b_d^2)` remains.
    """
    d, batch_shape = q.event_shape[0], _common_batch_shape(q, p.loc)
    dtype = torch.promote_types(q.loc.dtype, p.loc.dtype)
    mean, variance, correlation, log_det = _multiply(q, p)
    q_loc, p_loc = widen(q.transform.loc), widen(p.transform.loc)
    scale, tau = widen(q.transform.scale), widen(p.transform.scale)
    loc = q_loc + scale * mean
    mean_of_p = (scale * mean - (p_loc - q_loc)) / tau
    # Where p is far the sharper both are lost in q's standardised coordinates, and their numbers are from p's. The
    # derivatives stay those of the one mean, by which the squares together have none.
    with torch.no_grad():
        number, _, _, _ = _multiply(p, q)
        is_sharper = tau < scale * torch.finfo(tau.dtype).eps ** 0.5
        correction = torch.where(is_sharper, p_loc + tau * number - loc, 0.0)
        correction_of_p = torch.where(is_sharper, number - mean_of_p, 0.0)
    loc, mean_of_p = loc + correction.detach(), mean_of_p + correction_of_p.detach()
    squares = _whitened_square(mean, q) + _whitened_square(mean_of_p, p)
    log_normalizer = (-0.5 * (squares + log_det + 2 * sum_shared(scale.log(), d) + d * math.log(2 * math.pi))).to(dtype)
    parameters = {f"other's {name}": value for name, value in p.transform.parameters().items()}
    refuse_nan("conjugate_update", log_normalizer, **q.transform.parameters(), **parameters)
    updated = _like(q, loc.to(dtype), (scale * variance.sqrt()).to(dtype), correlation.to(dtype), batch_shape)
    return updated, log_normalizer.expand(batch_shape)


def _whitened_square(u: Tensor, q: AR1Normal) -> Tensor:
    return whiten(u, _expand(widen(q.transform.atanh_rho), u.shape[-1] - 1), u.dtype).square().sum(-1)


def _multiply(q: AR1Normal, p: AR1Normal) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, variances and artanh of the correlations of the product, in q's standardised coordinates, and the
    logarithm of the determinant of the sum of the two covariances in them."""
    d = q.event_shape[0]
    loc, scale, tau = widen(q.transform.loc), widen(q.transform.scale), widen(p.transform.scale)
    alpha = _expand(widen(q.transform.atanh_rho), d - 1)
    beta = _expand(widen(p.transform.atanh_rho), d - 1)
    b, shift = _expand(tau / scale, d), _expand((widen(p.transform.loc) - loc) / tau, d)
    previous, current = b[..., :-1], b[..., 1:]

    own, its = _sech_squared(alpha), previous.square() * _sech_squared(beta)  # N and N'
    noise = join(own + its, 1 + b[..., -1:].square())
    own_share, its_share = own / noise[..., :-1], its / noise[..., :-1]
    last_share = b[..., -1:] / noise[..., -1:]
    slope = alpha.tanh() * its_share + beta.tanh() * (previous / current) * own_share
    spread = join(own * its_share, b[..., -1:] * last_share)
    # k - k' and nu are differences that vanish as correlations approach 1 or -1: with the sign of the one at hand,
    # 1 - sign * rho and 1 - sign * r, which are precise, stand for rho and r.
    sign = sign_of(alpha)
    residue = _one_minus_tanh(sign * beta) * previous - _one_minus_tanh(sign * alpha) * current
    disagreement = sign * (current - previous + residue) / current
    sign = sign_of(beta)
    residue = sign * _one_minus_tanh(sign * beta) * shift[..., 1:]
    offset = previous * (shift[..., :-1] - sign * shift[..., 1:] + residue)
    gain = disagreement / noise[..., :-1]

    mean, variance, correlation, log_det = _smooth(
        slope,
        spread,
        information=pad(gain * disagreement, (1, 0)),
        score=pad(gain * offset, (1, 0)),
        offset=join(own_share * offset, last_share * shift[..., -1:]),
    )
    return mean, variance, correlation, log_det + noise.log().sum(-1)


def _smooth(
    slope: Tensor, spread: Tensor, information: Tensor, score: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""The chain :math:`u_d \sim \mathcal{N}(o_d, N_d)`, :math:`u_{t-1} \mid u_t \sim \mathcal{N}(k_t u_t + o_{t-1},
    N_{t-1})`, times :math:`\exp \sum_t (\eta_t u_t - \tfrac12 \lambda_t u_t^2)`.

    Integrating :math:`u_1, \dots, u_{t-1}` out leaves :math:`\exp(h_t u_t - \tfrac12 g_t u_t^2)` of :math:`u_t`, with

    .. math::

        g_t = \lambda_t + \frac{k_t^2 g_{t-1}}{1 + N_{t-1} g_{t-1}}, \qquad
        h_t = \eta_t + \kappa_t (h_{t-1} - g_{t-1} o_{t-1}), \qquad \kappa_t = \frac{k_t}{1 + N_{t-1} g_{t-1}},

    the filter, in terms of the information that the factors add. So the product is the chain

    .. math:: u_t \mid u_{t+1} \sim \mathcal{N}(\kappa_{t+1} u_{t+1} + w_t o_t + q_t h_t,\ q_t), \qquad
        w_t = \frac{1}{1 + N_t g_t}, \quad q_t = w_t N_t ,

    and the smoothed means and variances are linear recurrences run backwards.

    Args:
        slope (Tensor): :math:`k_2, \dots, k_d`, of shape ``(..., d - 1)``.
        spread (Tensor): :math:`N_1, \dots, N_d`, positive, of shape ``(..., d)``.
        information (Tensor): :math:`\lambda`, not negative, of shape ``(..., d)``.
        score (Tensor): :math:`\eta`, of shape ``(..., d)``.
        offset (Tensor, optional): o, of shape ``(..., d)``; zero by default.

    Returns:
        tuple: means and variances, of shape ``(..., d)``, artanh of the correlations, of shape ``(..., d - 1)``, and
        the logarithm of the factor by which the precision's determinant has grown, :math:`\sum_t \log(1 + N_t g_t)`.
    """
    gained = moebius_recurrence(slope.square(), spread[..., :-1], information)
    shrink = 1 / (1 + spread * gained)
    coefficient, remainder = slope * shrink[..., :-1], spread * shrink
    if offset is None:
        pull = remainder * linear_recurrence(coefficient, score)
    else:
        score = score - pad(coefficient * (gained * offset)[..., :-1], (1, 0))
        pull = remainder * linear_recurrence(coefficient, score) + shrink * offset
    mean = linear_recurrence(coefficient, pull, reverse=True)
    variance = linear_recurrence(coefficient.square(), remainder, reverse=True)
    correlation = (coefficient * (variance[..., 1:] / remainder[..., :-1]).sqrt()).asinh()
    return mean, variance, correlation, (spread * gained).log1p().sum(-1)


# --- Parts ---


def _sech_squared(x: Tensor) -> Tensor:
    return x.cosh().reciprocal().square()


def _one_minus_tanh(x: Tensor) -> Tensor:
    return 2 * (-2 * x).sigmoid()


def _expand(x: Tensor, n: int) -> Tensor:
    return x.expand(x.shape[:-1] + (n,))


def _checked(loc: Tensor, scale: Tensor | float, atanh_rho: Tensor, validate_args: bool | None) -> AR1Normal:
    """The constructor, but for its warning, which is for what a user gave."""
    chain, transform = AR1Normal.__new__(AR1Normal), AR1Transform(loc, scale, atanh_rho=atanh_rho)
    chain._set_up(transform, transform.batch_shape, validate_args)
    chain._validate_parameters()
    return chain


def _like(q: AR1Normal, loc: Tensor, scale: Tensor, atanh_rho: Tensor, batch_shape: torch.Size) -> AR1Normal:
    """A chain that was computed from q. Its parameters are not checked again; values will be where q's are."""
    chain = AR1Normal.__new__(AR1Normal)
    chain._set_up(AR1Transform(loc, scale, atanh_rho=atanh_rho), batch_shape, q._given_validate_args)
    return chain


# --- Arguments ---


def _event_size(loc: Tensor) -> int:
    if not isinstance(loc, Tensor) or not is_floating(loc) or loc.dim() < 1 or loc.shape[-1] < 1:
        raise ValueError(
            f"loc must be a floating-point tensor of shape (..., d) with d at least 1; got {_describe(loc)}."
        )
    return loc.shape[-1]


def _as_parameter(name: str, value: Tensor | float, loc: Tensor, size: int) -> Tensor:
    """value, of shape ``(..., 1)`` or ``(..., size)``. As everywhere in torch, numbers and 0-d tensors don't take part
    in promotion, and go to loc's device."""
    dtype = loc.dtype
    if isinstance(value, Tensor):
        fits = is_floating(value) and (value.dim() == 0 or value.shape[-1] in (1, size))
        if fits and value.dim() > 0:
            dtype = torch.promote_types(dtype, value.dtype)
    else:
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not fits:
        sizes = "1" if size == 1 else f"1 or {size}"
        raise ValueError(
            f"{name} must be a real number or a floating-point tensor whose last dimension is {sizes}, for loc of "
            f"shape {tuple(loc.shape)}; got {_describe(value)}."
            + (f" {advice(name)}" if isinstance(value, Tensor) and is_floating(value) else "")
        )
    _warn_of_plate(name, value)
    return at_least_1d(as_tensor(value, dtype, loc.device))


def _warn_of_plate(name: str, value: Tensor | float) -> None:
    if isinstance(value, Tensor) and has_values():
        warn_of_plate_as_coordinates(**{name: value})


def _positions(index: Index, d: int, device: torch.device) -> Tensor:
    """The coordinates that index names, increasing, from 0 to d - 1. They are always checked: like shapes, they decide
    what the result is. A slice and Python's own numbers are checked without a tensor, which a compiler can follow."""
    wanted = f"index must be a slice, a boolean mask of shape ({d},) or increasing integers from {-d} to {d - 1}"
    if isinstance(index, slice):
        kept = range(d)[index]
        if kept.step < 0 and len(kept) > 1:
            raise ValueError(f"{wanted}; got {index!r}.")
        return kept.start + kept.step * torch.arange(len(kept), device=device)
    if isinstance(index, _SEQUENCES) and all(type(each) is bool for each in index) and index:
        if len(index) != d:
            raise ValueError(f"{wanted}; got {len(index)} booleans.")
        index = [t for t, is_kept in enumerate(index) if is_kept]
    if isinstance(index, _SEQUENCES) and all(type(each) is int for each in index):
        entries = [t + d if t < 0 else t for t in index]
        if any(not 0 <= t < d for t in entries) or any(a >= b for a, b in itertools.pairwise(entries)):
            raise ValueError(f"{wanted}; got {index if len(index) <= 10 else f'{len(index)} integers'}.")
        return torch.tensor(entries, dtype=torch.long, device=device)
    try:
        index = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{wanted}; got {index!r}.") from None
    if index.dim() != 1 or (index.dtype == torch.bool and index.shape != (d,)):
        raise ValueError(f"{wanted}; got {_describe(index)}.")
    if index.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=device)  # an empty tensor has a type, but not by intent
    if index.dtype == torch.bool:
        return index.to(device).nonzero().squeeze(-1)
    if index.is_floating_point() or index.is_complex():
        raise ValueError(f"{wanted}; got {_describe(index)}.")
    given = index.long()
    positions = torch.where(given < 0, given + d, given)
    if not (((positions >= 0) & (positions < d)).all() and (positions.diff() > 0).all()):
        raise ValueError(f"{wanted}; got {given.tolist() if len(given) <= 10 else _describe(given)}.")
    return positions.to(device)


def _mask(positions: Tensor, d: int) -> Tensor:
    return torch.zeros(d, dtype=torch.bool, device=positions.device).index_fill(0, positions, True)


def _places(mask: Tensor, n: int) -> Tensor:
    """Where a mask of n true entries is true: nonzero, of a size that a compiler knows."""
    rank = torch.where(mask, mask.cumsum(0) - 1, n)
    places = torch.arange(mask.shape[0], device=mask.device)
    return places.new_empty(n + 1).scatter(0, rank, places)[:n]


def _common_batch_shape(q: AR1Normal, loc: Tensor) -> torch.Size:
    if loc.shape[-1:] != q.event_shape:
        raise ValueError(
            f"other must have the event shape {tuple(q.event_shape)} of this distribution; got {tuple(loc.shape[-1:])}."
        )
    return _broadcast(q.batch_shape, other=loc.shape[:-1])


def _broadcast(batch_shape: torch.Size | None = None, **shapes: torch.Size) -> torch.Size:
    try:
        return torch.Size(broadcast_shape(batch_shape or (), *shapes.values()))
    except ValueError:
        described = ", ".join(f"{tuple(shape)} of {name}" for name, shape in shapes.items())
        described += "" if batch_shape is None else f" and batch_shape {tuple(batch_shape)}"
        raise ValueError(f"Leading dimensions must broadcast; got {described}.") from None


def _check_gaps(times: Tensor, gap: Tensor) -> None:
    """Checked always, like shapes: of times that are rounded to one another every result would be another one's."""
    if is_transformed() or times.is_meta or gap.numel() == 0:
        return
    is_floating_times = times.is_floating_point()
    advice = "give integers or subtract the first time" + (
        ", or torch.float64" if is_floating_times and times.dtype != torch.float64 else ""
    )
    if not torch._is_all_true(gap > 0) and not times.isnan().any():
        kind = "are equal" if torch._is_all_true(gap >= 0) else "decrease"
        rounded = f"; large ones, such as Unix seconds in float32, are rounded to each other: {advice}"
        raise ValueError(
            f"times must increase along the last dimension; in this tensor of {times.dtype} and shape "
            f"{tuple(times.shape)} some {kind}. Readings of one time are one coordinate with a conjugate_update for "
            f"each{rounded if is_floating_times else ''}."
        )
    if not is_floating_times:
        return
    finite = torch.where(times.detach().isfinite(), times.detach(), 0.0).double()
    largest, least = finite.abs().max().item(), gap.min().item()
    spacing = torch.finfo(times.dtype).eps * 2.0 ** (math.frexp(largest)[1] - 1)
    # Below the numbers that are further than 1 apart, multiples of twice the spacing are most likely not rounded.
    if spacing > 0.1 * least and (spacing > 1 or (finite % (2 * spacing)).any()):
        warnings.warn(
            f"The times, of {times.dtype}, are up to {largest:.6g}, where numbers lie {spacing:.2g} apart, but differ "
            f"by as little as {least:.2g}: {advice}.",
            stacklevel=4,
        )


def _is_validated(validate_args: bool | None) -> bool:
    return (Distribution._validate_args if validate_args is None else validate_args) and has_values()


def _require(name: str, value: Tensor, wanted: str, *conditions: Tensor) -> None:
    if not all(torch._is_all_true(condition) for condition in conditions):
        raise ValueError(f"{name} must {wanted}; got a tensor of shape {tuple(value.shape)}:\n{value}")


def _describe(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
