r"""The recurrence and the chain's two passes as Triton kernels, for CUDA devices.

Plain functions on detached tensors, without autograd: :mod:`ar1_dist.kernels` differentiates. Every tensor is a
matrix whose rows are separate problems; a parameter with fewer rows than the noise serves row r by its row ``r %
rows``, and one that is equal along the row has one column.

Each step :math:`y_t = a_t\, y_{t-1} + x_t` is an affine map, and maps compose associatively,

.. math:: (a, x) \circ (b, y) = (a b,\; b x + y) ,

so that a program scans a tile of rows × places at once and carries the last value to the row's next tile. Places
beyond the end are the identity (1, 0), and the first one has coefficient 0, so that whatever is carried into it is
forgotten.

One program for a tile of rows moves each number once, but a few long rows can't occupy a GPU. They are cut into
chunks, in two passes (reduce, then scan: D. Merrill, M. Garland, *Single-pass parallel prefix scan with decoupled
look-back*, 2016, section 2): the first composes each chunk into one map; the second composes the maps of all chunks
before its own, at most a thousand, to have what is carried in, and scans. In numbers read and written per place, where
a parameter that is equal along the row costs nothing:

======================  ==================================  ============  ===================
function                reads + writes                      one pass      chunked
======================  ==================================  ============  ===================
linear_recurrence       x + y                               2             3
\                       coefficient, x + y                  3             5
chain_forward           loc, noise + z, u                   4             5
chain_backward          grad_z, noise, u                    3             4
======================  ==================================  ============  ===================

A scale per place adds one read (two to a chunked backward) and, backward, one write; a correlation per pair one read
(two where chunked) and, backward, one write; the noise's gradient one write. The second pass visits the chunks in the
opposite order of the first, so that the numbers that were read last come from the GPU's cache. There are no atomic
operations: results don't change from run to run.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Plan", "available", "chain_backward", "chain_forward", "linear_recurrence", "plan_for"]

_WARPS = 4
_TILE_BYTES = 8192  # 16 float32 for each thread
_MAX_CHUNKS = 1024  # of a row: every program of the second pass composes the maps of those before its own


def available(device: torch.device) -> bool:
    """Whether the kernels run on tensors of this device: a CUDA device of compute capability 7 or more for which
    Triton can build its launcher (that takes a C compiler), or, where TRITON_INTERPRET=1 was set before Triton was
    imported, the CPU. Where Triton is missing, importing this module raises an ImportError."""
    if not isinstance(_recurrence_kernel, triton.JITFunction):
        return device.type == "cpu"
    if device.type != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0) and _can_build()


@functools.cache
def _can_build() -> bool:
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception:  # of any kind: a missing compiler, header or library
        return False
    return True


class Plan(NamedTuple):
    """How the work is cut: tiles of ``rows`` × ``block`` places, powers of two, and ``chunks`` programs per row."""

    rows: int
    block: int
    chunks: int = 1


def plan_for(rows: int, d: int, dtype: torch.dtype, device: torch.device) -> Plan:
    """Chunks where there are fewer than two programs for each of the GPU's multiprocessors, and rows that are long
    enough to be worth a second launch."""
    tile = _TILE_BYTES // dtype.itemsize
    block = min(max(16, triton.next_power_of_2(d)), tile)
    height = max(1, min(tile // 2, 1024) // block)
    programs, blocks = triton.cdiv(rows, height), triton.cdiv(d, block)
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    if blocks < 16 or programs >= 2 * processors:
        return Plan(height, block)
    chunks = min(blocks, triton.cdiv(32 * processors, programs), _MAX_CHUNKS)
    return Plan(height, block, triton.cdiv(blocks, triton.cdiv(blocks, chunks)))


def linear_recurrence(coefficient: Tensor, x: Tensor, *, reverse: bool = False, plan: Plan | None = None) -> Tensor:
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
    coefficient, x = _unit_stride(coefficient), _unit_stride(x)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    tensors = (coefficient, x, y)
    strides = (*_rows_of(coefficient), x.stride(0))
    _launch(_recurrence_kernel, plan, x, tensors, strides, SHARED=coefficient.shape[1] == 1, REVERSE=reverse)
    return y


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
    loc, scale, correlation, noise = map(_unit_stride, (loc, scale, correlation, noise))
    z = torch.empty_like(noise, memory_format=torch.contiguous_format)
    u = torch.empty_like(z)
    tensors = (loc, scale, correlation, noise, z, u)
    strides = (*_rows_of(loc), *_rows_of(scale), *_rows_of(correlation), noise.stride(0))
    shared = {"SHARED_SCALE": scale.shape[1] == 1, "SHARED_RHO": correlation.shape[1] == 1}
    _launch(_forward_kernel, plan, noise, tensors, strides, ATANH=atanh, **shared)
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
    grad_z, noise, u, scale, correlation = map(_unit_stride, (grad_z, noise, u, scale, correlation))
    n, d = noise.shape
    plan = plan or plan_for(n, d, noise.dtype, noise.device)
    shared_scale, shared_rho = scale.shape[1] == 1, correlation.shape[1] == 1
    grad_scale = noise.new_empty(n, plan.chunks if shared_scale else d)
    grad_correlation = noise.new_empty(n, plan.chunks if shared_rho else d - 1)
    grad_noise = torch.empty_like(noise, memory_format=torch.contiguous_format) if noise_grad else None
    outputs = (grad_scale, grad_correlation, grad_scale if grad_noise is None else grad_noise)
    tensors = (grad_z, noise, u, scale, correlation, *outputs)
    strides = (grad_z.stride(0), noise.stride(0), u.stride(0), *_rows_of(scale), *_rows_of(correlation))
    shared = {"SHARED_SCALE": shared_scale, "SHARED_RHO": shared_rho}
    _launch(_backward_kernel, plan, noise, tensors, strides, ATANH=atanh, NOISE_GRAD=noise_grad, **shared)
    return _sum_to(grad_scale, scale), _sum_to(grad_correlation, correlation), grad_noise


def _unit_stride(x: Tensor) -> Tensor:
    """x, copied only if neighbours in a row aren't neighbours in memory. Rows may be any distance apart, also 0."""
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def _rows_of(parameter: Tensor) -> tuple[int, int]:
    return max(1, parameter.shape[0]), parameter.stride(0)


