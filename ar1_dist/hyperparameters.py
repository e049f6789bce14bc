"""Parameters that a Pyro model draws: one number for each particle, or for each element of a plate."""

import warnings
from collections.abc import Sequence
from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

__all__ = ["advice", "warn_of_plate_as_coordinates"]


def advice(name: str) -> str:
    """How a batch of numbers becomes a parameter: all coordinates, which are last, share each."""
    return f"If {name} is one number for each element of a plate or for each particle, give {name}.unsqueeze(-1)."


def warn_of_plate_as_coordinates(**parameters: Tensor) -> None:
    """Warn of a parameter that has the very shape of a scalar site that was drawn in a plate which still is open, such
    as that of vectorised particles: its last dimension counts coordinates, and that site's a plate.

    Example:

        >>> import pyro, torch
        >>> with pyro.poutine.trace(), pyro.plate("series", 3), warnings.catch_warnings(record=True) as caught:
        ...     tau = pyro.sample("tau", pyro.distributions.HalfNormal(1.0))
        ...     warn_of_plate_as_coordinates(scale=tau)
        >>> print(caught[0].message)
        The last dimension of scale, of shape (3,), counts coordinates, and that of site 'tau', of the same shape, the \
elements of plate 'series'. If scale is one number for each element of a plate or for each particle, give \
scale.unsqueeze(-1).

    Args:
        parameters (Tensor): by name.
    """
    if not _PYRO_STACK:
        return
    is_open = {each.name for each in _PYRO_STACK if isinstance(each, IndepMessenger)}
    traces = [each.trace for each in _PYRO_STACK if isinstance(each, TraceMessenger)] if is_open else []
    sites: list[Any] = [site for trace in traces for site in trace.nodes.values() if _is_scalar(site)]
    for name, value in parameters.items():
        for site in sites:
            if site["value"].shape == value.shape:
                for plate in _plates_along(value, site["cond_indep_stack"]) & is_open:
                    warnings.warn(
                        f"The last dimension of {name}, of shape {tuple(value.shape)}, counts coordinates, and that of "
                        f"site {site['name']!r}, of the same shape, the elements of plate {plate!r}. {advice(name)}",
                        stacklevel=4,
                    )


def _is_scalar(site: Any) -> bool:
    """Whether it is a sample site without event dimensions, and no plate's own."""
    is_drawn = site["type"] == "sample" and isinstance(site["fn"], TorchDistributionMixin)
    return is_drawn and not site["fn"].event_dim and site["value"].dim() > 0


def _plates_along(value: Tensor, frames: Sequence[Any]) -> set[str]:
    """The names of the plates that are dimensions of value, of more than one element."""
    dims = {frame.name: frame.dim for frame in frames if frame.vectorized}
    return {name for name, dim in dims.items() if value.dim() >= -dim and value.shape[dim] > 1}
