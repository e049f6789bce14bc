"""Tensors as rows in memory, and the call of a kernel on them."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from ar1_dist.kernels import KernelError
from ar1_dist.kernels.numba.compilation import leave_cache

__all__ = ["Rows", "as_rows"]


class Rows:
    """Tensors that broadcast but for the last dimension, as contiguous rows of which those of the batch are
    repetitions.

    Attributes:
        batch_shape (tuple of int): that they have together.
    """

    __slots__ = ("_counts", "_size", "_tensors", "_widths", "batch_shape")

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
            self._counts, self._widths = tuple([x.size(0) for x in rows]), tuple([x.size(1) for x in rows])
            return
        self.batch_shape = tuple(broadcast_shape(*[x.shape[:-1] for x in tensors]))
        self._size = math.prod(self.batch_shape)
        self._tensors = tuple([_repeating(x, self.batch_shape) for x in tensors])
        self._counts = tuple([math.prod(x.shape[:-1]) for x in self._tensors])
        self._widths = tuple([x.size(-1) for x in self._tensors])

    def empty_like(self, x: Tensor) -> Tensor:
        """As many rows as the batch has, of the width of x."""
        if x.shape[:-1] == self.batch_shape and x.is_contiguous():
            return torch.empty_like(x)
        return x.new_empty((*self.batch_shape, x.size(-1)))

    def run(self, kernel: Callable[..., None], others: tuple[Tensor, ...], *options: float) -> None:
        """Call a kernel with the addresses of all tensors, since making arrays takes longer than a small kernel."""
        addresses = tuple([x.data_ptr() for x in self._tensors + others])
        arguments = _LIKE[self._tensors[0].dtype], addresses, self._size, self._counts, self._widths, *options
        try:
            kernel(*arguments)
        except Exception:  # in compiling it, or in keeping it on disk: it raises nothing itself
            try:
                kernel(*arguments)  # in case another process, which compiled it too, was in the way
            except Exception as error:
                _run_without_cache(kernel, arguments, error)


def _run_without_cache(kernel: Callable[..., None], arguments: tuple[Any, ...], reason: Exception) -> None:
    folder = leave_cache()
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


def as_rows(grad: Tensor) -> tuple[Tensor, bool]:
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
