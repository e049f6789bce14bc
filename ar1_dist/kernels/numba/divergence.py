r"""The divergence to independent normals: :func:`ar1_dist.functional.kl_to_normal`."""

from collections.abc import Sequence

import numpy as np
from numpy import float64
from torch import Tensor

from ar1_dist.kernels import Tensors, check_widths
from ar1_dist.kernels.numba.arithmetic import CHUNK, part, rows_at, upstream
from ar1_dist.kernels.numba.compilation import vectorised
from ar1_dist.kernels.numba.determinant import log_roots, log_roots_backward, log_scales
from ar1_dist.kernels.numba.rows import Rows, as_rows

__all__ = ["kl_to_normal", "kl_to_normal_backward"]


def kl_to_normal(
    loc: Tensor, scale: Tensor, correlation: Tensor, p_loc: Tensor, p_scale: Tensor, *, atanh: bool
) -> Tensors:
    check_widths(loc.size(-1), (p_loc, p_scale), (scale,), (correlation,))
    rows = Rows(loc, scale, correlation, p_loc, p_scale)
    result = loc.new_empty(rows.batch_shape)
    rows.run(_kl_to_normal_kernel, (result,), atanh)
    return (result,)


def kl_to_normal_backward(
    needed: Sequence[bool], grad: Tensor, tensors: Tensors, kept: Tensors, *, atanh: bool
) -> Tensors:
    rows = Rows(*tensors)
    grads = tuple(map(rows.empty_like, tensors[:3]))
    given, is_constant = as_rows(grad)
    grad_p_scale = rows.empty_like(tensors[0]) if needed[4] else given  # which is not written to then
    rows.run(_kl_to_normal_backward_kernel, (given, *grads, grad_p_scale), atanh, is_constant, needed[4])
    return *grads, (-grads[0] if needed[3] else grads[0]), grad_p_scale


@vectorised
def _kl_to_normal_kernel(like, at, rows, counts, widths, atanh):
    loc = rows_at(at[0], counts[0], widths[0], like)
    scale = rows_at(at[1], counts[1], widths[1], like)
    c = rows_at(at[2], counts[2], widths[2], like)
    p_loc = rows_at(at[3], counts[3], widths[3], like)
    p_scale = rows_at(at[4], counts[4], widths[4], like)
    d = widths[0]
    result = rows_at(at[5], rows, 1, like)
    step, pairs = min(scale.shape[1] - 1, 1), np.empty((4, CHUNK))
    for r in range(rows):
        i, j, k, q = r % loc.shape[0], r % scale.shape[0], r % p_loc.shape[0], r % p_scale.shape[0]
        spread, tau = part(scale, j, 0, d), p_scale[q]
        log = log_scales(scale, j, d) + log_roots(c, r % c.shape[0], d, atanh, pairs)
        if 1e-100 < tau[0] < 1e100 and _is_constant(tau):  # as that of a standard normal is
            excess = _excess_over_constant(loc[i], p_loc[k], spread, step, float64(tau[0]))
            log -= d * np.log(float64(tau[0]))
        else:
            excess = _excess(loc[i], p_loc[k], spread, step, tau)
            log -= log_scales(p_scale, q, d)
        result[r, 0] = 0.5 * excess - log


@vectorised
def _is_constant(x):
    different = 0
    for t in range(x.size):
        different += x[t] != x[0]
    return different == 0


@vectorised
def _excess(loc, p_loc, scale, step, p_scale):
    r""":math:`\sum_t \big((\mathrm{loc}_t - \mu_t)^2 + \mathrm{scale}_t^2\big)/\tau_t^2 - 1`."""
    total = 0.0
    for t in range(loc.size):
        tau, sigma = min(float64(p_scale[t]), 1e308), float64(scale[t * step])  # inf - inf would be NaN
        inverse, delta = 1 / tau, float64(loc[t]) - p_loc[t]
        total += (delta * inverse) * (delta * inverse) + ((sigma - tau) * inverse) * ((sigma + tau) * inverse)
    return total


