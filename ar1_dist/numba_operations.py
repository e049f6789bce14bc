r"""The operations of :mod:`ar1_dist.kernels` that :mod:`ar1_dist.numba_kernels` computes on a CPU."""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numba.core.compiler_lock import global_compiler_lock
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from ar1_dist import numba_kernels
from ar1_dist.kernels import KernelError, check_widths

# A child that is forked while another thread compiles would find the compiler locked for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


def available(device: torch.device) -> bool:
    """Whether these operations compute on the device."""
    return device.type == "cpu"


def linear_recurrence(coefficient: Tensor, x: Tensor, *, reverse: bool = False) -> tuple[Tensor, ...]:
    d = x.size(-1)
    check_widths(d, pairs=(coefficient,))
    rows = _Rows(coefficient, x)
    y = rows.empty_like(x)
    rows.run(numba_kernels.recur, (y,), d, coefficient.size(-1), reverse)
    return y, y


def linear_recurrence_backward(
    needed: Sequence[bool], grad: Tensor, coefficient: Tensor, x: Tensor, y: Tensor, *, reverse: bool = False
) -> tuple[Tensor, ...]:
    grad_x, _ = linear_recurrence(coefficient, grad, reverse=not reverse)
    if not needed[0]:
        return grad_x, grad_x
    rows = _Rows(y, grad_x)
    grad_coefficient = rows.empty_like(coefficient)
    rows.run(numba_kernels.recur_backward, (grad_coefficient,), y.size(-1), coefficient.size(-1), reverse)
    return grad_coefficient, grad_x


