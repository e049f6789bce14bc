"""The density: :func:`ar1_dist.functional.log_prob`."""

import math
from collections.abc import Sequence

import numpy as np
from numpy import float64
from torch import Tensor

from ar1_dist.kernels import Tensors, check_widths
from ar1_dist.kernels.numba.arithmetic import (
    CHUNK,
    innovation,
    load_whitening,
    log_product,
    pair_of,
    part,
    rows_at,
    upstream,
)
from ar1_dist.kernels.numba.compilation import compiled, vectorised
from ar1_dist.kernels.numba.determinant import beyond_most, log_roots, log_scales
from ar1_dist.kernels.numba.rows import Rows, as_rows

__all__ = ["log_prob", "log_prob_backward"]


_SHORT = 8  # the d up to which one loop takes less time than several that are vectorised


def log_prob(value: Tensor, loc: Tensor, scale: Tensor, correlation: Tensor, *, atanh: bool) -> Tensors:
    check_widths(loc.size(-1), (value,), (scale,), (correlation,))
    rows = Rows(value, loc, scale, correlation)
    result = loc.new_empty(rows.batch_shape)
    rows.run(_log_prob_kernel, (result,), atanh)
    return (result,)


def log_prob_backward(needed: Sequence[bool], grad: Tensor, tensors: Tensors, kept: Tensors, *, atanh: bool) -> Tensors:
    rows = Rows(*tensors)
    grads = tuple(map(rows.empty_like, tensors[1:]))
    given, is_constant = as_rows(grad)
    rows.run(_log_prob_backward_kernel, (given, *grads), atanh, is_constant)
    return (-grads[0] if needed[0] else grads[0]), *grads


