r"""The autoregressive map between white noise and a first-order autoregressive vector, and its parameters.

Everything here is a function of :math:`\alpha = \operatorname{artanh} \rho` where precision is at stake:
:math:`1 - \rho^2 = \operatorname{sech}^2 \alpha` is right when :math:`\rho` itself rounds to 1.
"""

import functools
import numbers
from typing import Any

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from ar1_dist.recurrence import autoregression

__all__ = ["AR1Transform"]


class AR1Transform(Transform):
    r"""The map :math:`\epsilon \mapsto z` that colours white noise into a first-order autoregressive vector,

    .. math::

        u_1 = \epsilon_1, \qquad u_t = \rho_t u_{t-1} + \sqrt{1 - \rho_t^2}\, \epsilon_t, \qquad
        z_t = \mathrm{loc}_t + \mathrm{scale}_t\, u_t ,

    that is :math:`z = \mathrm{loc} + L\,\epsilon` with :math:`L` the lower Cholesky factor of the covariance of
    :class:`~ar1_dist.AR1Normal`. The inverse whitens: with :math:`u = (z - \mathrm{loc})/\mathrm{scale}` and
    :math:`\alpha_t = \operatorname{artanh} \rho_t`,

    .. math:: \epsilon_t = \frac{u_t - \rho_t u_{t-1}}{\sqrt{1 - \rho_t^2}}
        = \cosh\alpha_t\, (u_t - s_t u_{t-1}) + s_t e^{-|\alpha_t|} u_{t-1}, \qquad s_t = \pm 1
        \text{ the sign of } \rho_t,

    where the last form does not cancel as :math:`|\rho_t| \to 1`. The Jacobian is triangular,

    .. math:: \log\left|\det \frac{\partial z}{\partial \epsilon}\right|
        = \sum_t \log \mathrm{scale}_t + \tfrac12 \sum_{t \ge 2} \log(1 - \rho_t^2) .

    All three take time and memory linear in the dimension d.

    Example:

        >>> transform = AR1Transform(torch.zeros(3), 2.0, 0.5)
        >>> transform(torch.tensor([1.0, 0.0, 0.0]))
        tensor([2.0000, 1.0000, 0.5000])
        >>> transform.inv(torch.tensor([2.0, 1.0, 0.5]))
        tensor([1., 0., 0.])
        >>> transform.log_abs_det_jacobian(torch.zeros(3), torch.zeros(3))
        tensor(1.7918)

    Args:
        loc (Tensor): location, of shape ``(..., d)``.
        scale (Tensor or float): marginal standard deviation, of shape ``(..., d)``, or ``(..., 1)``, 0-d or a number
            where it is the same for every coordinate.
        rho (Tensor or float): correlation of neighbours, in (-1, 1), of shape ``(..., d - 1)``, or ``(..., 1)``, 0-d
            or a number where it is the same for every pair. Ignored if d = 1.
        atanh_rho (Tensor or float): :math:`\operatorname{artanh}\rho`, in place of ``rho`` and of the same shapes.
        cache_size (int): size of the cache, 0 or 1, as for every torch transform.

    Raises:
        ValueError: if a parameter's shape or type does not fit, or not exactly one of ``rho`` and ``atanh_rho`` is
            given. Values are not checked, as in torch's own transforms.

    Note:
        Leading dimensions broadcast to ``batch_shape``. The attributes ``loc``, ``scale``, ``rho`` and ``atanh_rho``
        keep the shapes they were given (numbers and 0-d tensors become shape ``(1,)``), so shared parameters stay
        cheap.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor | float,
        rho: Tensor | float | None = None,
        *,
        atanh_rho: Tensor | float | None = None,
        cache_size: int = 0,
    ) -> None:
        super().__init__(cache_size=cache_size)
        if (rho is None) == (atanh_rho is None):
            raise ValueError("Exactly one of rho and atanh_rho must be given.")
        self._given = "rho" if atanh_rho is None else "atanh_rho"
        parameters = {"loc": loc, "scale": scale, self._given: rho if atanh_rho is None else atanh_rho}
        _check_types(parameters)
        shapes = {
            name: value.shape if isinstance(value, Tensor) else torch.Size() for name, value in parameters.items()
        }
        self.batch_shape, self.event_shape = infer_shapes(shapes)
        # A 0-d leaf is kept as it is, so that it can be copied; a view of it can't.
        self.loc, self._scale, self._correlation = _as_tensors(parameters).values()

    @property
    def scale(self) -> Tensor:
        return torch.atleast_1d(self._scale)

    # Derived on each access, not kept: a kept one would be stale after an optimiser's step on a leaf, and its part of
    # the autograd graph would be gone after the first backward.
    @property
    def rho(self) -> Tensor:
        given = torch.atleast_1d(self._correlation)
        return given if self._given == "rho" else given.tanh()

    @property
    def atanh_rho(self) -> Tensor:
        given = torch.atleast_1d(self._correlation)
        return given if self._given == "atanh_rho" else given.atanh()

    def parameters(self) -> dict[str, Tensor]:
        """The parameters that were given, by name."""
        return {"loc": self.loc, "scale": self.scale, self._given: getattr(self, self._given)}

    def with_cache(self, cache_size: int = 1) -> "AR1Transform":
        if self._cache_size == cache_size:
            return self
        return type(self)(**self.parameters(), cache_size=cache_size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AR1Transform) or self._given != other._given:
            return False
        theirs = other.parameters()
        return all(
            value is theirs[name] or torch.equal(value, theirs[name]) for name, value in self.parameters().items()
        )

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        self._check_event_shape(x)
        return self.loc + self.scale * autoregression(self.atanh_rho, x)

    def _inverse(self, y: Tensor) -> Tensor:
        self._check_event_shape(y)
        dtype = torch.promote_types(y.dtype, self.loc.dtype)
        return whiten((widen(y) - self.loc) / self.scale, self.atanh_rho, dtype)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_det.expand(broadcast_shape(self.batch_shape, x.shape[:-1]))

    @property
    def log_det(self) -> Tensor:
        """The log-determinant, which no argument changes, of a shape that broadcasts to ``batch_shape``."""
        (d,) = self.event_shape
        return sum_shared(self.scale.log(), d) - sum_shared(log_cosh(self.atanh_rho), d - 1)

    def _check_event_shape(self, value: Tensor) -> None:
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"The value's last dimension must be {self.event_shape[0]}, loc's; got shape {tuple(value.shape)}."
            )


def whiten(u: Tensor, atanh_rho: Tensor, dtype: torch.dtype) -> Tensor:
    r"""The standardised innovations :math:`(u_t - \rho_t u_{t-1})/\sqrt{1 - \rho_t^2}`, and :math:`u_1` first.

    Args:
        u (Tensor): of shape ``(..., d)``; its differences are taken in its own precision (see :func:`widen`).
        atanh_rho (Tensor): of shape ``(..., d - 1)`` or ``(..., 1)``.
        dtype (torch.dtype): the result's.
    """
    sign = sign_of(atanh_rho)
    difference = (u[..., 1:] - sign * u[..., :-1]).to(dtype)
    u = u.to(dtype)
    return _prepend(u[..., :1], atanh_rho.cosh() * difference + sign * ((-sign * atanh_rho).exp() * u[..., :-1]))


def widen(x: Tensor) -> Tensor:
    r"""x in the next wider floating type, where there is one on its device.

    Neighbours are subtracted and the difference is multiplied by up to :math:`\cosh \operatorname{artanh} \rho`:
    quotients that are rounded before that lose as many digits as the factor has.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return x.double() if x.dtype == torch.float32 and x.device.type != "mps" else x


