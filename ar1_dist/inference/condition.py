r"""Some of a chain's coordinates: without the others, and given the others."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ar1_dist.functional import is_floating, widen
from ar1_dist.inference.chain import Chain, of_size, sech_squared
from ar1_dist.parameters import describe
from ar1_dist.recurrence import linear_recurrence
from ar1_dist.validation import require

__all__ = ["Index", "condition", "marginal"]

Index = Sequence[int] | Sequence[bool] | Tensor | slice
_SEQUENCES = (list, tuple)  # as a union, torch 2.9's compiler doesn't know it


def marginal(q: Chain, index: Index) -> Chain:
    r"""See :meth:`AR1Normal.marginal <ar1_dist.AR1Normal.marginal>`. Over a gap :math:`i < t \le j` of the index,

    .. math:: \operatorname{artanh} \prod_t \rho_t = \operatorname{arsinh}\Big(\prod_t \rho_t \Big/ \sqrt{S_j}\Big),
        \qquad S_t = c_t^2 + \rho_t^2 S_{t-1}, \quad S_i = 0,

    where :math:`S_j = 1 - \prod_t \rho_t^2` is a sum of positive terms. Both recurrences start anew after each
    coordinate of the index, by a coefficient of zero.
    """
    d = q.loc.shape[-1]
    kept = _positions(index, d, q.loc.device)
    n = kept.numel()
    if n == 0:
        raise ValueError("index must name at least one coordinate; an AR1Normal has no event of size 0.")
    if n == d:
        return q
    atanh_rho = of_size(widen(q.atanh_rho), d - 1)
    rho = atanh_rho.tanh()
    is_first = _mask(kept, d)[:-1]  # of the pairs of its gap
    coefficient = torch.where(is_first, 0.0, rho)
    product = linear_recurrence(coefficient, pad(torch.where(is_first, rho, 0.0), (1, 0)))
    variance = linear_recurrence(coefficient.square(), pad(sech_squared(atanh_rho), (1, 0)))
    before, after = kept[:-1], kept[1:]
    over_gap = (product[..., after] / variance[..., after].sqrt()).asinh()
    over_gap = torch.where(after - before == 1, atanh_rho[..., after - 1], over_gap)  # what is kept is kept exactly
    scale = q.scale if q.scale.shape[-1] == 1 else q.scale[..., kept]
    return Chain(q.loc[..., kept], scale, over_gap.to(q.atanh_rho.dtype))


def condition(q: Chain, index: Index, value: Tensor, *, validate_args: bool) -> Chain:
    r"""See :meth:`AR1Normal.condition <ar1_dist.AR1Normal.condition>`. It is a Kalman filter without noise, and the
    smoother. Given what is observed up to t, :math:`u_t` has mean :math:`m_t` and variance :math:`P_t`, where

    .. math:: m_t = \rho_t m_{t-1}, \qquad P_t = E_{t-1} = c_t^2 + \rho_t^2 P_{t-1} ,

    unless it is observed itself: then :math:`P_t = 0`. Given the next coordinate too,

    .. math:: u_t \mid u_{t+1} \sim \mathcal{N}\Big(\frac{\rho_{t+1} P_t}{E_t}\, u_{t+1} + \frac{c_{t+1}^2}{E_t}
        \, m_t,\ \frac{c_{t+1}^2}{E_t}\, P_t\Big) ,

    with slope and variance zero where t is observed: what lies before it and what lies after it are independent.
    """
    d = q.loc.shape[-1]
    observed = _positions(index, d, q.loc.device)
    n = observed.numel()
    if not isinstance(value, Tensor) or not is_floating(value) or value.shape[-1:] != (n,):
        raise ValueError(
            f"value must be a floating-point tensor of shape (..., {n}), one number for each coordinate of index; "
            f"got {describe(value)}."
        )
    if n == d:
        raise ValueError(
            f"index must leave at least one of the {d} coordinates: an AR1Normal has no event of size 0 (the density "
            "of all of them together is log_prob(value))."
        )
    if n == 0:
        return q
    if validate_args:
        require("value", value, "be finite", value.isfinite())
    dtype = torch.promote_types(q.loc.dtype, value.dtype)
    loc, scale, atanh_rho = widen(q.loc), of_size(widen(q.scale), d), of_size(widen(q.atanh_rho), d - 1)
    rho, innovation = atanh_rho.tanh(), sech_squared(atanh_rho)
    is_free = ~_mask(observed, d)
    deviation = (widen(value) - loc[..., observed]) / scale[..., observed]
    start = torch.zeros(deviation.shape[:-1] + (d,), dtype=deviation.dtype, device=deviation.device)
    start = start.index_copy(-1, observed, deviation)

    coefficient = torch.where(is_free[1:], rho, 0.0)
    filtered_mean = linear_recurrence(coefficient, start)
    filtered = linear_recurrence(coefficient.square(), torch.where(is_free, pad(innovation, (1, 0), value=1.0), 0.0))
    predicted = innovation + rho.square() * filtered[..., :-1]
    slope = rho * filtered[..., :-1] / predicted
    share = pad(innovation / predicted, (0, 1), value=1.0)
    remainder = share * filtered
    mean = linear_recurrence(slope, share * filtered_mean, reverse=True)
    variance = linear_recurrence(slope.square(), remainder, reverse=True)

    free = _places(is_free, d - n)
    before, after = free[:-1], free[1:]
    is_pair = after - before == 1
    # Guarded twice: what follows an observed coordinate's neighbour has no part in value or gradient.
    ratio = torch.where(is_pair, variance[..., after], 1.0) / remainder[..., before]
    correlation = torch.where(is_pair, (slope[..., before] * ratio.sqrt()).asinh(), 0.0)
    loc = loc[..., free] + scale[..., free] * mean[..., free]
    scale = scale[..., free] * variance[..., free].sqrt()
    return Chain(loc, scale, correlation).to(dtype)


def _positions(index: Index, d: int, device: torch.device) -> Tensor:
    """The coordinates that index names, increasing, from 0 to d - 1. They are always checked: like shapes, they decide
    what the result is. A slice and Python's own numbers are checked without a tensor, which a compiler can follow."""
    wanted = f"index must be a slice, a boolean mask of shape ({d},) or increasing integers from {-d} to {d - 1}"
    if isinstance(index, slice):
        kept = range(d)[index]
        if kept.step < 0 and len(kept) > 1:
            raise ValueError(f"{wanted}; got {index!r}.")
        return kept.start + kept.step * torch.arange(len(kept), device=device)
    if isinstance(index, _SEQUENCES) and all(type(each) is bool for each in index) and index:
        if len(index) != d:
            raise ValueError(f"{wanted}; got {len(index)} booleans.")
        index = [t for t, is_kept in enumerate(index) if is_kept]
    if isinstance(index, _SEQUENCES) and all(type(each) is int for each in index):
        entries = [t + d if t < 0 else t for t in index]
        if any(not 0 <= t < d for t in entries) or any(a >= b for a, b in itertools.pairwise(entries)):
            raise ValueError(f"{wanted}; got {index if len(index) <= 10 else f'{len(index)} integers'}.")
        return torch.tensor(entries, dtype=torch.long, device=device)
    try:
        index = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{wanted}; got {index!r}.") from None
    if index.dim() != 1 or (index.dtype == torch.bool and index.shape != (d,)):
        raise ValueError(f"{wanted}; got {describe(index)}.")
    if index.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=device)  # an empty tensor has a type, but not by intent
    if index.dtype == torch.bool:
        return index.to(device).nonzero().squeeze(-1)
    if index.is_floating_point() or index.is_complex():
        raise ValueError(f"{wanted}; got {describe(index)}.")
    given = index.long()
    positions = torch.where(given < 0, given + d, given)
    if not (((positions >= 0) & (positions < d)).all() and (positions.diff() > 0).all()):
        raise ValueError(f"{wanted}; got {given.tolist() if len(given) <= 10 else describe(given)}.")
    return positions.to(device)


def _mask(positions: Tensor, d: int) -> Tensor:
    return torch.zeros(d, dtype=torch.bool, device=positions.device).index_fill(0, positions, True)


def _places(mask: Tensor, n: int) -> Tensor:
    """Where a mask of n true entries is true: nonzero, of a size that a compiler knows."""
    rank = torch.where(mask, mask.cumsum(0) - 1, n)
    places = torch.arange(mask.shape[0], device=mask.device)
    return places.new_empty(n + 1).scatter(0, rank, places)[:n]
