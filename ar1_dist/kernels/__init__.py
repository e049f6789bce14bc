r"""What computes: compiled kernels where they apply, plain torch everywhere else.

Every operation has a formula in plain torch, which serves all devices, types and transformations and is differentiable
to any order. Kernels of the same name give its value and its gradient faster, in float32 and float64:
:mod:`ar1_dist.kernels.numba` on a CPU, :mod:`ar1_dist.kernels.triton` on a CUDA device.
"""

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

__all__ = [
    "KernelError",
    "Tensors",
    "check_size",
    "check_widths",
    "has_values",
    "is_transformed",
    "set_kernels",
    "with_kernels",
]

Tensors = tuple[Tensor, ...]

_MODULES = {name: f"{__name__}.{name}" for name in ("numba", "triton")}
_choice = "auto"
_failed: set[str] = set()


class KernelError(RuntimeError):
    """Kernels can't be loaded or compiled."""


def set_kernels(choice: str) -> str:
    """Choose what computes, for the whole process.

    Example:

        >>> set_kernels("torch")
        'auto'
        >>> set_kernels("auto")
        'torch'

    Args:
        choice (str): ``"auto"``, the default: kernels where they apply and compile, else plain torch. ``"torch"``:
            plain torch alone. ``"numba"`` or ``"triton"``: one kind of kernels wherever they apply, and a
            :class:`KernelError` where they don't compile. In Triton's interpreter its kernels apply on a CPU.

    Returns:
        str: the choice before.

    Raises:
        ValueError: if it is none of these.
    """
    global _choice
    if choice not in ("auto", "torch", *_MODULES):
        raise ValueError(f"choice must be 'auto', 'torch', 'numba' or 'triton'; got {choice!r}.")
    _choice, previous = choice, _choice
    _failed.clear()
    return previous


