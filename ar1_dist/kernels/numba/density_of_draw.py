"""The density of a draw, whose noise is known: :func:`ar1_dist.functional.log_prob_of_draw`."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy import float64
from torch import Tensor

from ar1_dist.kernels import Tensors, check_widths
from ar1_dist.kernels.numba.arithmetic import CHUNK, add_product, load_colouring, part, rows_at, upstream
from ar1_dist.kernels.numba.compilation import compiled, vectorised
from ar1_dist.kernels.numba.determinant import log_roots, log_scales
from ar1_dist.kernels.numba.rows import Rows, as_rows

__all__ = ["log_prob_of_draw", "log_prob_of_draw_backward"]


def log_prob_of_draw(
    value: Tensor, loc: Tensor, scale: Tensor, correlation: Tensor, noise: Tensor, *, atanh: bool
) -> Tensors:
    check_widths(loc.size(-1), (value, noise), (scale,), (correlation,))
    rows = Rows(noise, loc, scale, correlation)
    result = loc.new_empty(rows.batch_shape)
    rows.run(_log_prob_of_draw_kernel, (result,), atanh)
    return (result,)


def log_prob_of_draw_backward(
    needed: Sequence[bool], grad: Tensor, tensors: Tensors, kept: Tensors, *, atanh: bool
) -> Tensors:
    _, loc, scale, correlation, noise = tensors
    rows = Rows(noise, loc, scale, correlation)
    grads = tuple(map(rows.empty_like, (loc, scale, correlation)))
    given, is_constant = as_rows(grad)
    rows.run(_log_prob_of_draw_backward_kernel, (given, *grads), atanh, is_constant)
    grad_value = -grads[0] if needed[0] else grads[0]
    return grad_value, *grads, torch.zeros_like(noise) if needed[4] else noise


@compiled
def _log_prob_of_draw_kernel(like, at, rows, counts, widths, atanh):
    noise = rows_at(at[0], counts[0], widths[0], like)
    scale = rows_at(at[2], counts[2], widths[2], like)
    c = rows_at(at[3], counts[3], widths[3], like)
    d = widths[1]
    result = rows_at(at[4], rows, 1, like)
    pairs = np.empty((4, CHUNK))
    for r in range(rows):
        log = log_scales(scale, r % scale.shape[0], d) + log_roots(c, r % c.shape[0], d, atanh, pairs)
        result[r, 0] = -0.5 * (_squares(noise[r % noise.shape[0]]) + d * math.log(2 * math.pi)) - log


@vectorised
def _squares(x):
    total = 0.0
    for p in range(x.size):
        total += float64(x[p]) * x[p]
    return total


@vectorised
def _log_prob_of_draw_backward_kernel(like, at, rows, counts, widths, atanh, is_constant):
    r"""With u the standardised chain and :math:`\omega_t = \epsilon_t/\sqrt{1 - \rho_t^2}`, the slope of half the sum
    of squares by :math:`u_t` is :math:`\omega_t - \rho_{t+1} \omega_{t+1}`, and the gradient of :math:`\alpha_t` is
    :math:`\rho_t (1 - \epsilon_t^2) + \sqrt{1 - \rho_t^2}\, \epsilon_t u_{t-1}`."""
    noise = rows_at(at[0], counts[0], widths[0], like)
    scale = rows_at(at[2], counts[2], widths[2], like)
    c = rows_at(at[3], counts[3], widths[3], like)
    d = widths[1]
    grad = upstream(at[4], rows, 1, is_constant, like)
    grad_loc = rows_at(at[5], rows, d, like)
    grad_scale = rows_at(at[6], rows, widths[2], like)
    grad_c = rows_at(at[7], rows, widths[3], like)
    step, pair_step = min(scale.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    pairs = np.empty((3, CHUNK))
    for r in range(rows):
        k, j, m = r % noise.shape[0], r % scale.shape[0], r % c.shape[0]
        g, inverse = float64(grad[r % grad.shape[0], 0]), 1 / float64(scale[j, 0])
        u = omega = float64(noise[k, 0])
        total_scale = total_c = 0.0
        for start in range(1, d, CHUNK):
            stop = min(start + CHUNK, d)
            load_colouring(part(c, m, start - 1, stop - 1), atanh, True, pairs)
            rho, root, inverse_root = pairs[0, 0], pairs[1, 0], pairs[2, 0]
            for t in range(start, stop):
                if pair_step:
                    rho, root, inverse_root = pairs[0, t - start], pairs[1, t - start], pairs[2, t - start]
                w = float64(noise[k, t])
                slope = omega - rho * (w * inverse_root)
                by_scale = slope * u - 1
                by_c = rho * (1 - w * w) + root * w * u
                total_scale += by_scale
                total_c += by_c if atanh else by_c * inverse_root * inverse_root
                grad_loc[r, t - 1] = g * slope * inverse
                if pair_step:
                    grad_c[r, t - 1] = g * (by_c if atanh else by_c * inverse_root * inverse_root)
                if step:
                    grad_scale[r, t - 1] = g * by_scale * inverse
                    inverse = 1 / float64(scale[j, t])
                u, omega = add_product(root * w, rho, u), w * inverse_root
        grad_loc[r, d - 1] = g * omega * inverse
        by_scale = omega * u - 1
        grad_scale[r, (d - 1) * step] = g * (by_scale if step else total_scale + by_scale) * inverse
        if c.shape[1] == 1:
            grad_c[r, 0] = g * total_c
