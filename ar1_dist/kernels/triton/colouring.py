"""Colouring: :func:`ar1_dist.functional.colour`."""

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
    plan_for,
    rows_and_chunk,
    rows_of,
    run,
    save_map,
    scan,
    unit_stride,
)

__all__ = ["chain_backward", "chain_forward", "colour", "colour_backward"]


def colour(loc: Tensor, scale: Tensor, correlation: Tensor, noise: Tensor, *, atanh: bool) -> Tensors:
    check_widths(loc.size(-1), (noise,), (scale,), (correlation,))
    batch_shape, matrices = as_matrices(loc, scale, correlation, noise)
    z, u = run(chain_forward, *matrices, atanh=atanh)
    return z.view(batch_shape + loc.shape[-1:]), u


def colour_backward(needed: Sequence[bool], grad: Tensor, tensors: Tensors, kept: Tensors, *, atanh: bool) -> Tensors:
    (_, scale, correlation, noise), (u,) = tensors, kept
    batch_shape, (g, s, c, e) = as_matrices(grad, scale, correlation, noise)
    *grads, grad_noise = run(chain_backward, g, e, u, s, c, atanh=atanh, noise_grad=needed[3])
    grads = [x.view(batch_shape + x.shape[-1:]) for x in grads]
    return grad, *grads, grad if grad_noise is None else grad_noise.view(grad.shape)


