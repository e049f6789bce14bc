"""What a chain's parameters may be: their types, their shapes, and numbers in the place of tensors."""

import functools
import numbers
from typing import Any

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from ar1_dist.functional import is_floating
from ar1_dist.hyperparameters import advice, warn_of_plate_as_coordinates
from ar1_dist.kernels import has_values

__all__ = [
    "as_parameter",
    "as_tensors",
    "at_least_1d",
    "broadcast",
    "check_type",
    "check_types",
    "describe",
    "event_size",
    "infer_shapes",
    "warn_of_plate",
]


def check_type(value: Tensor) -> None:
    """Raise unless value is of real numbers."""
    if value.is_complex() or value.dtype == torch.bool or (value.is_floating_point() and not is_floating(value)):
        raise ValueError(f"The value must be of real numbers; got {value.dtype} of shape {tuple(value.shape)}.")


def infer_shapes(shapes: dict[str, torch.Size]) -> tuple[torch.Size, torch.Size]:
    """The batch and the event shape that parameters of these shapes have together.

    Args:
        shapes (dict): from ``"loc"``, ``"scale"`` and ``"rho"`` or ``"atanh_rho"`` to shapes.

    Raises:
        ValueError: if they don't fit.
    """
    loc_shape = shapes["loc"]
    if len(loc_shape) < 1 or loc_shape[-1] < 1:
        raise ValueError(f"loc must have shape (..., d) with d at least 1; got shape {tuple(loc_shape)}.")
    d = loc_shape[-1]
    batch_shapes = [loc_shape[:-1]]
    for name, shape in shapes.items():
        full = d if name in ("loc", "scale") else d - 1
        if len(shape) > 0 and shape[-1] not in (1, full):
            raise ValueError(
                f"{name} must be a number or a tensor whose last dimension is 1 or {full}, for loc of shape "
                f"{tuple(loc_shape)}; got shape {tuple(shape)}. {advice(name)}"
            )
        batch_shapes.append(shape[:-1])
    if all(shape == batch_shapes[0] for shape in batch_shapes):
        return batch_shapes[0], loc_shape[-1:]
    try:
        return torch.Size(broadcast_shape(*batch_shapes)), loc_shape[-1:]
    except ValueError:
        described = ", ".join(f"{name} of shape {tuple(shape)}" for name, shape in shapes.items())
        batches = [name for name, shape in shapes.items() if name != "loc" and len(shape) > 1]
        advised = "".join(f" {advice(name)}" for name in batches)
        raise ValueError(f"Leading dimensions must broadcast; got {described}.{advised}") from None


def check_types(parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        wanted = "a floating-point tensor" if name == "loc" else "a floating-point tensor or a real number"
        if isinstance(value, Tensor):
            if not is_floating(value):
                raise ValueError(f"{name} must be {wanted}; got {value.dtype} of shape {tuple(value.shape)}.")
        elif name == "loc" or isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be {wanted}; got {value!r}.")


def as_tensors(parameters: dict[str, Any]) -> list[Tensor]:
    """Tensors of one dtype on loc's device; numbers become tensors of shape (1,)."""
    # As everywhere in torch, numbers and 0-d tensors don't take part in promotion.
    dtypes = [value.dtype for value in parameters.values() if isinstance(value, Tensor) and value.dim() > 0]
    dtype, device = functools.reduce(torch.promote_types, dtypes), parameters["loc"].device
    return [_as_tensor(value, dtype, device) for value in parameters.values()]


def _as_tensor(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.full((1,), float(value), dtype=dtype, device=device)
    if value.dim() == 0:
        return value.to(device, dtype)
    return value if value.dtype == dtype else value.to(dtype)


def at_least_1d(x: Tensor) -> Tensor:
    return x if x.dim() > 0 else x.unsqueeze(0)


def event_size(loc: Tensor) -> int:
    if not isinstance(loc, Tensor) or not is_floating(loc) or loc.dim() < 1 or loc.shape[-1] < 1:
        raise ValueError(
            f"loc must be a floating-point tensor of shape (..., d) with d at least 1; got {describe(loc)}."
        )
    return loc.shape[-1]


def as_parameter(name: str, value: Tensor | float, loc: Tensor, size: int) -> Tensor:
    """value, of shape ``(..., 1)`` or ``(..., size)``. As everywhere in torch, numbers and 0-d tensors don't take part
    in promotion, and go to loc's device."""
    dtype = loc.dtype
    if isinstance(value, Tensor):
        fits = is_floating(value) and (value.dim() == 0 or value.shape[-1] in (1, size))
        if fits and value.dim() > 0:
            dtype = torch.promote_types(dtype, value.dtype)
    else:
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not fits:
        sizes = "1" if size == 1 else f"1 or {size}"
        raise ValueError(
            f"{name} must be a real number or a floating-point tensor whose last dimension is {sizes}, for loc of "
            f"shape {tuple(loc.shape)}; got {describe(value)}."
            + (f" {advice(name)}" if isinstance(value, Tensor) and is_floating(value) else "")
        )
    warn_of_plate(name, value)
    return at_least_1d(_as_tensor(value, dtype, loc.device))


def warn_of_plate(name: str, value: Tensor | float) -> None:
    if isinstance(value, Tensor) and has_values():
        warn_of_plate_as_coordinates(**{name: value})


def broadcast(batch_shape: torch.Size | None = None, **shapes: torch.Size) -> torch.Size:
    try:
        return torch.Size(broadcast_shape(batch_shape or (), *shapes.values()))
    except ValueError:
        described = ", ".join(f"{tuple(shape)} of {name}" for name, shape in shapes.items())
        described += "" if batch_shape is None else f" and batch_shape {tuple(batch_shape)}"
        raise ValueError(f"Leading dimensions must broadcast; got {described}.") from None


def describe(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
