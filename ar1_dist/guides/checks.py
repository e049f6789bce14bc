"""What the guides check alike."""

import math
from typing import Any

import pyro
import torch
from pyro.nn.module import PyroModule
from torch import Tensor

__all__ = ["check_init_scale", "check_store", "layout_of", "store_name"]


def check_init_scale(init_scale: float) -> None:
    if not isinstance(init_scale, float) or not 0 < init_scale < math.inf:
        raise ValueError(f"init_scale must be a positive, finite float; got {init_scale!r}.")


def store_name(guide: PyroModule, name: str) -> str:
    """The name in Pyro's parameter store of the parameter that has this name in the module."""
    return ".".join(part for part in (guide._pyro_name, name.removesuffix("_unconstrained")) if part)


def check_store(guide: PyroModule) -> None:
    """Raise if Pyro's parameter store, whose values a module takes over in silence, has others than were loaded."""
    stored = dict(pyro.get_param_store().named_parameters())  # not constrained, as the module's
    for name, loaded in guide.named_parameters():
        key = store_name(guide, name)
        if key in stored and not _equal(stored[key], loaded):
            raise ValueError(
                f"Pyro's parameter store already holds another value of {key!r} than was loaded into "
                f"{type(guide).__name__}. Call pyro.clear_param_store() before the guide's first call."
            )


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.equal(x.to(y), y)


def layout_of(value: Any) -> Any:
    """What of a call's arguments the shapes of a model's sites depend on, as a rule: shapes, and what is no float."""
    if isinstance(value, dict):
        return tuple((name, layout_of(item)) for name, item in value.items())
    if isinstance(value, tuple | list):
        return tuple(map(layout_of, value))
    if hasattr(value, "shape"):
        return tuple(value.shape)
    return value if isinstance(value, int | str | None) else type(value)
