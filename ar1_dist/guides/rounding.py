"""A check that a guide's draws are resolved by the floating type that they are rounded to."""

import warnings

import torch
from torch import Tensor

from ar1_dist.kernels import is_transformed

__all__ = ["warn_if_rounded"]


def warn_if_rounded(guide: str, latent: str, loc: Tensor, scale: Tensor, atanh_rho: Tensor | None = None) -> bool:
    r"""Warn if draws are rounded to numbers that lie further apart than an innovation's standard deviation,

    .. math:: \mathrm{scale}_t\, \sqrt{1 - \rho_t^2} < \epsilon\, |\mathrm{loc}_t|

    for some t, with :math:`\epsilon` the machine epsilon. The model's density at such draws, and so any estimate of
    the ELBO, is that of the rounded numbers: too low where neighbours are rounded apart, and above the evidence where
    all draws are rounded to one number, at which the spread of the posterior costs nothing.

    Example:

        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     warn_if_rounded("guide", "z", torch.full((3,), 1e6), torch.full((3,), 1e-3))
        True

    Args:
        guide (str): the guide's name.
        latent (str): what is drawn.
        loc (Tensor): of shape ``(..., d)``.
        scale (Tensor): marginal standard deviations, of shape ``(..., d)``.
        atanh_rho (Tensor, optional): of shape ``(..., d - 1)``.

    Returns:
        bool: whether it has warned. While operations are recorded or transformed it does not look.
    """
    if is_transformed() or loc.numel() == 0:
        return False
    with torch.no_grad():
        spacing = torch.finfo(loc.dtype).eps
        # Bounds first, by one pass over each parameter.
        largest, least = max(map(abs, _extremes(loc))), _extremes(scale)[0]
        steepest = 0.0 if atanh_rho is None else max(map(abs, _extremes(atanh_rho)), default=0.0)
        if least > spacing * largest * torch.tensor(steepest, dtype=torch.float64).cosh().item():
            return False
        innovation = scale.clone()
        if atanh_rho is not None:
            innovation[..., 1:] /= atanh_rho.cosh()
        is_rounded = innovation < spacing * loc.abs()
        if not is_rounded.any():
            return False
        t = int(is_rounded.flatten().nonzero()[0])
    warnings.warn(
        f"{guide}: draws of {latent} are rounded: at a loc of {loc.flatten()[t].item():.6g} numbers of "
        f"{loc.dtype} lie {spacing * loc.flatten()[t].abs().item():.2g} apart, and the chain's innovations have a "
        f"standard deviation of {innovation.flatten()[t].item():.2g}. The ELBO is that of rounded values and may pass "
        "the evidence. Subtract the level from data and prior, or use torch.float64.",
        stacklevel=2,
    )
    return True


def _extremes(x: Tensor) -> list[float]:
    return [bound.item() for bound in x.aminmax()] if x.numel() else []
