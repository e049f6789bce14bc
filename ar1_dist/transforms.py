r"""The autoregressive map between white noise and a first-order autoregressive vector, and its parameters."""

import weakref
from typing import Any

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from ar1_dist.functional import colour, log_det, whiten, whiten_draw, widen
from ar1_dist.inference.chain import Chain
from ar1_dist.kernels import is_transformed
from ar1_dist.parameters import as_tensors, at_least_1d, check_type, check_types, infer_shapes

__all__ = ["AR1Transform"]


_REMEMBERED = 32  # draws, of a distribution that is drawn from again and again


class AR1Transform(Transform):
    r"""The map :math:`\epsilon \mapsto z` that colours white noise into a first-order autoregressive vector,

    .. math::

        u_1 = \epsilon_1, \qquad u_t = \rho_t u_{t-1} + \sqrt{1 - \rho_t^2}\, \epsilon_t, \qquad
        z_t = \mathrm{loc}_t + \mathrm{scale}_t\, u_t ,

    that is :math:`z = \mathrm{loc} + L\,\epsilon` with :math:`L` the lower Cholesky factor of the covariance of
    :class:`~ar1_dist.AR1Normal`. The inverse whitens: with :math:`u = (z - \mathrm{loc})/\mathrm{scale}` and
    :math:`\alpha_t = \operatorname{artanh} \rho_t`,

    .. math:: \epsilon_t = \frac{u_t - \rho_t u_{t-1}}{\sqrt{1 - \rho_t^2}}
        = \cosh\alpha_t\, (u_t - \varsigma_t u_{t-1}) + \varsigma_t e^{-|\alpha_t|} u_{t-1}, \qquad
        \varsigma_t = \pm 1 \text{ the sign of } \rho_t,

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
        self.atanh = rho is None  # whether the correlation is given as atanh_rho
        self.names = ("loc", "scale", "atanh_rho" if self.atanh else "rho")
        parameters = dict(zip(self.names, (loc, scale, atanh_rho if self.atanh else rho), strict=True))
        check_types(parameters)
        self.batch_shape, self.event_shape = infer_shapes(
            {name: value.shape if isinstance(value, Tensor) else torch.Size() for name, value in parameters.items()}
        )
        # A 0-d leaf is kept as it is, so that it can be copied; a view of it can't.
        self.loc, self._scale, self._correlation = as_tensors(parameters)
        self._draws: list[tuple[weakref.ref[Tensor], list[Tensor]]] = []

    @property
    def scale(self) -> Tensor:
        return at_least_1d(self._scale)

    # Derived on each access, not kept: a kept one would be stale after an optimiser's step on a leaf, and its part of
    # the autograd graph would be gone after the first backward.
    @property
    def rho(self) -> Tensor:
        return self.correlation.tanh() if self.atanh else self.correlation

    @property
    def atanh_rho(self) -> Tensor:
        return self.correlation if self.atanh else self.correlation.atanh()

    @property
    def correlation(self) -> Tensor:
        """``rho`` or ``atanh_rho``, whichever was given; with d = 1, where it has no meaning, 0."""
        correlation = at_least_1d(self._correlation)
        # Of any value, and in the graph all the same.
        return correlation if self.event_shape[0] > 1 else correlation.nan_to_num().clamp(0.0, 0.0)

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """What was given, as the functions in :mod:`ar1_dist.functional` take it."""
        return self.loc, self.scale, self.correlation

    @property
    def chain(self) -> Chain:
        """The same with ``atanh_rho``, as the functions in :mod:`ar1_dist.inference` take it."""
        return Chain(self.loc, self.scale, self.atanh_rho)

    def parameters(self) -> dict[str, Tensor]:
        """What was given, by name."""
        return dict(zip(self.names, self.arguments, strict=True))

    def with_cache(self, cache_size: int = 1) -> "AR1Transform":
        if self._cache_size == cache_size:
            return self
        given = dict(zip(self.names, (self.loc, self._scale, self._correlation), strict=True))
        return type(self)(**given, cache_size=cache_size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AR1Transform) or self.names != other.names:
            return False
        theirs = other.parameters()
        return all(
            value is theirs[name] or torch.equal(value, theirs[name]) for name, value in self.parameters().items()
        )

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        self.check_event_shape(x)
        y = colour(*self.arguments, x, atanh=self.atanh)
        noise = [x.detach().to(y.dtype)]  # which goes when y does
        living = [draw for draw in self._draws if draw[1]][1 - _REMEMBERED :]
        self._draws = [*living, (weakref.ref(y, lambda _: noise.clear()), noise)]
        return y

    def recall(self, y: Tensor) -> Tensor | None:
        """The noise of which this map made y, as numbers without a graph; None of any other tensor, and if y or a
        parameter has been changed since, or many were made later. A view of all of y is y."""
        for draw, kept in reversed(self._draws):
            of = draw()
            if of is None or not kept or not _is_same(of, y):
                continue
            with torch.no_grad():
                # Nobody counts all changes in place, so that the map is made again and compared.
                again, noise = colour(*self.arguments, kept[0], atanh=self.atanh), kept[0]
                if again.dtype != y.dtype:
                    return None
                if y.is_cpu and not is_transformed():
                    return noise if torch.equal(again, y) else None
                is_made = (again == y.detach()).all(-1, keepdim=True)
                return torch.where(is_made, noise, self._whiten(y.detach()))
        return None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_draws": []}

    def _inverse(self, y: Tensor) -> Tensor:
        self.check_event_shape(y)
        noise = self.recall(y)
        if noise is not None:
            return whiten_draw(y, *self.arguments, noise, atanh=self.atanh)
        return self._whiten(y)

    def _whiten(self, y: Tensor) -> Tensor:
        dtype = torch.promote_types(y.dtype, self.loc.dtype)
        return whiten((widen(y) - self.loc) / self.scale, self.atanh_rho, dtype)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_det.expand(broadcast_shape(self.batch_shape, x.shape[:-1]))

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size(broadcast_shape(self.batch_shape, shape[:-1])) + self.event_shape

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self.forward_shape(shape)

    @property
    def log_det(self) -> Tensor:
        """The log-determinant, which no argument changes, of a shape that broadcasts to ``batch_shape``."""
        return log_det(*self.arguments[1:], d=self.event_shape[0], atanh=self.atanh)

    def check_event_shape(self, value: Tensor) -> None:
        """Raise unless value is of real numbers and has the last dimension d."""
        check_type(value)
        if value.dim() == 0 or value.shape[-1] != self.event_shape[0]:
            raise ValueError(
                f"The value's last dimension must be {self.event_shape[0]}, loc's; got shape {tuple(value.shape)}."
            )


def _is_same(x: Tensor, y: Tensor) -> bool:
    """Whether the two are one tensor, or the same view of the same memory."""
    if x is y:
        return True
    if is_transformed() or y.is_meta or x.shape != y.shape or x.dtype != y.dtype or x.device != y.device:
        return False
    return x.stride() == y.stride() and x.data_ptr() == y.data_ptr() and x.numel() > 0
