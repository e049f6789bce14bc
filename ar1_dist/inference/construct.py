r"""Chains from other parametrisations than scale and correlation."""

import math
import warnings

import torch
from torch import Tensor

from ar1_dist.functional import is_floating, join, widen
from ar1_dist.inference.chain import of_size
from ar1_dist.kernels import is_transformed
from ar1_dist.parameters import as_parameter, broadcast, describe, event_size
from ar1_dist.recurrence import linear_recurrence
from ar1_dist.validation import refuse_nan, require

__all__ = ["from_times", "from_transitions"]


def from_times(times: Tensor, loc: Tensor, timescale: Tensor | float, *, validate_args: bool) -> Tensor:
    r"""The ``atanh_rho`` of :meth:`AR1Normal.from_times <ar1_dist.AR1Normal.from_times>`, of shape ``(..., d - 1)``,
    :math:`-\tfrac12 \log \tanh(D_t/2\,\mathrm{timescale}) = \tfrac12 \log\big(1 + 2\rho_t/(1 - \rho_t)\big)` with
    :math:`D_t = \mathrm{time}_t - \mathrm{time}_{t-1}` and :math:`\rho_t = e^{-D_t/\mathrm{timescale}}`."""
    d = event_size(loc)
    is_time = isinstance(times, Tensor) and not times.is_complex() and times.dtype != torch.bool
    if not is_time or times.shape[-1:] != (d,) or (times.is_floating_point() and not is_floating(times)):
        raise ValueError(f"times must be a tensor of numbers of shape (..., {d}), as loc has; got {describe(times)}.")
    unit = as_parameter("timescale", timescale, loc, d - 1)
    broadcast(loc=loc.shape[:-1], times=times.shape[:-1], timescale=unit.shape[:-1])
    # In times' own type, which may be a wider one than loc's, or in int64: a narrow or unsigned integer wraps around.
    gap = (widen(times) if times.is_floating_point() else times.long()).diff(dim=-1)
    _check_gaps(times, gap)
    if validate_args:
        require("times", times, "be finite", times.isfinite())
        require("timescale", unit, "be finite and positive", unit.isfinite(), unit > 0)
    wide = widen(unit)
    ratio = gap.to(wide.device, wide.dtype) / of_size(wide, d - 1)
    atanh_rho = 0.5 * (-2 * (-ratio).exp() / torch.expm1(-ratio)).log1p()
    refuse_nan("The chain", atanh_rho, times=times, timescale=unit)
    return atanh_rho.to(unit.dtype)


def from_transitions(
    loc: Tensor,
    coefficient: Tensor | float,
    noise_scale: Tensor | float,
    initial_scale: Tensor | float,
    *,
    validate_args: bool,
) -> tuple[Tensor, Tensor]:
    r"""The ``scale``, of shape ``(..., d)``, and the ``atanh_rho``, of shape ``(..., d - 1)``, of
    :meth:`AR1Normal.from_transitions <ar1_dist.AR1Normal.from_transitions>`: the roots of :math:`v_t = c_t^2 v_{t-1} +
    n_t^2`, and :math:`\operatorname{arsinh}(c_t \sqrt{v_{t-1}}/n_t)`."""
    d = event_size(loc)
    c = as_parameter("coefficient", coefficient, loc, d - 1)
    n = as_parameter("noise_scale", noise_scale, loc, d - 1)
    initial = as_parameter("initial_scale", initial_scale, loc, 1)
    broadcast(loc=loc.shape[:-1], coefficient=c.shape[:-1], noise_scale=n.shape[:-1], initial_scale=initial.shape[:-1])
    if validate_args:
        require("coefficient", c, "be finite", c.isfinite())
        require("noise_scale", n, "be finite and positive", n.isfinite(), n > 0)
        require("initial_scale", initial, "be finite and positive", initial.isfinite(), initial > 0)
    dtype = torch.promote_types(c.dtype, torch.promote_types(n.dtype, initial.dtype))
    c, n, initial = of_size(widen(c), d - 1), of_size(widen(n), d - 1).abs(), widen(initial)
    variance = linear_recurrence(c.square(), join(initial.square(), n.square()))
    scale = join(initial.abs(), variance[..., 1:].sqrt())  # whose gradient is a number at an initial scale of 0 too
    atanh_rho = (c * scale[..., :-1] / n).asinh()
    refuse_nan("The chain", scale, atanh_rho, coefficient=c, noise_scale=n, initial_scale=initial)
    return scale.to(dtype), atanh_rho.to(dtype)


def _check_gaps(times: Tensor, gap: Tensor) -> None:
    """Checked always, like shapes: of times that are rounded to one another every result would be another one's."""
    if is_transformed() or times.is_meta or gap.numel() == 0:
        return
    is_floating_times = times.is_floating_point()
    advice = "give integers or subtract the first time" + (
        ", or torch.float64" if is_floating_times and times.dtype != torch.float64 else ""
    )
    if not torch._is_all_true(gap > 0) and not times.isnan().any():
        kind = "are equal" if torch._is_all_true(gap >= 0) else "decrease"
        rounded = f"; large ones, such as Unix seconds in float32, are rounded to each other: {advice}"
        raise ValueError(
            f"times must increase along the last dimension; in this tensor of {times.dtype} and shape "
            f"{tuple(times.shape)} some {kind}. Readings of one time are one coordinate with a conjugate_update for "
            f"each{rounded if is_floating_times else ''}."
        )
    if not is_floating_times:
        return
    finite = torch.where(times.detach().isfinite(), times.detach(), 0.0).double()
    largest, least = finite.abs().max().item(), gap.min().item()
    spacing = torch.finfo(times.dtype).eps * 2.0 ** (math.frexp(largest)[1] - 1)
    # Below the numbers that are further than 1 apart, multiples of twice the spacing are most likely not rounded.
    if spacing > 0.1 * least and (spacing > 1 or (finite % (2 * spacing)).any()):
        warnings.warn(
            f"The times, of {times.dtype}, are up to {largest:.6g}, where numbers lie {spacing:.2g} apart, but differ "
            f"by as little as {least:.2g}: {advice}.",
            stacklevel=4,
        )
