"""The linear recurrence of :mod:`ar1_dist.recurrence`."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ar1_dist.kernels import Tensors, check_widths
from ar1_dist.kernels.triton.scan import (
    Plan,
    as_matrices,
    carried_in,
    last,
    launch,
    rows_and_chunk,
    rows_of,
    run,
    save_map,
    scan,
    unit_stride,
)

__all__ = ["linear_recurrence", "linear_recurrence_backward", "recurrence_of_rows"]


def linear_recurrence(coefficient: Tensor, x: Tensor, *, reverse: bool = False) -> Tensors:
    check_widths(x.size(-1), pairs=(coefficient,))
    batch_shape, matrices = as_matrices(coefficient, x)
    y = run(recurrence_of_rows, *matrices, reverse=reverse).view(batch_shape + x.shape[-1:])
    return y, y


def linear_recurrence_backward(
    needed: Sequence[bool], grad: Tensor, tensors: Tensors, kept: Tensors, *, reverse: bool = False
) -> Tensors:
    (coefficient, _), (y,) = tensors, kept
    grad_x, _ = linear_recurrence(coefficient, grad, reverse=not reverse)
    if not needed[0]:
        return grad_x, grad_x
    products = grad_x[..., :-1] * y[..., 1:] if reverse else y[..., :-1] * grad_x[..., 1:]
    return products.sum_to_size(products.shape[:-1] + coefficient.shape[-1:]), grad_x


def recurrence_of_rows(coefficient: Tensor, x: Tensor, *, reverse: bool = False, plan: Plan | None = None) -> Tensor:
    r"""Solve :math:`y_1 = x_1`, :math:`y_t = a_t\, y_{t-1} + x_t`; with ``reverse``, its transpose :math:`y_d = x_d`,
    :math:`y_t = a_{t+1}\, y_{t+1} + x_t`.

    Args:
        coefficient (Tensor): :math:`a_2, \dots, a_d`, of shape ``(p, d - 1)`` or ``(p, 1)``.
        x (Tensor): of shape ``(n, d)``.
        reverse (bool): run from the last place to the first.
        plan (Plan): by default :func:`plan_for`.

    Returns:
        Tensor: :math:`y`, of shape ``(n, d)``.
    """
    coefficient, x = unit_stride(coefficient), unit_stride(x)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    tensors = (coefficient, x, y)
    strides = (*rows_of(coefficient), x.stride(0))
    launch(_recurrence_kernel, plan, x, tensors, strides, SHARED=coefficient.shape[1] == 1, REVERSE=reverse)
    return y


@triton.jit
def _recurrence_kernel(
    a_ptr,
    x_ptr,
    y_ptr,
    maps,
    n,
    d,
    a_rows,
    a_stride,
    x_stride,
    chunks,
    blocks,
    SHARED: tl.constexpr,
    REVERSE: tl.constexpr,
    COMPOSE: tl.constexpr,
    CHUNKED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    row, chunk = rows_and_chunk(chunks, COMPOSE, ROWS)
    live = row < n
    a_row = a_ptr + (row % a_rows) * a_stride
    if SHARED:
        shared = tl.load(a_row, mask=live, other=0.0)
    carry = tl.zeros([ROWS], dtype=x_ptr.dtype.element_ty)
    if CHUNKED and not COMPOSE:
        carry = carried_in(maps, n, row, chunk, chunks, CHUNKS)
    product = tl.full([ROWS], 1.0, dtype=x_ptr.dtype.element_ty)
    for step in range(blocks):
        i = (chunk * blocks + step) * BLOCK + tl.arange(0, BLOCK)[None, :]
        real = live[:, None] & (i < d)
        t = d - 1 - i if REVERSE else i
        pair = t if REVERSE else t - 1  # of place t and the one that comes before it in running order
        inside = real & (pair >= 0) & (pair < d - 1)
        a = tl.where(inside, shared[:, None], 0.0) if SHARED else tl.load(a_row[:, None] + pair, mask=inside, other=0.0)
        a = tl.where(real, a, 1.0)
        x = tl.load(x_ptr + row[:, None] * x_stride + t, mask=real, other=0.0)
        a, y = scan(a, x, carry)
        carry = last(y, BLOCK)
        if COMPOSE:
            product = product * last(a, BLOCK)
        else:
            tl.store(y_ptr + row[:, None] * d + t, y, mask=real)
    if COMPOSE:
        save_map(maps, product, carry, n, row, chunk, chunks)