def _sum_to(grad: Tensor, parameter: Tensor) -> Tensor:
    """Sum the parts of a shared parameter's gradient, one for each chunk, and the rows that share a parameter's row."""
    if grad.shape[1] != parameter.shape[1]:
        grad = grad.sum(1, keepdim=True)
    repeats = grad.shape[0] // max(1, parameter.shape[0])
    return grad if repeats == 1 else grad.view(repeats, *parameter.shape).sum(0)


def _launch(
    kernel: triton.JITFunction,
    plan: Plan | None,
    like: Tensor,
    tensors: tuple[Tensor, ...],
    strides: tuple[int, ...],
    **constants: bool,
) -> None:
    """Run one pass, or two where rows are cut into chunks; ``like`` has the shape, the dtype and the device."""
    n, d = like.shape
    if n == 0 or d == 0:
        return
    height, block, chunks = plan or plan_for(n, d, like.dtype, like.device)
    tiles = triton.cdiv(n, height)
    blocks = triton.cdiv(triton.cdiv(d, block), chunks)  # of a chunk
    maps = like.new_empty(2, n, chunks) if chunks > 1 else like
    arguments = (*tensors, maps, n, d, *strides, chunks, blocks)
    # At least one map for each thread, so that no two threads hold the same one.
    sizes = {"ROWS": height, "BLOCK": block, "CHUNKS": max(32 * _WARPS, triton.next_power_of_2(chunks))}
    with torch.cuda.device_of(like):
        if chunks > 1:
            grid = (tiles * (chunks - 1),)
            kernel[grid](*arguments, COMPOSE=True, CHUNKED=True, **sizes, **constants, num_warps=_WARPS)
        grid = (tiles * chunks,)
        kernel[grid](*arguments, COMPOSE=False, CHUNKED=chunks > 1, **sizes, **constants, num_warps=_WARPS)


# --- Inside the kernels. Rows are int64, so that no offset overflows; places in a row are int32. ---
#
# A recurrence in reverse reads places from the last to the first and scans forwards. The scan's own flag for that flips
# all numbers between threads, before and after: compiled by Triton 3.8 it is 25 shuffles a place, against 14 so, and 5
# forwards where rows are aligned.


@triton.jit
def _compose(a, x, b, y):
    return a * b, b * x + y


@triton.jit
def _rows_and_chunk(chunks, COMPOSE: tl.constexpr, ROWS: tl.constexpr):
    """The program's rows, and its chunk in running order. The first pass leaves the last chunk out, whose map nothing
    needs; the second goes the other way round."""
    if COMPOSE:
        program = tl.program_id(0)
        width = chunks - 1
    else:
        program = tl.num_programs(0) - 1 - tl.program_id(0)
        width = chunks
    row = (program // width).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return row, program % width


@triton.jit
def _scan(a, x, carry):
    """The composed coefficients, and the values with the carried one taken in."""
    a, y = tl.associative_scan((a, x), 1, _compose)
    return a, y + a * carry[:, None]


@triton.jit
def _last(y, BLOCK: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, BLOCK)[None, :] == BLOCK - 1, y, 0.0), axis=1)


