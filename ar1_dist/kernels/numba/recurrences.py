r"""The recurrences of :mod:`ar1_dist.recurrence`."""

from collections.abc import Sequence

from numpy import float64
from torch import Tensor

from ar1_dist.kernels import Tensors, check_widths
from ar1_dist.kernels.numba.arithmetic import add_product, rows_at
from ar1_dist.kernels.numba.compilation import compiled, vectorised
from ar1_dist.kernels.numba.rows import Rows

__all__ = ["linear_recurrence", "linear_recurrence_backward", "moebius_recurrence", "moebius_recurrence_backward"]


def linear_recurrence(coefficient: Tensor, x: Tensor, *, reverse: bool = False) -> Tensors:
    check_widths(x.size(-1), pairs=(coefficient,))
    rows = Rows(coefficient, x)
    y = rows.empty_like(x)
    rows.run(_recur_kernel, (y,), reverse)
    return y, y


def linear_recurrence_backward(
    needed: Sequence[bool], grad: Tensor, tensors: Tensors, kept: Tensors, *, reverse: bool = False
) -> Tensors:
    (coefficient, _), (y,) = tensors, kept
    grad_x, _ = linear_recurrence(coefficient, grad, reverse=not reverse)
    if not needed[0]:
        return grad_x, grad_x
    rows = Rows(y, grad_x)
    grad_coefficient = rows.empty_like(coefficient)
    rows.run(_recur_backward_kernel, (grad_coefficient,), coefficient.size(-1), reverse)
    return grad_coefficient, grad_x


def moebius_recurrence(transmission: Tensor, saturation: Tensor, x: Tensor) -> Tensors:
    check_widths(x.size(-1), pairs=(transmission, saturation))
    rows = Rows(transmission, saturation, x)
    y = rows.empty_like(x)
    rows.run(_moebius_kernel, (y,))
    return y, y


def moebius_recurrence_backward(needed: Sequence[bool], grad: Tensor, tensors: Tensors, kept: Tensors) -> Tensors:
    (transmission, saturation, x), (y,) = tensors, kept
    rows = Rows(grad, transmission, saturation, y)
    grads = tuple(map(rows.empty_like, (transmission, saturation, x)))
    rows.run(_moebius_backward_kernel, grads)
    return grads


@compiled
def _recur_kernel(like, at, rows, counts, widths, reverse):
    a = rows_at(at[0], counts[0], widths[0], like)
    x = rows_at(at[1], counts[1], widths[1], like)
    d = widths[1]
    y = rows_at(at[2], rows, d, like)
    first, step = (d - 1, -1) if reverse else (0, 1)
    a_step = step if a.shape[1] > 1 else 0
    a_first = a.shape[1] - 1 if reverse else 0
    for r in range(rows):
        i, j = r % a.shape[0], r % x.shape[0]
        state = float64(x[j, first])
        y[r, first] = state
        for t in range(1, d):
            state = add_product(float64(x[j, first + t * step]), a[i, a_first + (t - 1) * a_step], state)
            y[r, first + t * step] = state


@vectorised
def _recur_backward_kernel(like, at, rows, counts, widths, a_width, reverse):
    y = rows_at(at[0], counts[0], widths[0], like)
    grad_x = rows_at(at[1], counts[1], widths[1], like)
    grad_a = rows_at(at[2], rows, a_width, like)
    ahead, behind = (1, 0) if reverse else (0, 1)
    for r in range(rows):
        total = 0.0
        for t in range(widths[0] - 1):
            product = float64(y[r, t + ahead]) * float64(grad_x[r, t + behind])
            total += product
            if grad_a.shape[1] != 1:
                grad_a[r, t] = product
        if grad_a.shape[1] == 1:
            grad_a[r, 0] = total


@compiled
def _moebius_kernel(like, at, rows, counts, widths):
    a = rows_at(at[0], counts[0], widths[0], like)
    c = rows_at(at[1], counts[1], widths[1], like)
    x = rows_at(at[2], counts[2], widths[2], like)
    d = widths[2]
    y = rows_at(at[3], rows, d, like)
    a_step, c_step = min(a.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    for r in range(rows):
        i, j, k = r % a.shape[0], r % c.shape[0], r % x.shape[0]
        state = float64(x[k, 0])
        y[r, 0] = state
        for t in range(1, d):
            p = t - 1
            state = x[k, t] + a[i, p * a_step] * state / (1 + c[j, p * c_step] * state)
            y[r, t] = state


@compiled
def _moebius_backward_kernel(like, at, rows, counts, widths):
    """The adjoint has the coefficient a/(1 + c y)^2."""
    grad = rows_at(at[0], counts[0], widths[0], like)
    a = rows_at(at[1], counts[1], widths[1], like)
    c = rows_at(at[2], counts[2], widths[2], like)
    y = rows_at(at[3], counts[3], widths[3], like)
    d = widths[3]
    grad_a = rows_at(at[4], rows, widths[1], like)
    grad_c = rows_at(at[5], rows, widths[2], like)
    grad_x = rows_at(at[6], rows, d, like)
    a_step, c_step = min(a.shape[1] - 1, 1), min(c.shape[1] - 1, 1)
    for r in range(rows):
        i, j, k, m = r % a.shape[0], r % c.shape[0], r % y.shape[0], r % grad.shape[0]
        h = total_a = total_c = 0.0
        for q in range(d - 1):
            p = d - 2 - q
            h += grad[m, p + 1]
            grad_x[r, p + 1] = h
            shrink = 1 / (1 + float64(c[j, p * c_step]) * y[k, p])
            passed = a[i, p * a_step] * shrink
            by_a = h * shrink * y[k, p]
            by_c = -by_a * passed * y[k, p]
            total_a += by_a
            total_c += by_c
            if a_step:
                grad_a[r, p] = by_a
            if c_step:
                grad_c[r, p] = by_c
            h *= passed * shrink
        grad_x[r, 0] = h + grad[m, 0]
        if a.shape[1] == 1:
            grad_a[r, 0] = total_a
        if c.shape[1] == 1:
            grad_c[r, 0] = total_c