def moebius_recurrence(transmission: Tensor, saturation: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    d = x.size(-1)
    check_widths(d, pairs=(transmission, saturation))
    rows = _Rows(transmission, saturation, x)
    y = rows.empty_like(x)
    rows.run(numba_kernels.moebius, (y,), d, transmission.size(-1), saturation.size(-1))
    return y, y


def moebius_recurrence_backward(
    needed: Sequence[bool], grad: Tensor, transmission: Tensor, saturation: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, ...]:
    rows = _Rows(grad, transmission, saturation, y)
    grads = tuple(map(rows.empty_like, (transmission, saturation, x)))
    rows.run(numba_kernels.moebius_backward, grads, y.size(-1), transmission.size(-1), saturation.size(-1))
    return grads


def colour(loc: Tensor, scale: Tensor, correlation: Tensor, noise: Tensor, *, atanh: bool) -> tuple[Tensor, ...]:
    d = loc.size(-1)
    check_widths(d, (noise,), (scale,), (correlation,))
    rows = _Rows(loc, scale, correlation, noise)
    z, u = rows.empty_like(loc), rows.empty_like(loc)
    rows.run(numba_kernels.colour, (z, u), d, scale.size(-1), correlation.size(-1), atanh)
    return z, u


def colour_backward(
    needed: Sequence[bool],
    grad: Tensor,
    loc: Tensor,
    scale: Tensor,
    correlation: Tensor,
    noise: Tensor,
    u: Tensor,
    *,
    atanh: bool,
) -> tuple[Tensor, ...]:
    rows = _Rows(u, scale, correlation, noise)
    given, is_constant = _as_rows(grad)
    grad_noise = rows.empty_like(u) if needed[3] else given  # which is not written to then
    grads = rows.empty_like(scale), rows.empty_like(correlation), grad_noise
    options = u.size(-1), scale.size(-1), correlation.size(-1), atanh, is_constant, needed[3]
    rows.run(numba_kernels.colour_backward, (given, *grads), *options)
    return grad, *grads


def log_prob(value: Tensor, loc: Tensor, scale: Tensor, correlation: Tensor, *, atanh: bool) -> tuple[Tensor, ...]:
    return _log_prob(value, loc, scale, correlation, atanh, is_noise=False)


def log_prob_backward(
    needed: Sequence[bool],
    grad: Tensor,
    value: Tensor,
    loc: Tensor,
    scale: Tensor,
    correlation: Tensor,
    *,
    atanh: bool,
) -> tuple[Tensor, ...]:
    return _log_prob_backward(needed, grad, value, loc, scale, correlation, atanh, is_noise=False)


def log_prob_of_draw(
    value: Tensor, loc: Tensor, scale: Tensor, correlation: Tensor, noise: Tensor, *, atanh: bool
) -> tuple[Tensor, ...]:
    check_widths(loc.size(-1), (value,))
    return _log_prob(noise, loc, scale, correlation, atanh, is_noise=True)


def log_prob_of_draw_backward(
    needed: Sequence[bool],
    grad: Tensor,
    value: Tensor,
    loc: Tensor,
    scale: Tensor,
    correlation: Tensor,
    noise: Tensor,
    *,
    atanh: bool,
) -> tuple[Tensor, ...]:
    grads = _log_prob_backward(needed, grad, noise, loc, scale, correlation, atanh, is_noise=True)
    return *grads, torch.zeros_like(noise) if needed[4] else noise


def _log_prob(
    value: Tensor, loc: Tensor, scale: Tensor, correlation: Tensor, atanh: bool, is_noise: bool
) -> tuple[Tensor, ...]:
    d = loc.size(-1)
    check_widths(d, (value,), (scale,), (correlation,))
    rows = _Rows(value, loc, scale, correlation)
    result = loc.new_empty(rows.batch_shape)
    rows.run(numba_kernels.log_prob, (result,), d, scale.size(-1), correlation.size(-1), atanh, is_noise)
    return (result,)


def _log_prob_backward(
    needed: Sequence[bool],
    grad: Tensor,
    value: Tensor,
    loc: Tensor,
    scale: Tensor,
    correlation: Tensor,
    atanh: bool,
    is_noise: bool,
) -> tuple[Tensor, ...]:
    rows = _Rows(value, loc, scale, correlation)
    grads = tuple(map(rows.empty_like, (loc, scale, correlation)))
    given, is_constant = _as_rows(grad)
    options = loc.size(-1), scale.size(-1), correlation.size(-1), atanh, is_noise, is_constant
    rows.run(numba_kernels.log_prob_backward, (given, *grads), *options)
    return (-grads[0] if needed[0] else grads[0]), *grads


def log_det(scale: Tensor, correlation: Tensor, *, d: int, atanh: bool, constant: float = 0.0) -> tuple[Tensor, ...]:
    check_widths(d, (), (scale,), (correlation,))
    rows = _Rows(scale, correlation)
    result = scale.new_empty(rows.batch_shape)
    rows.run(numba_kernels.log_det, (result,), d, scale.size(-1), correlation.size(-1), atanh, constant)
    return (result,)


def log_det_backward(
    needed: Sequence[bool],
    grad: Tensor,
    scale: Tensor,
    correlation: Tensor,
    *,
    d: int,
    atanh: bool,
    constant: float = 0.0,
) -> tuple[Tensor, ...]:
    rows = _Rows(scale, correlation)
    grads = rows.empty_like(scale), rows.empty_like(correlation)
    given, is_constant = _as_rows(grad)
    options = d, scale.size(-1), correlation.size(-1), atanh, is_constant
    rows.run(numba_kernels.log_det_backward, (given, *grads), *options)
    return grads


def kl_to_normal(
    loc: Tensor, scale: Tensor, correlation: Tensor, p_loc: Tensor, p_scale: Tensor, *, atanh: bool
) -> tuple[Tensor, ...]:
    d = loc.size(-1)
    check_widths(d, (p_loc, p_scale), (scale,), (correlation,))
    rows = _Rows(loc, scale, correlation, p_loc, p_scale)
    result = loc.new_empty(rows.batch_shape)
    rows.run(numba_kernels.kl_to_normal, (result,), d, scale.size(-1), correlation.size(-1), atanh)
    return (result,)


def kl_to_normal_backward(
    needed: Sequence[bool],
    grad: Tensor,
    loc: Tensor,
    scale: Tensor,
    correlation: Tensor,
    p_loc: Tensor,
    p_scale: Tensor,
    *,
    atanh: bool,
) -> tuple[Tensor, ...]:
    rows = _Rows(loc, scale, correlation, p_loc, p_scale)
    grads = tuple(map(rows.empty_like, (loc, scale, correlation)))
    given, is_constant = _as_rows(grad)
    grad_p_scale = rows.empty_like(loc) if needed[4] else given  # which is not written to then
    options = loc.size(-1), scale.size(-1), correlation.size(-1), atanh, is_constant, needed[4]
    rows.run(numba_kernels.kl_to_normal_backward, (given, *grads, grad_p_scale), *options)
    return *grads, (-grads[0] if needed[3] else grads[0]), grad_p_scale


class _Rows:
    """Tensors that broadcast but for the last dimension, as contiguous rows of which those of the batch are
    repetitions.

    Attributes:
        batch_shape (tuple of int): that they have together.
    """

    __slots__ = ("_counts", "_size", "_tensors", "batch_shape")

    def __init__(self, *tensors: Tensor) -> None:
        count = tensors[0].size(0) if tensors[0].dim() == 2 else -1
        rows = []
        for x in tensors:
            if x.dim() != 2 or x.size(0) != count:
                break
            if not x.is_contiguous():
                x = _repeating(x, (count,))
            rows.append(x)
        else:  # the usual case, in less time than a small kernel takes
            self.batch_shape: tuple[int, ...] = (count,)
            self._size, self._tensors = count, tuple(rows)
            self._counts = tuple([x.size(0) for x in rows])
            return
        self.batch_shape = tuple(broadcast_shape(*[x.shape[:-1] for x in tensors]))
        self._size = math.prod(self.batch_shape)
        self._tensors = tuple([_repeating(x, self.batch_shape) for x in tensors])
        self._counts = tuple([math.prod(x.shape[:-1]) for x in self._tensors])

    def empty_like(self, x: Tensor) -> Tensor:
        """As many rows as the batch has, of the width of x."""
        if x.shape[:-1] == self.batch_shape and x.is_contiguous():
            return torch.empty_like(x)
        return x.new_empty((*self.batch_shape, x.size(-1)))

    def run(self, kernel: Callable[..., None], others: tuple[Tensor, ...], *options: float) -> None:
        """Call a kernel with the addresses of all tensors, since making arrays takes longer than a small kernel."""
        addresses = tuple([x.data_ptr() for x in self._tensors + others])
        arguments = _LIKE[self._tensors[0].dtype], addresses, self._size, self._counts, *options
        try:
            kernel(*arguments)
        except Exception:  # in compiling it, or in keeping it on disk: it raises nothing itself
            try:
                kernel(*arguments)  # in case another process, which compiled it too, was in the way
            except Exception as error:
                _run_without_cache(kernel, arguments, error)


def _run_without_cache(kernel: Callable[..., None], arguments: tuple[Any, ...], reason: Exception) -> None:
    folder = numba_kernels.leave_cache()
    try:
        kernel(*arguments)
    except Exception as error:
        raise KernelError(f"numba can't compile {kernel.__name__}: {str(error) or type(error).__name__}") from error
    if folder:
        warnings.warn(
            f"The cache of compiled kernels in {folder} can't be used ({type(reason).__name__}: {reason}), and each "
            "process compiles them anew. Delete that folder, or make room on its disk.",
            RuntimeWarning,
            stacklevel=6,
        )


def _as_rows(grad: Tensor) -> tuple[Tensor, bool]:
    """A gradient as contiguous rows; or, where it is one expanded number, as that of a sum is, without copying it."""
    if grad.is_contiguous():
        return grad, False
    is_constant = not any(grad.stride())
    return (grad if is_constant else grad.contiguous()), is_constant


def _repeating(x: Tensor, batch_shape: tuple[int, ...]) -> Tensor:
    for dim, stride in enumerate(x.stride()[:-1]):
        if stride == 0:
            x = x.narrow(dim, 0, min(x.shape[dim], 1))
    shape = x.shape[:-1]
    while shape and shape[0] == 1:
        shape = shape[1:]
    if shape != batch_shape[len(batch_shape) - len(shape) :]:
        x = x.expand(batch_shape + x.shape[-1:])
    return x.contiguous()


_LIKE = {torch.float32: np.empty(0, np.float32), torch.float64: np.empty(0, np.float64)}
