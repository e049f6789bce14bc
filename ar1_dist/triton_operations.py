"""The operations of :mod:`ar1_dist.kernels` that :mod:`ar1_dist.triton_kernels` computes on CUDA devices."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from ar1_dist import triton_kernels
from ar1_dist.kernels import KernelError, check_widths
from ar1_dist.triton_kernels import available

__all__ = ["available", "colour", "colour_backward", "linear_recurrence", "linear_recurrence_backward"]


def linear_recurrence(coefficient: Tensor, x: Tensor, *, reverse: bool = False) -> tuple[Tensor, ...]:
    check_widths(x.size(-1), pairs=(coefficient,))
    batch_shape, matrices = _matrices(coefficient, x)
    y = _run(triton_kernels.linear_recurrence, *matrices, reverse=reverse).view(batch_shape + x.shape[-1:])
    return y, y


def linear_recurrence_backward(
    needed: Sequence[bool], grad: Tensor, coefficient: Tensor, x: Tensor, y: Tensor, *, reverse: bool = False
) -> tuple[Tensor, ...]:
    grad_x, _ = linear_recurrence(coefficient, grad, reverse=not reverse)
    if not needed[0]:
        return grad_x, grad_x
    products = grad_x[..., :-1] * y[..., 1:] if reverse else y[..., :-1] * grad_x[..., 1:]
    return products.sum_to_size(products.shape[:-1] + coefficient.shape[-1:]), grad_x


def colour(loc: Tensor, scale: Tensor, correlation: Tensor, noise: Tensor, *, atanh: bool) -> tuple[Tensor, ...]:
    check_widths(loc.size(-1), (noise,), (scale,), (correlation,))
    batch_shape, matrices = _matrices(loc, scale, correlation, noise)
    z, u = _run(triton_kernels.chain_forward, *matrices, atanh=atanh)
    return z.view(batch_shape + loc.shape[-1:]), u


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
    batch_shape, (g, s, c, e) = _matrices(grad, scale, correlation, noise)
    *grads, grad_noise = _run(triton_kernels.chain_backward, g, e, u, s, c, atanh=atanh, noise_grad=needed[3])
    grads = [x.view(batch_shape + x.shape[-1:]) for x in grads]
    return grad, *grads, grad if grad_noise is None else grad_noise.view(grad.shape)


def _matrices(*tensors: Tensor) -> tuple[torch.Size, list[Tensor]]:
    """The batch shape that tensors have together, and each with its batch as rows, a copy only where it can't be a
    view."""
    batch_shape = torch.Size(broadcast_shape(*[x.shape[:-1] for x in tensors]))
    rows = math.prod(batch_shape)
    return batch_shape, [x.detach().expand(batch_shape + x.shape[-1:]).reshape(rows, x.shape[-1]) for x in tensors]


def _run(function, *tensors: Tensor, **options):
    try:
        return function(*tensors, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Triton's compiler or of the driver
        raise KernelError(f"Triton can't run {function.__name__}: {str(error) or type(error).__name__}") from error