def chain_forward(
    loc: Tensor,
    scale: Tensor,
    correlation: Tensor,
    noise: Tensor,
    *,
    atanh: bool,
    plan: Plan | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Colour noise: :math:`u_1 = \epsilon_1`, :math:`u_t = \rho_t u_{t-1} + \sqrt{1 - \rho_t^2}\, \epsilon_t` and
    :math:`z_t = \mathrm{loc}_t + \mathrm{scale}_t\, u_t`.

    Args:
        loc (Tensor): of shape ``(p, d)``.
        scale (Tensor): of shape ``(p, d)`` or ``(p, 1)``.
        correlation (Tensor): :math:`\rho` or, with ``atanh``, :math:`\operatorname{artanh} \rho`, of shape ``(p, d -
            1)`` or ``(p, 1)``.
        noise (Tensor): :math:`\epsilon`, of shape ``(n, d)``.
        atanh (bool): which correlation it is.
        plan (Plan): by default :func:`plan_for`.

    Returns:
        tuple: :math:`z` and :math:`u`, which the backward pass needs, of shape ``(n, d)``.
    """
    loc, scale, correlation, noise = map(unit_stride, (loc, scale, correlation, noise))
    z = torch.empty_like(noise, memory_format=torch.contiguous_format)
    u = torch.empty_like(z)
    tensors = (loc, scale, correlation, noise, z, u)
    strides = (*rows_of(loc), *rows_of(scale), *rows_of(correlation), noise.stride(0))
    shared = {"SHARED_SCALE": scale.shape[1] == 1, "SHARED_RHO": correlation.shape[1] == 1}
    launch(_forward_kernel, plan, noise, tensors, strides, ATANH=atanh, **shared)
    return z, u


def chain_backward(
    grad_z: Tensor,
    noise: Tensor,
    u: Tensor,
    scale: Tensor,
    correlation: Tensor,
    *,
    atanh: bool,
    noise_grad: bool = False,
    plan: Plan | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""The gradients of :func:`chain_forward`, but that of ``loc``, which is ``grad_z``. With :math:`\alpha =
    \operatorname{artanh} \rho` and h the adjoint recurrence, :math:`h_t = \mathrm{scale}_t g_t + \rho_{t+1} h_{t+1}`,

    .. math::

        \nabla\mathrm{scale}_t = g_t u_t, \qquad
        \nabla\alpha_t = h_t \operatorname{sech}\alpha_t (u_{t-1} \operatorname{sech}\alpha_t - \rho_t \epsilon_t),
        \qquad \nabla\rho_t = \nabla\alpha_t \cosh^2 \alpha_t, \qquad
        \nabla\epsilon_t = h_t \operatorname{sech}\alpha_t ,

    and :math:`\nabla\epsilon_1 = h_1`.

    Args:
        grad_z (Tensor): g, of shape ``(n, d)``.
        noise, u, scale, correlation, atanh, plan: as in :func:`chain_forward`, u as it returned it.
        noise_grad (bool): return the gradient of the noise, too.

    Returns:
        tuple: the gradients of ``scale`` and of ``correlation``, of their shapes, and that of the noise or None.
    """
    grad_z, noise, u, scale, correlation = map(unit_stride, (grad_z, noise, u, scale, correlation))
    n, d = noise.shape
    plan = plan or plan_for(n, d, noise.dtype, noise.device)
    shared_scale, shared_rho = scale.shape[1] == 1, correlation.shape[1] == 1
    grad_scale = noise.new_empty(n, plan.chunks if shared_scale else d)
    grad_correlation = noise.new_empty(n, plan.chunks if shared_rho else d - 1)
    grad_noise = torch.empty_like(noise, memory_format=torch.contiguous_format) if noise_grad else None
    outputs = (grad_scale, grad_correlation, grad_scale if grad_noise is None else grad_noise)
    tensors = (grad_z, noise, u, scale, correlation, *outputs)
    strides = (grad_z.stride(0), noise.stride(0), u.stride(0), *rows_of(scale), *rows_of(correlation))
    shared = {"SHARED_SCALE": shared_scale, "SHARED_RHO": shared_rho}
    launch(_backward_kernel, plan, noise, tensors, strides, ATANH=atanh, NOISE_GRAD=noise_grad, **shared)
    return _sum_to(grad_scale, scale), _sum_to(grad_correlation, correlation), grad_noise


def _sum_to(grad: Tensor, parameter: Tensor) -> Tensor:
    """Sum the parts of a shared parameter's gradient, one for each chunk, and the rows that share a parameter's row."""
    if grad.shape[1] != parameter.shape[1]:
        grad = grad.sum(1, keepdim=True)
    repeats = grad.shape[0] // max(1, parameter.shape[0])
    return grad if repeats == 1 else grad.view(repeats, *parameter.shape).sum(0)


@triton.jit
def _rho_and_sech(c, ATANH: tl.constexpr):
    """rho and sqrt(1 - rho^2), neither of which may cancel. tanh x is x (1 + x^2/3 ...) near 0, here by the continued
    fraction's seventh convergent, which is exact to float64 below 1/4."""
    if ATANH:
        x = tl.abs(c)
        e = tl.exp(-x)
        sech = 2.0 * e / (1.0 + e * e)
        s = x * x
        near = x * (135135.0 + s * (17325.0 + s * (378.0 + s))) / (135135.0 + s * (62370.0 + s * (3150.0 + s * 28.0)))
        tanh = tl.where(x < 0.25, near, (1.0 - e * e) / (1.0 + e * e))
        rho = tl.where(c < 0.0, -tanh, tanh)
    else:
        rho = c
        sech = tl.sqrt((1.0 - c) * (1.0 + c))
    return rho, sech


@triton.jit
def _load_rho(c_row, rho, sech, pair, live, d, SHARED: tl.constexpr, ATANH: tl.constexpr):
    """rho and sqrt(1 - rho^2) of pairs, 0-based; 0 and 1 where there is no such pair."""
    inside = live[:, None] & (pair >= 0) & (pair < d - 1)
    if SHARED:
        rho = tl.where(inside, rho[:, None], 0.0)
        sech = tl.where(inside, sech[:, None], 1.0)
    else:
        rho, sech = _rho_and_sech(tl.load(c_row[:, None] + pair, mask=inside, other=0.0), ATANH)
    return rho, sech


@triton.jit
def _forward_kernel(
    loc_ptr,
    scale_ptr,
    c_ptr,
    noise_ptr,
    z_ptr,
    u_ptr,
    maps,
    n,
    d,
    loc_rows,
    loc_stride,
    scale_rows,
    scale_stride,
    c_rows,
    c_stride,
    noise_stride,
    chunks,
    blocks,
    SHARED_SCALE: tl.constexpr,
    SHARED_RHO: tl.constexpr,
    ATANH: tl.constexpr,
    COMPOSE: tl.constexpr,
    CHUNKED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    row, chunk = rows_and_chunk(chunks, COMPOSE, ROWS)
    live = row < n
    c_row = c_ptr + (row % c_rows) * c_stride
    scale_row = scale_ptr + (row % scale_rows) * scale_stride
    shared_rho, shared_sech = _rho_and_sech(tl.load(c_row, mask=live & SHARED_RHO, other=0.0), ATANH)
    shared_scale = tl.load(scale_row, mask=live, other=0.0)
    carry = tl.zeros([ROWS], dtype=noise_ptr.dtype.element_ty)
    if CHUNKED and not COMPOSE:
        carry = carried_in(maps, n, row, chunk, chunks, CHUNKS)
    product = tl.full([ROWS], 1.0, dtype=noise_ptr.dtype.element_ty)
    for step in range(blocks):
        t = (chunk * blocks + step) * BLOCK + tl.arange(0, BLOCK)[None, :]
        real = live[:, None] & (t < d)
        rho, sech = _load_rho(c_row, shared_rho, shared_sech, t - 1, live, d, SHARED_RHO, ATANH)
        noise = tl.load(noise_ptr + row[:, None] * noise_stride + t, mask=real, other=0.0)
        a, u = scan(tl.where(real, rho, 1.0), sech * noise, carry)
        carry = last(u, BLOCK)
        if COMPOSE:
            product = product * last(a, BLOCK)
        else:
            loc = tl.load(loc_ptr + (row % loc_rows)[:, None] * loc_stride + t, mask=real, other=0.0)
            if SHARED_SCALE:
                z = loc + shared_scale[:, None] * u
            else:
                z = loc + tl.load(scale_row[:, None] + t, mask=real, other=0.0) * u
            tl.store(z_ptr + row[:, None] * d + t, z, mask=real)
            tl.store(u_ptr + row[:, None] * d + t, u, mask=real)
    if COMPOSE:
        save_map(maps, product, carry, n, row, chunk, chunks)


@triton.jit
def _backward_kernel(
    grad_z_ptr,
    noise_ptr,
    u_ptr,
    scale_ptr,
    c_ptr,
    grad_scale_ptr,
    grad_c_ptr,
    grad_noise_ptr,
    maps,
    n,
    d,
    grad_z_stride,
    noise_stride,
    u_stride,
    scale_rows,
    scale_stride,
    c_rows,
    c_stride,
    chunks,
    blocks,
    SHARED_SCALE: tl.constexpr,
    SHARED_RHO: tl.constexpr,
    ATANH: tl.constexpr,
    NOISE_GRAD: tl.constexpr,
    COMPOSE: tl.constexpr,
    CHUNKED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    row, chunk = rows_and_chunk(chunks, COMPOSE, ROWS)
    live = row < n
    c_row = c_ptr + (row % c_rows) * c_stride
    scale_row = scale_ptr + (row % scale_rows) * scale_stride
    shared_rho, shared_sech = _rho_and_sech(tl.load(c_row, mask=live & SHARED_RHO, other=0.0), ATANH)
    shared_scale = tl.load(scale_row, mask=live, other=0.0)
    carry = tl.zeros([ROWS], dtype=noise_ptr.dtype.element_ty)
    if CHUNKED and not COMPOSE:
        carry = carried_in(maps, n, row, chunk, chunks, CHUNKS)
    product = tl.full([ROWS], 1.0, dtype=noise_ptr.dtype.element_ty)
    grad_scale_sum = tl.zeros([ROWS], dtype=noise_ptr.dtype.element_ty)
    grad_c_sum = tl.zeros([ROWS], dtype=noise_ptr.dtype.element_ty)
    for step in range(blocks):
        i = (chunk * blocks + step) * BLOCK + tl.arange(0, BLOCK)[None, :]
        real = live[:, None] & (i < d)
        t = d - 1 - i
        g = tl.load(grad_z_ptr + row[:, None] * grad_z_stride + t, mask=real, other=0.0)
        if SHARED_SCALE:
            forcing = shared_scale[:, None] * g
        else:
            forcing = tl.load(scale_row[:, None] + t, mask=real, other=0.0) * g
        a, _ = _load_rho(c_row, shared_rho, shared_sech, t, live, d, SHARED_RHO, ATANH)
        a, h = scan(tl.where(real, a, 1.0), forcing, carry)
        carry = last(h, BLOCK)
        if COMPOSE:
            product = product * last(a, BLOCK)
        else:
            later = real & (t > 0)
            noise = tl.load(noise_ptr + row[:, None] * noise_stride + t, mask=real, other=0.0)
            u_row = u_ptr + row[:, None] * u_stride
            u = tl.load(u_row + t, mask=real, other=0.0)
            u_before = tl.load(u_row + t - 1, mask=later, other=0.0)
            rho, sech = _load_rho(c_row, shared_rho, shared_sech, t - 1, live, d, SHARED_RHO, ATANH)
            grad_c = h * sech * (u_before * sech - rho * noise) if ATANH else h * (u_before - rho * noise / sech)
            if SHARED_SCALE:
                grad_scale_sum += tl.sum(g * u, axis=1)
            else:
                tl.store(grad_scale_ptr + row[:, None] * d + t, g * u, mask=real)
            if SHARED_RHO:
                grad_c_sum += tl.sum(tl.where(later, grad_c, 0.0), axis=1)
            else:
                tl.store(grad_c_ptr + row[:, None] * (d - 1) + t - 1, grad_c, mask=later)
            if NOISE_GRAD:
                tl.store(grad_noise_ptr + row[:, None] * d + t, h * sech, mask=real)
    if COMPOSE:
        save_map(maps, product, carry, n, row, chunk, chunks)
    else:
        if SHARED_SCALE:
            tl.store(grad_scale_ptr + row * chunks + chunk, grad_scale_sum, mask=live)
        if SHARED_RHO:
            tl.store(grad_c_ptr + row * chunks + chunk, grad_c_sum, mask=live)