@vectorised
def _excess_over_constant(loc, p_loc, scale, step, tau):
    squares = excess = 0.0
    for t in range(loc.size):
        delta = float64(loc[t]) - p_loc[t]
        squares += delta * delta
    if step:
        for t in range(scale.size):
            excess += (scale[t] - tau) * (scale[t] + tau)
    else:
        excess = loc.size * ((scale[0] - tau) * (scale[0] + tau))
    return (squares + excess) / (tau * tau)


@vectorised
def _kl_to_normal_backward_kernel(like, at, rows, counts, widths, atanh, is_constant, needs_p_scale):
    loc = rows_at(at[0], counts[0], widths[0], like)
    scale = rows_at(at[1], counts[1], widths[1], like)
    c = rows_at(at[2], counts[2], widths[2], like)
    p_loc = rows_at(at[3], counts[3], widths[3], like)
    p_scale = rows_at(at[4], counts[4], widths[4], like)
    d = widths[0]
    grad = upstream(at[5], rows, 1, is_constant, like)
    grad_loc = rows_at(at[6], rows, d, like)
    grad_scale = rows_at(at[7], rows, widths[1], like)
    grad_c = rows_at(at[8], rows, widths[2], like)
    grad_p_scale = rows_at(at[9], rows, d, like)
    step = min(scale.shape[1] - 1, 1)
    for r in range(rows):
        i, j, k, q = r % loc.shape[0], r % scale.shape[0], r % p_loc.shape[0], r % p_scale.shape[0]
        g, spread, tau = float64(grad[r % grad.shape[0], 0]), part(scale, j, 0, d), p_scale[q]
        if 1e-100 < tau[0] < 1e100 and _is_constant(tau):
            total = _excess_over_constant_backward(
                g, loc[i], p_loc[k], spread, step, float64(tau[0]), grad_loc[r], grad_scale[r]
            )
        else:
            total = _excess_backward(g, loc[i], p_loc[k], spread, step, tau, grad_loc[r], grad_scale[r])
        if not step:
            grad_scale[r, 0] = total
        if needs_p_scale:
            for t in range(d):
                inverse, sigma = 1 / float64(tau[t]), float64(spread[t * step])
                delta = (float64(loc[i, t]) - p_loc[k, t]) * inverse
                excess = ((sigma - tau[t]) * inverse) * ((sigma + tau[t]) * inverse)
                grad_p_scale[r, t] = -g * (excess + delta * delta) * inverse
        log_roots_backward(g, c, r % c.shape[0], d, atanh, grad_c, r)


@vectorised
def _excess_backward(g, loc, p_loc, scale, step, p_scale, grad_loc, grad_scale):
    """The gradients of half the excess less the scales' logarithms; returns that of a scale that is shared. Each has a
    loop of its own, since the compiler vectorises no loop over too many arrays."""
    total = 0.0
    for t in range(loc.size):
        inverse = 1 / float64(p_scale[t])
        grad_loc[t] = g * (float64(loc[t]) - p_loc[t]) * inverse * inverse
    if step:
        for t in range(loc.size):
            sigma, tau = float64(scale[t]), float64(p_scale[t])
            grad_scale[t] = g * ((sigma - tau) / tau) * ((sigma + tau) / tau) / sigma
    else:
        sigma = float64(scale[0])
        for t in range(loc.size):
            inverse = 1 / float64(p_scale[t])
            total += ((sigma - p_scale[t]) * inverse) * ((sigma + p_scale[t]) * inverse)
    return g * total / scale[0]


@vectorised
def _excess_over_constant_backward(g, loc, p_loc, scale, step, tau, grad_loc, grad_scale):
    inverse = 1 / tau
    factor = g * inverse * inverse
    for t in range(loc.size):
        grad_loc[t] = factor * (float64(loc[t]) - p_loc[t])
    if step:
        for t in range(loc.size):
            sigma = float64(scale[t])
            grad_scale[t] = factor * (sigma - tau) * (sigma + tau) / sigma
    sigma = float64(scale[0])
    return loc.size * factor * (sigma - tau) * (sigma + tau) / sigma