@compiled
def _log_prob_kernel(like, at, rows, counts, widths, atanh):
    value = rows_at(at[0], counts[0], widths[0], like)
    loc = rows_at(at[1], counts[1], widths[1], like)
    scale = rows_at(at[2], counts[2], widths[2], like)
    c = rows_at(at[3], counts[3], widths[3], like)
    d = widths[1]
    result = rows_at(at[4], rows, 1, like)
    step, pair_step = min(scale.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    pairs, u = np.empty((4, CHUNK)), np.empty(CHUNK + 1)
    for r in range(rows):
        n, i, j, m = r % value.shape[0], r % loc.shape[0], r % scale.shape[0], r % c.shape[0]
        log = log_scales(scale, j, d)
        u[0] = (float64(value[n, 0]) - loc[i, 0]) / scale[j, 0]
        squares = u[0] * u[0]
        if not pair_step:
            log += log_roots(c, m, d, atanh, pairs)
        for start in range(1, d, CHUNK):
            stop = min(start + CHUNK, d)
            load_whitening(part(c, m, start - 1, stop - 1), atanh, pairs)
            if pair_step:
                log += 0.5 * log_product(pairs, 2, stop - start) - beyond_most(c[m, start - 1 : stop - 1], atanh)
            _standardise(value[n, start:stop], loc[i, start:stop], part(scale, j, start, stop), step, u[1:])
            squares += _sum_of_squares(u, pairs, pair_step, stop - start)
            u[0] = u[stop - start]
        result[r, 0] = -0.5 * (squares + d * math.log(2 * math.pi)) - log


@vectorised
def _standardise(value, loc, scale, step, u):
    for p in range(value.size):
        u[p] = (float64(value[p]) - loc[p]) / scale[p * step]


@vectorised
def _sum_of_squares(u, pairs, pair_step, n):
    """Of the innovations."""
    total, rho, gap = 0.0, pairs[0, 0], pairs[1, 0]
    if pair_step:
        for p in range(n):
            w = innovation(u[p + 1], u[p], pairs[0, p], pairs[1, p])
            total += w * w * pairs[3, p]
        return total
    for p in range(n):
        w = innovation(u[p + 1], u[p], rho, gap)
        total += w * w
    return total * pairs[3, 0]


@compiled
def _log_prob_backward_kernel(like, at, rows, counts, widths, atanh, is_constant):
    r"""With w the whitened value and :math:`\omega_t = w_t/\sqrt{1 - \rho_t^2}`, the slope of half the sum of squares
    by :math:`u_t` is :math:`\omega_t - \rho_{t+1} \omega_{t+1}`, and the gradient of :math:`\alpha_t` is
    :math:`\rho_t - \omega_t (\rho_t u_t - u_{t-1})`."""
    value = rows_at(at[0], counts[0], widths[0], like)
    loc = rows_at(at[1], counts[1], widths[1], like)
    scale = rows_at(at[2], counts[2], widths[2], like)
    c = rows_at(at[3], counts[3], widths[3], like)
    d = widths[1]
    grad = upstream(at[4], rows, 1, is_constant, like)
    grad_loc = rows_at(at[5], rows, d, like)
    grad_scale = rows_at(at[6], rows, widths[2], like)
    grad_c = rows_at(at[7], rows, widths[3], like)
    step, pair_step = min(scale.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    pairs, slopes = np.empty((4, CHUNK)), np.empty(CHUNK)
    # Of the coordinates of a part, and first of the one before it.
    u, inverse, omega = np.empty(CHUNK + 1), np.empty(CHUNK + 1), np.empty(CHUNK + 1)
    for r in range(rows):
        n, i, j, m = r % value.shape[0], r % loc.shape[0], r % scale.shape[0], r % c.shape[0]
        g, total_scale, total_c = float64(grad[r % grad.shape[0], 0]), 0.0, 0.0
        if d <= _SHORT:
            gradients = grad_loc[r], grad_scale[r], grad_c[r]
            _log_prob_backward_of_short(g, value[n], loc[i], scale[j], step, c[m], pair_step, atanh, gradients)
            continue
        inverse[0] = 1 / float64(scale[j, 0])
        u[0] = omega[0] = (float64(value[n, 0]) - loc[i, 0]) * inverse[0]
        for start in range(1, d, CHUNK):
            stop = min(start + CHUNK, d)
            size = stop - start
            load_whitening(part(c, m, start - 1, stop - 1), atanh, pairs)
            if step:
                _invert(scale[j, start:stop], inverse[1:])
            _multiply_deviations(value[n, start:stop], loc[i, start:stop], inverse[step:], step, u[1:])
            _load_omega(u, pairs, pair_step, omega, size)
            total_c += _log_prob_by_pair(g, u, omega, pairs, pair_step, atanh, grad_c[r, start - 1 :], size)
            _load_slopes(omega, pairs, pair_step, slopes, size)
            total_scale += _log_prob_by_coordinate(
                g, slopes, u, inverse, step, grad_loc[r, start - 1 :], grad_scale[r, (start - 1) * step :], size
            )
            u[0], inverse[0], omega[0] = u[size], inverse[size * step], omega[size]
        grad_loc[r, d - 1] = g * omega[0] * inverse[0]
        by_scale = g * (omega[0] * u[0] - 1) * inverse[0]
        grad_scale[r, (d - 1) * step] = by_scale if step else total_scale + by_scale
        if c.shape[1] == 1:
            grad_c[r, 0] = total_c


@vectorised
def _invert(x, inverse):
    for p in range(x.size):
        inverse[p] = 1 / float64(x[p])


@vectorised
def _multiply_deviations(value, loc, inverse, step, u):
    if step:
        for p in range(value.size):
            u[p] = (float64(value[p]) - loc[p]) * inverse[p]
    else:
        factor = inverse[0]
        for p in range(value.size):
            u[p] = (float64(value[p]) - loc[p]) * factor


@vectorised
def _load_omega(u, pairs, pair_step, omega, n):
    r""":math:`\omega_t` of :func:`log_prob_backward`."""
    rho, gap, inverse = pairs[0, 0], pairs[1, 0], pairs[3, 0]
    if pair_step:
        for p in range(n):
            omega[p + 1] = innovation(u[p + 1], u[p], pairs[0, p], pairs[1, p]) * pairs[3, p]
    else:
        for p in range(n):
            omega[p + 1] = innovation(u[p + 1], u[p], rho, gap) * inverse


@vectorised
def _log_prob_by_pair(g, u, omega, pairs, pair_step, atanh, grad_c, n):
    """The gradients of the pairs; returns that of a correlation that is shared."""
    total, rho, gap = 0.0, pairs[0, 0], pairs[1, 0]
    if pair_step:
        for p in range(n):
            by_c = pairs[0, p] + omega[p + 1] * innovation(u[p], u[p + 1], pairs[0, p], pairs[1, p])
            grad_c[p] = g * by_c * (1.0 if atanh else pairs[3, p])
    else:
        for p in range(n):
            total += rho + omega[p + 1] * innovation(u[p], u[p + 1], rho, gap)
    return g * total * (1.0 if atanh else pairs[3, 0])


@vectorised
def _load_slopes(omega, pairs, pair_step, slopes, n):
    r""":math:`\omega_{t-1} - \rho_t \omega_t`, by which half the sum of squares grows with :math:`u_{t-1}`."""
    rho = pairs[0, 0]
    if pair_step:
        for p in range(n):
            slopes[p] = omega[p] - pairs[0, p] * omega[p + 1]
    else:
        for p in range(n):
            slopes[p] = omega[p] - rho * omega[p + 1]


@vectorised
def _log_prob_by_coordinate(g, slopes, u, inverse, step, grad_loc, grad_scale, n):
    """The gradients of loc and of the scales; returns that of a scale that is shared."""
    total, factor = 0.0, inverse[0]
    if step:
        for p in range(n):
            grad_loc[p] = g * slopes[p] * inverse[p]
        for p in range(n):
            grad_scale[p] = g * (slopes[p] * u[p] - 1) * inverse[p]
    else:
        for p in range(n):
            grad_loc[p] = g * slopes[p] * factor
            total += slopes[p] * u[p] - 1
    return g * total * factor


@compiled
def _log_prob_backward_of_short(g, value, loc, scale, step, c, pair_step, atanh, gradients):
    """The same for a row of few coordinates, in one loop."""
    grad_loc, grad_scale, grad_c = gradients
    d, total_scale, total_c = loc.size, 0.0, 0.0
    inverse = 1 / float64(scale[0])
    u = omega = (float64(value[0]) - loc[0]) * inverse
    for t in range(1, d):
        if pair_step or t == 1:
            rho, square, _, gap = pair_of(c[t - 1], atanh)
            inverse_square = 1 / square
        last_u, last_omega, last_inverse = u, omega, inverse
        if step:
            inverse = 1 / float64(scale[t])
        u = (float64(value[t]) - loc[t]) * inverse
        omega = innovation(u, last_u, rho, gap) * inverse_square
        by_c = rho + omega * innovation(last_u, u, rho, gap)
        by_c *= g * (1.0 if atanh else inverse_square)
        total_c += by_c
        grad_c[(t - 1) * pair_step] = by_c if pair_step else total_c
        slope = last_omega - rho * omega
        grad_loc[t - 1] = g * slope * last_inverse
        by_scale = g * (slope * last_u - 1) * last_inverse
        total_scale += by_scale
        grad_scale[(t - 1) * step] = by_scale
    grad_loc[d - 1] = g * omega * inverse
    by_scale = g * (omega * u - 1) * inverse
    grad_scale[(d - 1) * step] = by_scale if step else total_scale + by_scale
    if d == 1 and grad_c.size == 1:
        grad_c[0] = 0.0
