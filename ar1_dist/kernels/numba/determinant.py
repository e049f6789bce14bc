r"""The log-determinant: :func:`ar1_dist.functional.log_det`. Density and divergence have it as a part."""

from collections.abc import Sequence

import numpy as np
from numpy import float64
from torch import Tensor

from ar1_dist.kernels import Tensors, check_widths
from ar1_dist.kernels.numba.arithmetic import CHUNK, MOST, exp, log_product, pair_of, rows_at, upstream
from ar1_dist.kernels.numba.compilation import compiled, vectorised
from ar1_dist.kernels.numba.rows import Rows, as_rows

__all__ = ["beyond_most", "log_det", "log_det_backward", "log_roots", "log_roots_backward", "log_scales"]


def log_det(scale: Tensor, correlation: Tensor, *, d: int, atanh: bool, constant: float = 0.0) -> Tensors:
    check_widths(d, (), (scale,), (correlation,))
    rows = Rows(scale, correlation)
    result = scale.new_empty(rows.batch_shape)
    rows.run(_log_det_kernel, (result,), d, atanh, constant)
    return (result,)


def log_det_backward(
    needed: Sequence[bool],
    grad: Tensor,
    tensors: Tensors,
    kept: Tensors,
    *,
    d: int,
    atanh: bool,
    constant: float = 0.0,
) -> Tensors:
    rows = Rows(*tensors)
    grads = tuple(map(rows.empty_like, tensors))
    given, is_constant = as_rows(grad)
    rows.run(_log_det_backward_kernel, (given, *grads), d, atanh, is_constant)
    return grads


@compiled
def _log_det_kernel(like, at, rows, counts, widths, d, atanh, constant):
    scale = rows_at(at[0], counts[0], widths[0], like)
    c = rows_at(at[1], counts[1], widths[1], like)
    result = rows_at(at[2], rows, 1, like)
    pairs = np.empty((4, CHUNK))
    for r in range(rows):
        result[r, 0] = (
            constant + log_scales(scale, r % scale.shape[0], d) + log_roots(c, r % c.shape[0], d, atanh, pairs)
        )


@compiled
def log_scales(scale, j, d):
    if scale.shape[1] != d:
        return d * np.log(float64(scale[j, 0]))
    negative = 0  # two of them would have a positive product
    for t in range(d):
        negative += scale[j, t] < 0
    return log_product(scale, j, d) if negative == 0 else np.nan


@compiled
def log_roots(c, m, d, atanh, pairs):
    if c.shape[1] == 1:
        return (d - 1) * (np.log(pair_of(c[m, 0], atanh)[2]) - beyond_most(c[m], atanh))
    log = 0.0
    for start in range(0, d - 1, CHUNK):
        stop = min(start + CHUNK, d - 1)
        beyond = _load_squares(c[m, start:stop], atanh, pairs[0])
        log += 0.5 * log_product(pairs, 0, stop - start) - beyond
    return log


@vectorised
def beyond_most(c, atanh):
    r"""By how much the logarithms of :math:`\sqrt{1 - \rho^2}` are below those at :data:`MOST`."""
    total = 0.0
    if atanh:
        for p in range(c.size):
            total += max(abs(float64(c[p])) - MOST, 0.0)
    return total


@vectorised
def _load_squares(c, atanh, squares):
    r""":math:`1 - \rho^2`, none below that at :data:`MOST`; returns what :func:`beyond_most` does."""
    beyond = 0.0
    if atanh:
        for p in range(c.size):
            x = abs(float64(c[p]))
            square, _ = exp(-2 * min(x, MOST))
            squares[p] = 4 * square / ((1 + square) * (1 + square))
            beyond += max(x - MOST, 0.0)
    else:
        for p in range(c.size):
            square = (1 - float64(c[p])) * (1 + float64(c[p]))
            squares[p] = square if square >= 0 else np.nan
    return beyond


@compiled
def _log_det_backward_kernel(like, at, rows, counts, widths, d, atanh, is_constant):
    scale = rows_at(at[0], counts[0], widths[0], like)
    c = rows_at(at[1], counts[1], widths[1], like)
    grad = upstream(at[2], rows, 1, is_constant, like)
    grad_scale = rows_at(at[3], rows, widths[0], like)
    grad_c = rows_at(at[4], rows, widths[1], like)
    for r in range(rows):
        j, g = r % scale.shape[0], float64(grad[r % grad.shape[0], 0])
        by_scale = g if scale.shape[1] > 1 else g * d
        for t in range(scale.shape[1]):
            grad_scale[r, t] = by_scale / scale[j, t]
        log_roots_backward(-g, c, r % c.shape[0], d, atanh, grad_c, r)


@vectorised
def log_roots_backward(grad, c, m, d, atanh, grad_c, r):
    r"""Of :math:`-\tfrac12 \sum_t \log(1 - \rho_t^2)`."""
    if c.shape[1] == 1:
        grad *= d - 1
    for t in range(c.shape[1]):
        rho, square, _, _ = pair_of(c[m, t], atanh)
        grad_c[r, t] = grad * rho if atanh else grad * rho / square
