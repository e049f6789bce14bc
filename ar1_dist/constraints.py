r"""The open interval :math:`(a, b)` and its bijection from the real line.

:data:`torch.distributions.constraints.interval` is closed: it lets a correlation of exactly 1 through, at which an
autoregressive density is NaN. :class:`open_interval` does not, and its bijection never returns an endpoint.
"""

import math

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import Transform
from torch.nn.functional import softplus

__all__ = ["OpenIntervalTransform", "open_interval"]


class open_interval(constraints.Constraint):  # lower case, as torch names its constraints
    """Constrain to the open real interval ``(lower_bound, upper_bound)``, elementwise.

    Example:

        >>> open_interval(-1, 1).check(torch.tensor([-1.0, -0.999, 0.0, 1.0, float("nan")]))
        tensor([False,  True,  True, False, False])

    Args:
        lower_bound (float): greatest number below the interval.
        upper_bound (float): least number above the interval.

    Raises:
        ValueError: unless ``lower_bound < upper_bound`` and both are finite.
    """

    def __init__(self, lower_bound: float, upper_bound: float) -> None:
        if not -math.inf < lower_bound < upper_bound < math.inf:
            raise ValueError(f"open_interval needs finite lower_bound < upper_bound, got {lower_bound}, {upper_bound}")
        self.lower_bound = lower_bound
        self.upper_bound = upper_bound
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return (self.lower_bound < value) & (value < self.upper_bound)

    def __repr__(self) -> str:
        return f"OpenInterval(lower_bound={self.lower_bound}, upper_bound={self.upper_bound})"


class OpenIntervalTransform(Transform):
    r"""The bijection :math:`y = m + h \tanh x` of the real line onto :math:`(a, b)`, with :math:`m = (a + b)/2` and
    :math:`h = (b - a)/2`.

    The result is clamped to :math:`[a + \epsilon, b - \epsilon]`, with :math:`\epsilon` the machine epsilon times
    :math:`\max(|a|, |b|)`, as :class:`torch.distributions.transforms.SigmoidTransform` clamps: a bare ``tanh``
    returns exactly 1 from about 9 on in float32, and one such value ends a training run.

    Example:

        >>> OpenIntervalTransform(-1.0, 1.0)(torch.tensor([0.0, 1.0, 50.0])) < 1
        tensor([True, True, True])

    Args:
        lower_bound (float): :math:`a`.
        upper_bound (float): :math:`b`.
        cache_size (int): size of the cache, 0 or 1, as for every torch transform.
    """

    domain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, lower_bound: float = -1.0, upper_bound: float = 1.0, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self._codomain = open_interval(lower_bound, upper_bound)
        self._middle = (lower_bound + upper_bound) / 2
        self._half_width = (upper_bound - lower_bound) / 2

    @property
    def codomain(self) -> open_interval:  # type: ignore[override]
        return self._codomain

    def with_cache(self, cache_size: int = 1) -> "OpenIntervalTransform":
        if self._cache_size == cache_size:
            return self
        return OpenIntervalTransform(self.codomain.lower_bound, self.codomain.upper_bound, cache_size=cache_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpenIntervalTransform) and repr(self.codomain) == repr(other.codomain)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        lower, upper = self.codomain.lower_bound, self.codomain.upper_bound
        margin = torch.finfo(x.dtype).eps * max(abs(lower), abs(upper))
        return (self._middle + self._half_width * x.tanh()).clamp(lower + margin, upper - margin)

    def _inverse(self, y: Tensor) -> Tensor:
        return ((y - self._middle) / self._half_width).atanh()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2 x)), which does not overflow.
        return math.log(self._half_width) + 2 * (math.log(2) - x - softplus(-2 * x))


@biject_to.register(open_interval)
@transform_to.register(open_interval)
def _open_interval_transform(constraint: open_interval) -> OpenIntervalTransform:
    return OpenIntervalTransform(constraint.lower_bound, constraint.upper_bound)