@triton.jit
def _save_map(maps, a, x, n, row, chunk, chunks):
    at = maps + row * chunks + chunk
    tl.store(at, a, mask=row < n)
    tl.store(at + n * chunks, x, mask=row < n)


@triton.jit
def _carried_in(maps, n, row, chunk, chunks, CHUNKS: tl.constexpr):
    """What the chunks before this one make of 0."""
    k = tl.arange(0, CHUNKS)[None, :]
    before = (row < n)[:, None] & (k < chunk)
    at = maps + row[:, None] * chunks + k
    a = tl.load(at, mask=before, other=1.0)
    x = tl.load(at + n * chunks, mask=before, other=0.0)
    a, x = tl.associative_scan((a, x), 1, _compose)
    return _last(x, CHUNKS)


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
    row, chunk = _rows_and_chunk(chunks, COMPOSE, ROWS)
    live = row < n
    a_row = a_ptr + (row % a_rows) * a_stride
    if SHARED:
        shared = tl.load(a_row, mask=live, other=0.0)
    carry = tl.zeros([ROWS], dtype=x_ptr.dtype.element_ty)
    if CHUNKED and not COMPOSE:
        carry = _carried_in(maps, n, row, chunk, chunks, CHUNKS)
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
        a, y = _scan(a, x, carry)
        carry = _last(y, BLOCK)
        if COMPOSE:
            product = product * _last(a, BLOCK)
        else:
            tl.store(y_ptr + row[:, None] * d + t, y, mask=real)
    if COMPOSE:
        _save_map(maps, product, carry, n, row, chunk, chunks)


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
    row, chunk = _rows_and_chunk(chunks, COMPOSE, ROWS)
    live = row < n
    c_row = c_ptr + (row % c_rows) * c_stride
    scale_row = scale_ptr + (row % scale_rows) * scale_stride
    shared_rho, shared_sech = _rho_and_sech(tl.load(c_row, mask=live & SHARED_RHO, other=0.0), ATANH)
    shared_scale = tl.load(scale_row, mask=live, other=0.0)
    carry = tl.zeros([ROWS], dtype=noise_ptr.dtype.element_ty)
    if CHUNKED and not COMPOSE:
        carry = _carried_in(maps, n, row, chunk, chunks, CHUNKS)
    product = tl.full([ROWS], 1.0, dtype=noise_ptr.dtype.element_ty)
    for step in range(blocks):
        t = (chunk * blocks + step) * BLOCK + tl.arange(0, BLOCK)[None, :]
        real = live[:, None] & (t < d)
        rho, sech = _load_rho(c_row, shared_rho, shared_sech, t - 1, live, d, SHARED_RHO, ATANH)
        noise = tl.load(noise_ptr + row[:, None] * noise_stride + t, mask=real, other=0.0)
        a, u = _scan(tl.where(real, rho, 1.0), sech * noise, carry)
        carry = _last(u, BLOCK)
        if COMPOSE:
            product = product * _last(a, BLOCK)
        else:
            loc = tl.load(loc_ptr + (row % loc_rows)[:, None] * loc_stride + t, mask=real, other=0.0)
            if SHARED_SCALE:
                z = loc + shared_scale[:, None] * u
            else:
                z = loc + tl.load(scale_row[:, None] + t, mask=real, other=0.0) * u
            tl.store(z_ptr + row[:, None] * d + t, z, mask=real)
            tl.store(u_ptr + row[:, None] * d + t, u, mask=real)
    if COMPOSE:
        _save_map(maps, product, carry, n, row, chunk, chunks)


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
    row, chunk = _rows_and_chunk(chunks, COMPOSE, ROWS)
    live = row < n
    c_row = c_ptr + (row % c_rows) * c_stride
    scale_row = scale_ptr + (row % scale_rows) * scale_stride
    shared_rho, shared_sech = _rho_and_sech(tl.load(c_row, mask=live & SHARED_RHO, other=0.0), ATANH)
    shared_scale = tl.load(scale_row, mask=live, other=0.0)
    carry = tl.zeros([ROWS], dtype=noise_ptr.dtype.element_ty)
    if CHUNKED and not COMPOSE:
        carry = _carried_in(maps, n, row, chunk, chunks, CHUNKS)
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
        a, h = _scan(tl.where(real, a, 1.0), forcing, carry)
        carry = _last(h, BLOCK)
        if COMPOSE:
            product = product * _last(a, BLOCK)
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
        _save_map(maps, product, carry, n, row, chunk, chunks)
    else:
        if SHARED_SCALE:
            tl.store(grad_scale_ptr + row * chunks + chunk, grad_scale_sum, mask=live)
        if SHARED_RHO:
            tl.store(grad_c_ptr + row * chunks + chunk, grad_c_sum, mask=live)
