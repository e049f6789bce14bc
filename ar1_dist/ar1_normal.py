r"""The first-order autoregressive normal distribution."""

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Distribution, constraints

from ar1_dist import functional
from ar1_dist.constraints import open_interval
from ar1_dist.functional import log_cosh, sum_shared
from ar1_dist.recurrence import linear_recurrence
from ar1_dist.transforms import AR1Transform, infer_shapes

__all__ = ["AR1Normal"]


class AR1Normal(TorchDistribution):
    r"""A normal distribution over :math:`z \in \mathbb{R}^d` that is a first-order autoregressive (Gauss–Markov)
    chain along the last dimension,

    .. math::

        u_1 = \epsilon_1, \qquad u_t = \rho_t u_{t-1} + \sqrt{1 - \rho_t^2}\, \epsilon_t, \qquad
        z_t = \mathrm{loc}_t + \mathrm{scale}_t\, u_t, \qquad \epsilon_t \sim \mathcal{N}(0, 1),

    so that ``scale`` is the *marginal* standard deviation of each coordinate, not the innovations', and

    .. math:: \operatorname{Cov}(z_i, z_j) = \mathrm{scale}_i\, \mathrm{scale}_j \prod_{i < t \le j} \rho_t .

    With one scale and one rho this is :math:`s\,\mathrm{Toeplitz}(1, \rho, \rho^2, \dots)` with
    :math:`s = \mathrm{scale}^2`, eq. (4) of Ferdowsi et al., *ρ-VAE: Autoregressive parametrization of the VAE
    encoder* (arXiv:1909.06236). Sampling, density, entropy and the registered divergences
    (:mod:`ar1_dist.kl`) are closed forms that take time and memory linear in d: no matrix is formed or factorised
    but in the three dense views ``covariance_matrix``, ``precision_matrix`` and ``scale_tril``.

    It is a :class:`torch.distributions.Distribution` and a Pyro distribution at once.

    Example:

        >>> q = AR1Normal(torch.zeros(3), 2.0, 0.5)
        >>> q.covariance_matrix
        tensor([[4., 2., 1.],
                [2., 4., 2.],
                [1., 2., 4.]])
        >>> q.rsample((5,)).shape
        torch.Size([5, 3])
        >>> p = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), 1.0), 1)
        >>> torch.distributions.kl_divergence(q, p)
        tensor(2.7082)

    Args:
        loc (Tensor): mean, of shape ``(..., d)``.
        scale (Tensor or float): marginal standard deviation, positive, of shape ``(..., d)``, or ``(..., 1)``, 0-d
            or a number where it is the same for every coordinate.
        rho (Tensor or float): correlation of neighbouring coordinates, in the open interval (-1, 1), of shape
            ``(..., d - 1)``, or ``(..., 1)``, 0-d or a number where it is the same for every pair. Ignored if d = 1.
        atanh_rho (Tensor or float): :math:`\operatorname{artanh}\rho`, any real number, in place of ``rho`` and of
            the same shapes: the unconstrained and numerically safe way in, as ``logits`` is to ``probs``.
        validate_args (bool): whether to check the parameters' and the values' values, as everywhere in torch.
            Shapes and types are always checked.

    Raises:
        ValueError: if a parameter's shape, type or (with validation) value is not as above, if leading dimensions
            don't broadcast, or if not exactly one of ``rho`` and ``atanh_rho`` is given.

    Note:
        Leading dimensions broadcast to ``batch_shape``. ``loc``, ``mean`` and ``variance`` have the full shape
        ``batch_shape + (d,)``; ``scale``, ``rho`` and ``atanh_rho`` have ``batch_shape`` followed by the last
        dimension that they were given. With d = 2 one rho for all pairs and a rho for each pair are the same.

    Note:
        With the same seed, ``rsample`` draws the same noise as :class:`~torch.distributions.MultivariateNormal` with
        this ``scale_tril``, and so the same sample. The attribute ``transform`` is the
        :class:`~ar1_dist.AR1Transform` by which it does.
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale": constraints.positive,
        "rho": open_interval(-1.0, 1.0),
        "atanh_rho": constraints.real,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor | float,
        rho: Tensor | float | None = None,
        *,
        atanh_rho: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.transform = AR1Transform(loc, scale, rho, atanh_rho=atanh_rho)
        # Those of the parameters that were given: Pyro's reparametrisers rebuild a distribution from all that it names.
        self.arg_constraints = {name: self.arg_constraints[name] for name in self.transform.names}
        # The base class would check rho where only atanh_rho was given, and would let infinity through.
        super().__init__(self.transform.batch_shape, self.transform.event_shape, validate_args=False)
        self._validate_args = Distribution._validate_args if validate_args is None else validate_args
        if self._validate_args:
            self._validate_parameters()

    def _validate_parameters(self) -> None:
        for name, value in self.transform.parameters().items():
            constraint = self.arg_constraints[name]
            if value.numel() == 0:
                continue  # nothing to check, and torch's independent constraints can't
            if not (torch._is_all_true(value.isfinite()) and torch._is_all_true(constraint.check(value))):
                raise ValueError(
                    f"Expected parameter {name} (Tensor of shape {tuple(value.shape)}) of distribution {self!r} to be "
                    f"finite and to satisfy the constraint {constraint!r}, but found invalid values:\n{value}"
                )

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(AR1Normal, _instance)
        new.transform = self.transform
        new.arg_constraints = self.arg_constraints
        batch_shape = self.loc.expand(torch.Size(batch_shape) + self.event_shape).shape[:-1]
        super(AR1Normal, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @staticmethod
    def infer_shapes(loc, scale, rho=None, atanh_rho=None):
        """The batch and the event shape that arguments of these shapes give, ``()`` standing for a number.

        Example:

            >>> AR1Normal.infer_shapes(loc=(7, 5), scale=(1,), rho=())
            (torch.Size([7]), torch.Size([5]))

        Args:
            loc, scale, rho, atanh_rho (tuple of int): shapes of the arguments of the same names.

        Returns:
            tuple: ``(batch_shape, event_shape)``.
        """
        given = {"loc": loc, "scale": scale, "rho": rho, "atanh_rho": atanh_rho}
        return infer_shapes({name: torch.Size(shape) for name, shape in given.items() if shape is not None})

    def __repr__(self) -> str:
        described = ", ".join(f"{name}: {_describe(getattr(self, name))}" for name in self.transform.names)
        return f"{type(self).__name__}({described})"

    @property
    def loc(self) -> Tensor:
        """The mean, of shape ``batch_shape + (d,)``."""
        return self.transform.loc.expand(self.batch_shape + self.event_shape)

    @property
    def scale(self) -> Tensor:
        """The marginal standard deviation, of shape ``batch_shape + (d,)``, or ``batch_shape + (1,)`` if shared."""
        return self._expand(self.transform.scale, 1)

    @property
    def rho(self) -> Tensor:
        """The correlation of neighbours, of shape ``batch_shape + (d - 1,)``, or ``batch_shape + (1,)`` if shared.

        Computed from :attr:`atanh_rho` it can round to 1 or -1; nothing here depends on that.
        """
        return self._expand(self.transform.rho, 1)

    @property
    def atanh_rho(self) -> Tensor:
        """The inverse hyperbolic tangent of :attr:`rho`, of the same shape."""
        return self._expand(self.transform.atanh_rho, 1)

    def _expand(self, value: Tensor, event_dim: int) -> Tensor:
        return value.expand(self.batch_shape + value.shape[value.dim() - event_dim :])

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def stddev(self) -> Tensor:
        return self.transform.scale.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self.transform.scale.square().expand(self.batch_shape + self.event_shape)

    @property
    def scale_tril(self) -> Tensor:
        r"""The lower Cholesky factor of the covariance, of shape ``batch_shape + (d, d)``, in closed form:
        :math:`L_{ij} = \mathrm{scale}_i \sqrt{1 - \rho_j^2} \prod_{j < t \le i} \rho_t` for :math:`i \ge j`, where
        the root is 1 for j = 1."""
        innovation_scale = self._per_pair(self.transform.atanh_rho).cosh().reciprocal()
        column = torch.nn.functional.pad(innovation_scale, (1, 0), value=1.0)
        return self._expand(self.transform.scale.unsqueeze(-1) * self._correlation_tril() * column.unsqueeze(-2), 2)

    @property
    def covariance_matrix(self) -> Tensor:
        r"""The covariance :math:`\mathrm{scale}_i\, \mathrm{scale}_j \prod_{i < t \le j} \rho_t`, of shape
        ``batch_shape + (d, d)``."""
        tril, scale = self._correlation_tril(), self.transform.scale
        return self._expand(scale.unsqueeze(-1) * (tril + tril.tril(-1).mT) * scale.unsqueeze(-2), 2)

    @property
    def precision_matrix(self) -> Tensor:
        r"""The inverse of the covariance, tridiagonal, of shape ``batch_shape + (d, d)``: with :math:`\alpha_t =
        \operatorname{artanh}\rho_t`, and :math:`\alpha_1 = \alpha_{d+1} = 0`,

        .. math:: P_{tt} = \frac{1 + \sinh^2\alpha_t + \sinh^2\alpha_{t+1}}{\mathrm{scale}_t^2}, \qquad
            P_{t,t-1} = P_{t-1,t} = -\frac{\sinh 2\alpha_t}{2\, \mathrm{scale}_t\, \mathrm{scale}_{t-1}} .
        """
        atanh_rho, scale = self._per_pair(self.transform.atanh_rho), self.transform.scale
        ratio = torch.nn.functional.pad(atanh_rho.sinh().square(), (1, 1))  # rho^2/(1 - rho^2)
        neighbours = torch.diag_embed(-(2 * atanh_rho).sinh() / 2, offset=-1)
        standardised = torch.diag_embed(1 + ratio[..., :-1] + ratio[..., 1:]) + neighbours + neighbours.mT
        return self._expand(standardised / scale.unsqueeze(-1) / scale.unsqueeze(-2), 2)

    def _per_pair(self, value: Tensor) -> Tensor:
        return value.expand(value.shape[:-1] + (self.event_shape[0] - 1,))

    def _correlation_tril(self) -> Tensor:
        """The lower triangle of the correlation matrix, and zeros above: the responses to a unit at each place."""
        rho = self.transform.rho
        units = torch.eye(self.event_shape[0], dtype=rho.dtype, device=rho.device)
        return linear_recurrence(rho.unsqueeze(-2), units).mT

    @property
    def total_correlation(self) -> Tensor:
        r"""The KL divergence from the product of the marginals, :math:`-\tfrac12 \sum_{t \ge 2} \log(1 - \rho_t^2)`,
        in nats, of shape ``batch_shape`` (S. Watanabe, *Information theoretical analysis of multivariate
        correlation*, 1960)."""
        return sum_shared(log_cosh(self.transform.atanh_rho), self.event_shape[0] - 1).expand(self.batch_shape)

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        # torch.randn draws the stream that torch's own normals draw, and unlike them can be mapped by torch.vmap.
        loc = self.transform.loc
        return self.transform(torch.randn(self._extended_shape(sample_shape), dtype=loc.dtype, device=loc.device))

    def log_prob(self, value: Tensor) -> Tensor:
        r"""The log density in nats, of shape ``sample_shape + batch_shape``:

        .. math:: -\tfrac12 \sum_t w_t^2 - \sum_t \log \mathrm{scale}_t - \tfrac12 \sum_{t \ge 2} \log(1 - \rho_t^2)
            - \tfrac{d}{2} \log 2\pi

        with w the whitened value (:class:`~ar1_dist.AR1Transform`). No recurrence takes part in it.

        Args:
            value (Tensor): of shape ``sample_shape + batch_shape + (d,)``, finite.

        Raises:
            ValueError: if the last dimension is not d, or (with validation) a number is not finite.
        """
        if self._validate_args:
            self._validate_sample(value)
        self.transform.check_event_shape(value)
        log_prob = functional.log_prob(value, *self.transform.arguments, atanh=self.transform.atanh)
        return log_prob.expand(broadcast_shape(self.batch_shape, log_prob.shape))

    def _validate_sample(self, value: Tensor) -> None:
        if isinstance(value, Tensor) and value.numel() == 0:
            return
        super()._validate_sample(value)
        if not torch._is_all_true(value.isfinite()):
            raise ValueError(f"Expected value (Tensor of shape {tuple(value.shape)}) to be finite, but found:\n{value}")

    def entropy(self) -> Tensor:
        r"""The entropy in nats, of shape ``batch_shape``: :math:`\tfrac{d}{2}(1 + \log 2\pi) + \sum_t \log
        \mathrm{scale}_t + \tfrac12 \sum_{t \ge 2} \log(1 - \rho_t^2)`."""
        d = int(self.event_shape[0])
        entropy = 0.5 * d * (1 + math.log(2 * math.pi)) + self.transform.log_det
        return entropy.expand(self.batch_shape)


def _describe(value: Tensor) -> str:
    is_number = value.numel() == 1 and not torch._C._functorch.is_batchedtensor(value)  # vmap has no item()
    return str(value.item() if is_number else value.size())