def with_kernels(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let kernels compute an operation on tensors and its first derivative.

    A module of kernels has a function of the operation's name that takes what it does, ``(*tensors, **options)``, and
    returns a tuple of the value and of what the gradient needs; and one with ``_backward`` after it that takes
    ``(needed, grad, tensors, kept, **options)`` and returns the gradients, one that isn't needed being anything. They
    need not be summed over the dimensions along which a tensor was broadcast.
    """

    name = plain.__name__

    @functools.wraps(plain)
    def operation(*tensors: Tensor, **options: Any) -> Tensor:
        kernels = _kernels_for(tensors)
        compute = None if kernels is None else getattr(kernels, name, None)
        if kernels is None or compute is None:
            return plain(*tensors, **options)
        try:
            if torch.is_grad_enabled():
                for x in tensors:  # a generator would take a tenth of a small kernel's time
                    if x.requires_grad:
                        call = plain, kernels, compute, options
                        return cast(Tensor, _WithKernels.apply(call, *map(_savable, tensors)))
            return compute(*tensors, **options)[0]
        except KernelError as error:
            _give_up(kernels.__name__, error)
            return plain(*tensors, **options)

    return operation


def _savable(x: Tensor) -> Tensor:
    """What was made in inference mode can be in a graph, but not be saved for its backward pass."""
    return x.clone() if x.is_inference() else x


class _WithKernels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *tensors):
        ctx.call = call
        _, _, compute, options = call
        value, *kept = compute(*tensors, **options)
        ctx.save_for_backward(*tensors, *kept)
        return value

    @staticmethod
    def backward(ctx, grad):
        plain, kernels, _, options = ctx.call
        needed, saved = ctx.needs_input_grad[1:], ctx.saved_tensors
        tensors, kept = saved[: len(needed)], saved[len(needed) :]
        grads = None
        # A derivative that is itself to be differentiated, or mapped over, is the formula's.
        if not torch.is_grad_enabled() and _kernels_for((grad,)) is kernels:
            try:
                grads = getattr(kernels, f"{plain.__name__}_backward")(needed, grad, tensors, kept, **options)
            except KernelError as error:
                _give_up(kernels.__name__, error)
        if grads is None:
            grads = _plain_backward(plain, options, needed, grad, tensors)
        return None, *map(_reduce, needed, grads, tensors)


def _reduce(needed: bool, grad: Tensor, x: Tensor) -> Tensor | None:
    if not needed:
        return None
    return grad if grad.shape == x.shape else grad.sum_to_size(x.shape)


def _plain_backward(
    plain: Callable[..., Tensor],
    options: dict[str, Any],
    needed: Sequence[bool],
    grad: Tensor,
    tensors: Sequence[Tensor],
) -> list[Tensor | None]:
    with torch.enable_grad():
        # Views, since one tensor may be a function of another.
        views = [x.view_as(x) for x in tensors]
        value = plain(*views, **options)
    if not value.requires_grad:  # with d = 1 a correlation takes no part
        return [torch.zeros_like(x) for x in tensors]
    wanted = [x for x, n in zip(views, needed, strict=True) if n]
    create_graph = torch.is_grad_enabled()
    grads = iter(torch.autograd.grad(value, wanted, grad, create_graph=create_graph, materialize_grads=True))
    return [next(grads) if n else None for n in needed]


def has_values() -> bool:
    """Whether Python may branch on what tensors hold, as checks of values do: not in a compiler."""
    return not torch.compiler.is_compiling()


def is_transformed() -> bool:
    """Whether operations are recorded or transformed: by a compiler or a tracer, by torch.func, by forward-mode
    differentiation, or by a mode that is to see torch's own operations."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _kernels_for(tensors: Sequence[Tensor]) -> ModuleType | None:
    """The kernels that serve all of these tensors."""
    if is_transformed() or _choice == "torch":
        return None
    first = tensors[0]
    dtype, on_cpu = first.dtype, first.is_cpu
    if dtype is not torch.float32 and dtype is not torch.float64:
        return None
    for x in tensors:
        if (
            x.dtype is not dtype
            or x.is_cpu is not on_cpu
            or (not on_cpu and x.device != first.device)
            or x.layout is not torch.strided
            or x.is_neg()
            or x._is_zerotensor()  # which has no memory
            # Subclasses, and what torch.autograd's own vmap makes, want torch's operations.
            or (type(x) is not Tensor and type(x) is not torch.nn.Parameter)
            or is_legacy_batchedtensor(x)
        ):
            return None
    if _choice != "auto":
        name = _choice
    elif on_cpu:
        name = "numba"
    elif first.is_cuda:
        name = "triton"
    else:
        return None
    kernels = _load(name)
    return kernels if kernels is not None and kernels.available(first.device) else None


@functools.cache
def _import(name: str) -> ModuleType | KernelError:
    try:
        return importlib.import_module(_MODULES[name])
    except Exception as error:  # whatever a broken compiler raises
        return KernelError(f"{name} can't be loaded: {str(error) or type(error).__name__}")


def _load(name: str) -> ModuleType | None:
    if _MODULES[name] in _failed:
        return None
    kernels = _import(name)
    if isinstance(kernels, KernelError):
        _give_up(_MODULES[name], kernels)
        return None
    return kernels


def _give_up(name: str, error: KernelError) -> None:
    """Go on without these kernels, more slowly."""
    if _choice != "auto":
        raise error
    _failed.add(name)
    warnings.warn(f"ar1_dist computes by plain torch, more slowly: {error}", RuntimeWarning, stacklevel=4)


def check_size(d: int) -> None:
    """See that a chain has a coordinate, on every path: there is no event of size 0."""
    if d < 1:
        raise ValueError(f"The last dimension, a chain's coordinates, must be at least 1; got {d}.")


def check_widths(
    d: int, vectors: tuple[Tensor, ...] = (), scales: tuple[Tensor, ...] = (), pairs: tuple[Tensor, ...] = ()
) -> None:
    """See that tensors have the last dimensions of a chain's parameters: a kernel would read beyond one that is too
    small."""
    check_size(d)
    for tensors, widths in ((vectors, (d,)), (scales, (1, d)), (pairs, (1, d - 1))):
        for x in tensors:
            if x.size(-1) not in widths:
                allowed = " or ".join(map(str, widths))
                raise ValueError(f"The last dimension must be {allowed}; got a tensor of shape {tuple(x.shape)}.")
