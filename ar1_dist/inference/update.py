r"""Products of a chain with other normals over the same space, normalised, and their normalisers.

With m the mean of the product and P its precision matrix, the normaliser is

.. math:: \log \int q(z)\, p(z)\, dz = \log q(m) + \log p(m) + \tfrac{d}{2} \log 2\pi - \tfrac12 \log \det P ,

in which the quadratic forms are sums of squares, and to first order do not depend on m.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from ar1_dist.functional import join, sign_of, sum_shared, whiten, widen
from ar1_dist.inference.chain import Chain, of_size, sech_squared
from ar1_dist.recurrence import linear_recurrence, moebius_recurrence

__all__ = ["update_by_chain", "update_by_factors"]


def update_by_factors(q: Chain, value: Tensor, noise_scale: Tensor) -> tuple[Chain, Tensor]:
    r"""The product with :math:`\prod_t \mathcal{N}(z_t; x_t, \tau_t^2)`, where x and :math:`\tau` have shape ``(...,
    d)``, and the logarithm of its integral, of the leading dimensions: see :meth:`AR1Normal.conjugate_update
    <ar1_dist.AR1Normal.conjugate_update>`.

    Each factor is :math:`\exp(\eta_t u_t - \tfrac12 \lambda_t u_t^2)` in the standardised coordinates, with
    :math:`\lambda_t = (\mathrm{scale}_t/\tau_t)^2` and :math:`\eta_t = \lambda_t (x_t - \mathrm{loc}_t)/
    \mathrm{scale}_t`. Where :math:`\lambda_t` is so much more than the precision of :math:`u_t` given its neighbours,
    :math:`1 + \sinh^2\alpha_t + \sinh^2\alpha_{t+1}`, that this rounds away beside it, the posterior's mean is the
    reading; without noise it is the limit, with a scale of 0."""
    dtype = torch.promote_types(q.loc.dtype, value.dtype)
    loc, scale, atanh_rho = widen(q.loc), widen(q.scale), of_size(widen(q.atanh_rho), q.loc.shape[-1] - 1)
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

    spread = pad(sech_squared(atanh_rho), (0, 1), value=1.0)
    mean, variance, correlation, log_det = _smooth(atanh_rho.tanh(), spread, information, score)
    mean = torch.where(is_sharp, standardised, mean)
    squares = torch.where(is_observed & ~is_sharp, (deviation - scale * mean) / tau, 0.0).square().sum(-1)
    squares = squares + whiten(mean, atanh_rho, mean.dtype).square().sum(-1)
    log_variance = 2 * torch.where(is_exact, scale, tau).log() - torch.where(is_exact, unbounded.log(), 0.0)
    log_noise = torch.where(is_observed, math.log(2 * math.pi) + log_variance, 0.0).sum(-1)
    log_normalizer = -0.5 * (squares + log_det + log_noise)
    loc = torch.where(is_sharp, widen(value), loc + scale * mean)
    scale = torch.where(is_exact, widen(noise_scale), scale * variance.sqrt())
    return Chain(loc, scale, correlation).to(dtype), log_normalizer.to(dtype)


def update_by_chain(q: Chain, p: Chain) -> tuple[Chain, Tensor]:
    r"""The product with another chain, and the logarithm of its integral, of the leading dimensions.

    In q's standardised coordinates and from right to left, q has :math:`u_{t-1} \mid u_t \sim \mathcal{N}(k_t u_t,
    N_t)` and p has :math:`\mathcal{N}(k'_t u_t + \nu_t, N'_t)`. With :math:`M_t = N_t + N'_t` their product is

    .. math:: \mathcal{N}\Big(u_{t-1};\ \frac{k_t N'_t + k'_t N_t}{M_t}\, u_t + \frac{N_t}{M_t}\, \nu_t,\;
        \frac{N_t N'_t}{M_t}\Big)\; \mathcal{N}\big(\nu_t;\ (k_t - k'_t)\, u_t,\ M_t\big) ,

    a chain's conditional, and an observation of :math:`u_t` whose information :math:`(k_t - k'_t)^2/M_t` is not
    negative: where couplings of opposite signs cancel in the one, they add up in the other. Of the last coordinate,
    the product of :math:`\mathcal{N}(0, 1)` and :math:`\mathcal{N}(\delta_d, b_d^2)` remains.
    """
    d = q.loc.shape[-1]
    dtype = torch.promote_types(q.loc.dtype, p.loc.dtype)
    mean, variance, correlation, log_det = _multiply(q, p)
    q_loc, p_loc, scale, tau = map(widen, (q.loc, p.loc, q.scale, p.scale))
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
    log_normalizer = -0.5 * (squares + log_det + 2 * sum_shared(scale.log(), d) + d * math.log(2 * math.pi))
    return Chain(loc, scale * variance.sqrt(), correlation).to(dtype), log_normalizer.to(dtype)


def _whitened_square(u: Tensor, q: Chain) -> Tensor:
    return whiten(u, of_size(widen(q.atanh_rho), u.shape[-1] - 1), u.dtype).square().sum(-1)


def _multiply(q: Chain, p: Chain) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, variances and artanh of the correlations of the product, in q's standardised coordinates, and the
    logarithm of the determinant of the sum of the two covariances in them."""
    d = q.loc.shape[-1]
    scale, tau = widen(q.scale), widen(p.scale)
    alpha, beta = of_size(widen(q.atanh_rho), d - 1), of_size(widen(p.atanh_rho), d - 1)
    b, shift = of_size(tau / scale, d), of_size((widen(p.loc) - widen(q.loc)) / tau, d)
    previous, current = b[..., :-1], b[..., 1:]

    own, its = sech_squared(alpha), previous.square() * sech_squared(beta)  # N and N'
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


def _one_minus_tanh(x: Tensor) -> Tensor:
    return 2 * (-2 * x).sigmoid()