def sign_of(x: Tensor) -> Tensor:
    """+1 where ``x >= 0``, else -1, as int8: a constant to autograd, unlike ``x.sign()`` without a zero between."""
    return 2 * (x >= 0).to(torch.int8) - 1


def log_cosh(x: Tensor) -> Tensor:
    r""":math:`\log\cosh x = \log(1 + 2 \sinh^2(x/2))`, to full relative precision; with :math:`x =
    \operatorname{artanh}\rho` it is :math:`-\tfrac12 \log(1 - \rho^2)`."""
    return (2 * (x / 2).sinh().square()).log1p()


def sum_shared(x: Tensor, n: int) -> Tensor:
    """The sum of n terms along the last dimension, which has size n or, where all terms are equal, 1."""
    return x.sum(-1) if x.shape[-1] == n else n * x.squeeze(-1)


def _prepend(first: Tensor, rest: Tensor) -> Tensor:
    batch_shape = broadcast_shape(first.shape[:-1], rest.shape[:-1])
    return torch.cat([first.expand(batch_shape + first.shape[-1:]), rest.expand(batch_shape + rest.shape[-1:])], -1)


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
                f"{tuple(loc_shape)}; got shape {tuple(shape)}."
            )
        batch_shapes.append(shape[:-1])
    try:
        return torch.Size(broadcast_shape(*batch_shapes)), loc_shape[-1:]
    except ValueError:
        described = ", ".join(f"{name} of shape {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"Leading dimensions must broadcast; got {described}.") from None


def _check_types(parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        wanted = "a floating-point tensor" if name == "loc" else "a floating-point tensor or a real number"
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                raise ValueError(f"{name} must be {wanted}; got {value.dtype} of shape {tuple(value.shape)}.")
        elif name == "loc" or isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be {wanted}; got {value!r}.")


def _as_tensors(parameters: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of one dtype on loc's device; numbers become tensors of shape (1,)."""
    # As everywhere in torch, numbers and 0-d tensors don't take part in promotion.
    dtypes = [value.dtype for value in parameters.values() if isinstance(value, Tensor) and value.dim() > 0]
    dtype, device = functools.reduce(torch.promote_types, dtypes), parameters["loc"].device
    tensors = {}
    for name, value in parameters.items():
        if not isinstance(value, Tensor):
            tensors[name] = torch.full((1,), float(value), dtype=dtype, device=device)
        elif value.dim() == 0:
            tensors[name] = value.to(device, dtype)
        else:
            tensors[name] = value.to(dtype)
    return tensors
