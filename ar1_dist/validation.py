"""Errors at values that a parameter can't have, and in the place of a NaN that nobody put in."""

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ar1_dist.kernels import is_transformed

__all__ = ["or_limit", "refuse_nan", "require"]


def require(name: str, value: Tensor, wanted: str, *conditions: Tensor) -> None:
    """Raise unless all conditions on a parameter's values hold everywhere."""
    if not all(torch._is_all_true(condition) for condition in conditions):
        raise ValueError(f"{name} must {wanted}; got a tensor of shape {tuple(value.shape)}:\n{value}")


def refuse_nan(what: str, *results: Tensor, **given: Tensor) -> None:
    r"""Raise if a result is NaN though nothing that was given is: a scale of 0 or infinity and a correlation of
    :math:`\pm 1` have limits, but not in everything. It does not depend on ``validate_args``, and looks at the results
    first, which are small.

    Example:

        >>> refuse_nan("The evidence", torch.tensor(math.nan), scale=torch.tensor([1.0, math.inf]))
        Traceback (most recent call last):
            ...
        ValueError: The evidence is not defined here: scale is infinite at place 1.

    Args:
        what (str): what the results are.
        results (Tensor): what was computed.
        given (Tensor): of what, by name; a name that ends in ``scale`` is a standard deviation.

    Raises:
        ValueError: naming the parameters that are at an edge of their meaning, and where.

    Note:
        While operations are recorded or transformed nothing branches on values, and NaN comes through.
    """
    if not any(map(_has_nan, results)) or any(map(_has_nan, given.values())):
        return
    edges = "; ".join(edge for name, value in given.items() for edge in _edges(name, value))
    dtype = str(results[0].dtype).removeprefix("torch.")
    raise ValueError(f"{what} is not defined here: {edges or f'numbers leave the range of {dtype}'}.")


def or_limit(
    what: str, result: Tensor, limit: Callable[[], Tensor | float], validate_args: bool, **given: Tensor
) -> Tensor:
    """The result of a density, where it is NaN though nothing that was given is: an error as of :func:`refuse_nan`, or
    without validation the limit, as a sampler needs it that tries extreme parameters.

    Example:

        >>> or_limit("log_prob", torch.tensor(math.nan), lambda: -math.inf, False, value=torch.tensor([math.inf]))
        tensor(-inf)

    Args:
        what (str): what the result is.
        result (Tensor): of the batch shape.
        limit (Callable): what takes the place of NaN, if it is needed.
        validate_args (bool): whether to raise.
        given (Tensor): of what, by name, of shapes ``(..., d)`` whose leading dimensions broadcast to the result's.

    Note:
        Without validation it looks on a CPU only: elsewhere a look costs a synchronisation.
    """
    if not (validate_args or result.is_cpu) or not _has_nan(result):
        return result
    if validate_args:
        refuse_nan(what, result, **given)
    from_nan = functools.reduce(torch.logical_or, [x.isnan().any(-1) for x in given.values()])
    return torch.where(result.isnan() & ~from_nan, limit(), result)


def _has_nan(x: Tensor) -> bool:
    return not is_transformed() and not x.is_meta and bool(x.isnan().any())


def _edges(name: str, value: Tensor) -> Iterator[str]:
    """What is at an edge, and at the first of which places."""
    is_scale = name.endswith("scale")
    for condition, edge in (
        (value == 0 if is_scale else None, "is 0 at place {}"),
        (value < 0 if is_scale else None, "is negative at place {}"),
        (
            value.abs() == 1 if name.endswith("rho") and not name.endswith("atanh_rho") else None,
            "is 1 or -1 at place {}",
        ),
        (value.abs() == math.inf, "is infinite at place {}"),
    ):
        if condition is not None and condition.any():
            yield f"{name} {edge.format(condition.nonzero()[0].tolist()[-1] if value.dim() else 0)}"
