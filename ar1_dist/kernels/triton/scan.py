r"""How the kernels scan rows, and their launch.

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
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from ar1_dist.kernels import KernelError

__all__ = [
    "Plan",
    "as_matrices",
    "available",
    "carried_in",
    "last",
    "launch",
    "plan_for",
    "rows_and_chunk",
    "rows_of",
    "run",
    "save_map",
    "scan",
    "unit_stride",
]

_WARPS = 4
_TILE_BYTES = 8192  # 16 float32 for each thread
_MAX_CHUNKS = 1024  # of a row: every program of the second pass composes the maps of those before its own


def available(device: torch.device) -> bool:
    """Whether the kernels run on tensors of this device: a CUDA device of compute capability 7 or more for which
    Triton can build its launcher (that takes a C compiler), or, where TRITON_INTERPRET=1 was set before Triton was
    imported, the CPU. Where Triton is missing, importing this module raises an ImportError."""
    if not isinstance(_compose, triton.JITFunction):
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


def as_matrices(*tensors: Tensor) -> tuple[torch.Size, list[Tensor]]:
    """The batch shape that tensors have together, and each with its batch as rows, a copy only where it can't be a
    view."""
    batch_shape = torch.Size(broadcast_shape(*[x.shape[:-1] for x in tensors]))
    rows = math.prod(batch_shape)
    return batch_shape, [x.detach().expand(batch_shape + x.shape[-1:]).reshape(rows, x.shape[-1]) for x in tensors]


def run(function, *tensors: Tensor, **options):
    try:
        return function(*tensors, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Triton's compiler or of the driver
        raise KernelError(f"Triton can't run {function.__name__}: {str(error) or type(error).__name__}") from error


def unit_stride(x: Tensor) -> Tensor:
    """x, copied only if neighbours in a row aren't neighbours in memory. Rows may be any distance apart, also 0."""
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def rows_of(parameter: Tensor) -> tuple[int, int]:
    return max(1, parameter.shape[0]), parameter.stride(0)


def launch(
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
def rows_and_chunk(chunks, COMPOSE: tl.constexpr, ROWS: tl.constexpr):
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
def scan(a, x, carry):
    """The composed coefficients, and the values with the carried one taken in."""
    a, y = tl.associative_scan((a, x), 1, _compose)
    return a, y + a * carry[:, None]


@triton.jit
def last(y, BLOCK: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, BLOCK)[None, :] == BLOCK - 1, y, 0.0), axis=1)


@triton.jit
def save_map(maps, a, x, n, row, chunk, chunks):
    at = maps + row * chunks + chunk
    tl.store(at, a, mask=row < n)
    tl.store(at + n * chunks, x, mask=row < n)


@triton.jit
def carried_in(maps, n, row, chunk, chunks, CHUNKS: tl.constexpr):
    """What the chunks before this one make of 0."""
    k = tl.arange(0, CHUNKS)[None, :]
    before = (row < n)[:, None] & (k < chunk)
    at = maps + row[:, None] * chunks + k
    a = tl.load(at, mask=before, other=1.0)
    x = tl.load(at + n * chunks, mask=before, other=0.0)
    a, x = tl.associative_scan((a, x), 1, _compose)
    return last(x, CHUNKS)
