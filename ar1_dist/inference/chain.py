r"""The parameters of a chain, and the notation of what is computed from them.

In the standardised coordinates :math:`u_t = (z_t - \mathrm{loc}_t)/\mathrm{scale}_t` the chain is

.. math:: u_t \mid u_{t-1} \sim \mathcal{N}(\rho_t u_{t-1},\ c_t^2), \qquad \rho_t = \tanh \alpha_t, \qquad
    c_t^2 = 1 - \rho_t^2 = \operatorname{sech}^2 \alpha_t ,

and the same from right to left, as every :math:`u_t` has variance 1. A chain comes out of every computation by its
conditionals: if one coordinate has slope k and variance q given its neighbour, which has variance v,

.. math:: \operatorname{artanh} \operatorname{Corr} = \operatorname{arsinh}(k \sqrt{v / q}) ,

which needs no :math:`1 - \rho^2`. Variances and information obey recurrences of positive terms alone
(:mod:`ar1_dist.recurrence`), so that nothing cancels but what the parameters make cancel: differences of locations, of
neighbours and of correlations, which are taken in the next wider type.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Chain", "of_size", "sech_squared"]


class Chain(NamedTuple):
    """The parameters of chains of d coordinates. Leading dimensions broadcast.

    Attributes:
        loc (Tensor): of shape ``(..., d)``.
        scale (Tensor): marginal standard deviation, of shape ``(..., d)`` or ``(..., 1)``.
        atanh_rho (Tensor): of shape ``(..., d - 1)`` or ``(..., 1)``.
    """

    loc: Tensor
    scale: Tensor
    atanh_rho: Tensor

    def to(self, dtype: torch.dtype) -> "Chain":
        """The same in another floating type."""
        return Chain(*(x.to(dtype) for x in self))


def of_size(x: Tensor, n: int) -> Tensor:
    """x with its last dimension, of size n or 1, expanded to n."""
    return x.expand(x.shape[:-1] + (n,))


def sech_squared(x: Tensor) -> Tensor:
    r""":math:`\operatorname{sech}^2 x`, which is :math:`1 - \rho^2` at :math:`x = \operatorname{artanh} \rho`."""
    return x.cosh().reciprocal().square()
