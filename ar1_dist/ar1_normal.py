r"""The first-order autoregressive normal distribution."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints

from ar1_dist import functional
from ar1_dist.constraints import open_interval
from ar1_dist.functional import log_cosh, sum_shared
from ar1_dist.hyperparameters import warn_of_plate_as_coordinates
from ar1_dist.inference import construct
from ar1_dist.inference.chain import Chain
from ar1_dist.inference.condition import Index, condition, marginal
from ar1_dist.inference.update import update_by_chain, update_by_factors
from ar1_dist.kernels import has_values
from ar1_dist.parameters import broadcast, check_type, infer_shapes, warn_of_plate
from ar1_dist.recurrence import linear_recurrence
from ar1_dist.transforms import AR1Transform
from ar1_dist.validation import or_limit, refuse_nan

__all__ = ["AR1Normal", "unwrap"]


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
    encoder* (arXiv:1909.06236). Sampling, density, entropy and the divergences to and from chains and factorised
    distributions are closed forms that take time and memory linear in d. A d×d matrix is formed in the three dense
    views alone, ``covariance_matrix``, ``precision_matrix`` and ``scale_tril``, and in the divergence to a dense
    normal; :mod:`ar1_dist.kl` says what each divergence takes.

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
            ``(..., d - 1)``, or ``(..., 1)``, 0-d or a number where it is the same for every pair. Ignored if d = 1,
            and then 0.
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
        ``arg_constraints`` are those of vectors, with an event dimension of 1, as Pyro's plates need them. A Pyro
        parameter that is one number has shape ``(1,)``, or an elementwise constraint:
        ``open_interval(-1.0, 1.0)`` of :mod:`ar1_dist.constraints`.

    Note:
        The noise of the last 32 draws is remembered, of each as long as it lives. ``log_prob`` of such a tensor, or of
        a view of all of it, takes the noise in place of the rounded value, so that it is right also where ``loc`` is so
        large that innovations are lost in it: in float32 a level of 100,000 leaves steps of 0.008. Of an equal tensor
        elsewhere, or once the draw or a parameter has changed, it is the density at the numbers as they are.

    Note:
        With the same seed, ``rsample`` draws the same noise as :class:`~torch.distributions.MultivariateNormal` with
        this ``scale_tril``, and so the same sample. The attribute ``transform`` is the
        :class:`~ar1_dist.AR1Transform` by which it does.
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "rho": constraints.independent(open_interval(-1.0, 1.0), 1),
        "atanh_rho": constraints.real_vector,
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
        transform = AR1Transform(loc, scale, rho, atanh_rho=atanh_rho)
        self._set_up(transform, transform.batch_shape, validate_args)
        self._validate_parameters()
        if has_values():
            _, scale, correlation = transform.arguments
            warn_of_plate_as_coordinates(**{"scale": scale, transform.names[-1]: correlation})

    def _set_up(self, transform: AR1Transform, batch_shape: torch.Size, validate_args: bool | None) -> None:
        """All of the constructor but the check of values. Without an argument validation is as the process's setting
        says, whenever that changes, as of torch's distributions."""
        self.transform, self._given_validate_args = transform, validate_args
        # The base class would check rho where only atanh_rho was given, and would let infinity through.
        self.arg_constraints = {}
        super().__init__(batch_shape, transform.event_shape, validate_args=validate_args)
        # Those of the parameters that were given: Pyro's reparametrisers rebuild a distribution from all that it names.
        self.arg_constraints = {name: type(self).arg_constraints[name] for name in transform.names}

    def _validate_parameters(self) -> None:
        if not (self._validate_args and has_values()):
            return
        for name, value in self.transform.parameters().items():
            constraint = self.arg_constraints[name]
            if value.numel() == 0:
                continue  # nothing to check, and torch's independent constraints can't
            if not (torch._is_all_true(value.isfinite()) and torch._is_all_true(constraint.check(value))):
                raise ValueError(
                    f"Expected parameter {name} (Tensor of shape {tuple(value.shape)}) of distribution {self!r} to be "
                    f"finite and to satisfy the constraint {constraint!r}, but found invalid values:\n{value}"
                )

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "AR1Normal":
        new = self._get_checked_instance(AR1Normal, _instance)
        batch_shape = self.loc.expand(torch.Size(batch_shape) + self.event_shape).shape[:-1]
        new._set_up(self.transform, batch_shape, self._given_validate_args)
        return new

    @staticmethod
    def infer_shapes(  # type: ignore[override]  # Pyro's has no names
        loc: Sequence[int],
        scale: Sequence[int],
        rho: Sequence[int] | None = None,
        atanh_rho: Sequence[int] | None = None,
    ) -> tuple[torch.Size, torch.Size]:
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
        """The mean, :attr:`loc`."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The mode, :attr:`loc`."""
        return self.loc

    @property
    def stddev(self) -> Tensor:
        """:attr:`scale`, of shape ``batch_shape + (d,)``."""
        return self.transform.scale.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """The marginal variance, of shape ``batch_shape + (d,)``."""
        return self.transform.scale.square().expand(self.batch_shape + self.event_shape)

    @property
    def scale_tril(self) -> Tensor:
        r"""The lower Cholesky factor of the covariance, of shape ``batch_shape + (d, d)``, in closed form:
        :math:`L_{ij} = \mathrm{scale}_i \sqrt{1 - \rho_j^2} \prod_{j < t \le i} \rho_t` for :math:`i \ge j`, where
        the root is 1 for j = 1."""
        innovation_scale = self._per_pair(self.transform.atanh_rho).cosh().reciprocal()
        column = torch.nn.functional.pad(innovation_scale, (1, 0), value=1.0)
        tril = self.transform.scale.unsqueeze(-1) * self._correlation_tril() * column.unsqueeze(-2)
        refuse_nan("scale_tril", tril, **self.transform.parameters())
        return self._expand(tril, 2)

    @property
    def covariance_matrix(self) -> Tensor:
        r"""The covariance :math:`\mathrm{scale}_i\, \mathrm{scale}_j \prod_{i < t \le j} \rho_t`, of shape
        ``batch_shape + (d, d)``."""
        tril, scale = self._correlation_tril(), self.transform.scale
        covariance = scale.unsqueeze(-1) * (tril + tril.tril(-1).mT) * scale.unsqueeze(-2)
        refuse_nan("covariance_matrix", covariance, **self.transform.parameters())
        return self._expand(covariance, 2)

    @property
    def precision_matrix(self) -> Tensor:
        r"""The inverse of the covariance, tridiagonal, of shape ``batch_shape + (d, d)``.

        With :math:`\alpha_t = \operatorname{artanh}\rho_t`, and :math:`\alpha_1 = \alpha_{d+1} = 0`,

        .. math:: P_{tt} = \frac{1 + \sinh^2\alpha_t + \sinh^2\alpha_{t+1}}{\mathrm{scale}_t^2}, \qquad
            P_{t,t-1} = P_{t-1,t} = -\frac{\sinh 2\alpha_t}{2\, \mathrm{scale}_t\, \mathrm{scale}_{t-1}} .
        """
        atanh_rho, scale = self._per_pair(self.transform.atanh_rho), self.transform.scale
        ratio = torch.nn.functional.pad(atanh_rho.sinh().square(), (1, 1))  # rho^2/(1 - rho^2)
        neighbours = torch.diag_embed(-(2 * atanh_rho).sinh() / 2, offset=-1)
        standardised = torch.diag_embed(1 + ratio[..., :-1] + ratio[..., 1:]) + neighbours + neighbours.mT
        precision = standardised / scale.unsqueeze(-1) / scale.unsqueeze(-2)
        refuse_nan("precision_matrix", precision, **self.transform.parameters())
        return self._expand(precision, 2)

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

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:
        """A reparametrised sample, of shape ``sample_shape + batch_shape + (d,)``."""
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
        if self._validate_args and has_values():
            self._validate_sample(value)
        self.transform.check_event_shape(value)
        noise, arguments, atanh = self.transform.recall(value), self.transform.arguments, self.transform.atanh
        if noise is None:
            log_prob = functional.log_prob(value, *arguments, atanh=atanh)
        else:
            log_prob = functional.log_prob_of_draw(value, *arguments, noise, atanh=atanh)
        given = {"value": value, **self.transform.parameters()}
        log_prob = or_limit("log_prob", log_prob, lambda: self._limit_of_log_prob(value), self._validate_args, **given)
        return log_prob.expand(broadcast_shape(self.batch_shape, log_prob.shape))

    def _limit_of_log_prob(self, value: Tensor) -> Tensor:
        """Infinite on what a scale of 0 or a correlation of 1 or -1 leaves of the space, minus infinite off it."""
        loc, scale, _ = self.transform.arguments
        atanh_rho, is_exact = self.transform.atanh_rho, scale == 0
        u = (value - loc) / torch.where(is_exact, 1.0, scale)
        is_off = is_exact & (value != loc) | value.isinf()
        is_apart = atanh_rho.isinf() & (u[..., 1:] != atanh_rho.sign() * u[..., :-1])
        is_singular = is_exact.any(-1) | atanh_rho.isinf().any(-1)
        return torch.where(is_singular & ~is_off.any(-1) & ~is_apart.any(-1), math.inf, -math.inf)

    def _validate_sample(self, value: Tensor) -> None:
        if isinstance(value, Tensor):
            check_type(value)
            if value.numel() == 0:
                return
        super()._validate_sample(value)
        if not torch._is_all_true(value.isfinite()):
            raise ValueError(f"Expected value (Tensor of shape {tuple(value.shape)}) to be finite, but found:\n{value}")

    def entropy(self) -> Tensor:
        r"""The entropy in nats, of shape ``batch_shape``: :math:`\tfrac{d}{2}(1 + \log 2\pi) + \sum_t \log
        \mathrm{scale}_t + \tfrac12 \sum_{t \ge 2} \log(1 - \rho_t^2)`."""
        d = int(self.event_shape[0])
        constant = 0.5 * d * (1 + math.log(2 * math.pi))
        _, *arguments = self.transform.arguments
        entropy = functional.log_det(*arguments, d=d, atanh=self.transform.atanh, constant=constant)
        refuse_nan("entropy", entropy, **self.transform.parameters())
        return entropy if entropy.shape == self.batch_shape else entropy.expand(self.batch_shape)

    @staticmethod
    def from_times(
        times: Tensor,
        loc: Tensor,
        scale: Tensor | float,
        timescale: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> "AR1Normal":
        r"""An Ornstein–Uhlenbeck process seen at uneven times,

        .. math:: \rho_t = e^{-D_t/\mathrm{timescale}}, \qquad D_t = \mathrm{time}_t - \mathrm{time}_{t-1}, \qquad
            \operatorname{artanh} \rho_t = -\tfrac12 \log \tanh \frac{D_t}{2\, \mathrm{timescale}} ,

        so that :math:`\operatorname{Corr}(z_i, z_j) = \exp(-|\mathrm{time}_j - \mathrm{time}_i|/\mathrm{timescale})`.
        The latter form is as precise for the shortest gap as for the longest.

        Example:

            >>> q = AR1Normal.from_times(torch.tensor([0.0, 1.0, 5.0]), torch.zeros(3), 2.0, timescale=4.0)
            >>> q.rho
            tensor([0.7788, 0.3679])

        Args:
            times (Tensor): increasing along the last dimension, of shape ``(..., d)``. Its type may be an integer or a
                wider one than the parameters': differences are taken in it.
            loc (Tensor): mean, of shape ``(..., d)``.
            scale (Tensor or float): marginal standard deviation, as for :class:`AR1Normal`.
            timescale (Tensor or float): the time in which the correlation falls by a factor of e, positive, of shape
                ``(..., 1)``, 0-d or a number; or of shape ``(..., d - 1)``, one for each gap.
            validate_args (bool): whether to check values.

        Returns:
            AR1Normal: with one correlation for each gap. Leading dimensions broadcast.

        Raises:
            ValueError: if a shape or a type is not as above, if two times are equal or decrease, or (with validation)
                if a value is not finite or not positive. A warning says where times are so large that their type
                rounds the gaps.
        """
        atanh_rho = construct.from_times(times, loc, timescale, validate_args=_is_validated(validate_args))
        warn_of_plate("scale", scale)
        return _checked(loc, scale, atanh_rho, validate_args)

    @staticmethod
    def from_transitions(
        loc: Tensor,
        coefficient: Tensor | float,
        noise_scale: Tensor | float,
        initial_scale: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> "AR1Normal":
        r"""The chain that its transitions define, stationary or not,

        .. math::

            z_1 = \mathrm{loc}_1 + \mathrm{initial\_scale}\; e_1, \qquad
            z_t - \mathrm{loc}_t = c_t\, (z_{t-1} - \mathrm{loc}_{t-1}) + n_t\, e_t, \qquad e_t \sim \mathcal{N}(0, 1),

        with c the coefficient and n the noise scale: c = 1 is a random walk. Its variances are :math:`v_t = c_t^2
        v_{t-1} + n_t^2`, and :math:`\operatorname{artanh} \rho_t = \operatorname{arsinh}(c_t \sqrt{v_{t-1}}/n_t)`.

        Example:

            >>> q = AR1Normal.from_transitions(torch.zeros(4), coefficient=1.0, noise_scale=1.0, initial_scale=1.0)
            >>> q.variance
            tensor([1.0000, 2.0000, 3.0000, 4.0000])

        Args:
            loc (Tensor): mean, of shape ``(..., d)``.
            coefficient (Tensor or float): any real number, of shape ``(..., d - 1)``, or ``(..., 1)``, 0-d or a number
                where it is the same for every step.
            noise_scale (Tensor or float): standard deviation of each step's noise, positive, of the same shapes.
            initial_scale (Tensor or float): standard deviation of the first coordinate, positive, of shape
                ``(..., 1)``, 0-d or a number. With ``validate_args=False`` it may be 0: the first coordinate is known
                exactly, and the chain can be drawn and updated by readings, but has no density.
            validate_args (bool): whether to check values.

        Returns:
            AR1Normal: with one scale for each coordinate and one correlation for each pair. Leading dimensions
            broadcast.

        Raises:
            ValueError: if a shape or a type is not as above, or (with validation) a value is not, or the variance
                overflows, as that of an explosive chain does in the end.
        """
        scale, atanh_rho = construct.from_transitions(
            loc, coefficient, noise_scale, initial_scale, validate_args=_is_validated(validate_args)
        )
        return _checked(loc, scale, atanh_rho, validate_args)

    def marginal(self, index: Index) -> "AR1Normal":
        r"""The distribution of some of the coordinates, which is a chain again: the correlations over a gap multiply.

        Example:

            >>> AR1Normal(torch.zeros(5), 2.0, 0.5).marginal([0, 1, 4]).rho
            tensor([0.5000, 0.1250])

        Args:
            index (sequence of int, sequence of bool, Tensor or slice): increasing coordinates, negative ones counted
                from the end, or a mask of shape ``(d,)``; the same for the whole batch.

        Returns:
            AR1Normal: of event shape ``(n,)``; this distribution itself if n = d. A shared scale stays shared.

        Raises:
            ValueError: if index names no coordinate (there is no event of size 0), does not increase or is out of
                range.
        """
        chain = self.transform.chain
        of_some = marginal(chain, index)
        return self if of_some is chain else self._like(of_some, self.batch_shape)

    def condition(self, index: Index, value: Tensor) -> "AR1Normal":
        r"""The distribution of the other coordinates given some, which is a chain again: bridges between the given
        ones, independent of each other. It takes time and memory linear in d, and is differentiable in the value and
        in the parameters.

        Example:

            >>> walk = AR1Normal.from_transitions(torch.zeros(5), 1.0, noise_scale=1.0, initial_scale=1.0)
            >>> bridge = walk.condition([0, 4], torch.tensor([0.0, 4.0]))
            >>> bridge.mean, bridge.variance
            (tensor([1.0000, 2.0000, 3.0000]), tensor([0.7500, 1.0000, 0.7500]))

        Args:
            index (sequence of int, sequence of bool, Tensor or slice): the coordinates that are given, as for
                :meth:`marginal`.
            value (Tensor): their values, of shape ``(..., n)``. Leading dimensions broadcast with ``batch_shape``.

        Returns:
            AR1Normal: of event shape ``(d - n,)``, over the coordinates that index does not name, in their order;
            given nothing, this distribution, expanded to the batch shape of the value.

        Raises:
            ValueError: if everything is given (there is no event of size 0; the density is ``log_prob(value)``), if
                index is not as above, or if value does not fit it or (with validation) is not finite.
        """
        chain, leading = self.transform.chain, value.shape[:-1] if isinstance(value, Tensor) else torch.Size()
        batch_shape = broadcast(self.batch_shape, value=leading)
        of_others = condition(chain, index, value, validate_args=self._validate_args and has_values())
        if of_others is chain:
            return self.expand(batch_shape)
        refuse_nan("condition", *of_others, value=value, **self.transform.parameters())
        return self._like(of_others, batch_shape)

    def conjugate_update(self, other: Distribution) -> tuple["AR1Normal", Tensor]:
        r"""The product with another distribution over the same space, normalised, and its normaliser, in the protocol
        of Pyro's ``GaussianHMM.conjugate_update``:

        .. math:: q(z)\, p(z) = Z\, \mathrm{updated}(z), \qquad \log Z = \log \int q(z)\, p(z)\, dz .

        With :math:`p(z) = \prod_t \mathcal{N}(z_t; x_t, \tau_t^2)`, observations x with noise of their own, updated is
        the posterior, whose means and variances are the Kalman smoother's, and log Z is the evidence. It takes time
        and memory linear in d, by recurrences of positive terms, which stay precise over long chains in float32.

        Example:

            >>> q = AR1Normal.from_transitions(torch.zeros(3), 1.0, noise_scale=1.0, initial_scale=1.0)
            >>> noise_scale = torch.tensor([1.0, float("inf"), 1.0])  # the second one is missing
            >>> p = torch.distributions.Normal(torch.tensor([1.0, float("nan"), 3.0]), noise_scale, validate_args=False)
            >>> updated, evidence = q.conjugate_update(torch.distributions.Independent(p, 1))
            >>> updated.mean
            tensor([0.8571, 1.5714, 2.2857])
            >>> evidence
            tensor(-3.9537)

            Factors that an encoder has learnt and a prior over time make an amortised posterior, with ``rsample`` and
            with its divergence from the prior in closed form:

            >>> loc, log_scale = torch.randn(2, 16, 3)  # an encoder's output, for a batch of 16
            >>> factors = torch.distributions.Independent(torch.distributions.Normal(loc, log_scale.exp()), 1)
            >>> posterior, _ = q.conjugate_update(factors)
            >>> z, kl = posterior.rsample(), torch.distributions.kl_divergence(posterior, q)
            >>> z.shape, kl.shape
            (torch.Size([16, 3]), torch.Size([16]))

        Args:
            other (Distribution): ``Independent(Normal, 1)``, torch's or Pyro's, nested or not, or an AR1Normal, of the
                same event shape. Batch shapes broadcast. A coordinate of the normal whose scale is infinite is not
                observed: it contributes exactly 0 to the normaliser, and its loc, even NaN, touches neither values nor
                gradients. One whose scale is 0 (which needs ``validate_args=False`` there) is read without noise: the
                posterior knows it exactly, with a scale of 0, and has no density.

        Returns:
            tuple: ``(updated, log_normalizer)``, an AR1Normal and a tensor of the common batch shape.

        Raises:
            ValueError: if other is of another kind or event shape, if the batch shapes don't broadcast, or if a scale,
                a correlation or a reading is at an edge, such as infinity, where there is no posterior.
        """
        chain = self.transform.chain
        if isinstance(other, AR1Normal):
            batch_shape = self._batch_shape_with(other)
            updated, log_normalizer = update_by_chain(chain, other.transform.chain)
            given = {f"other's {name}": value for name, value in other.transform.parameters().items()}
        else:
            factors = _factors_of(other)
            batch_shape = self._batch_shape_with(other)
            updated, log_normalizer = update_by_factors(chain, factors.loc, factors.scale)
            given = {"value": factors.loc, "noise_scale": factors.scale}
        refuse_nan("conjugate_update", log_normalizer, **given, **self.transform.parameters())
        return self._like(updated, batch_shape), log_normalizer.expand(batch_shape)

    def _batch_shape_with(self, other: Distribution) -> torch.Size:
        if other.event_shape != self.event_shape:
            raise ValueError(
                f"other must have the event shape {tuple(self.event_shape)} of this distribution; got "
                f"{tuple(other.event_shape)}."
            )
        return broadcast(self.batch_shape, other=other.batch_shape)

    def _like(self, chain: Chain, batch_shape: torch.Size) -> "AR1Normal":
        """A chain that was computed from this one. Its parameters are not checked again; values will be where they are
        here."""
        new = AR1Normal.__new__(AR1Normal)
        loc, scale, atanh_rho = chain
        new._set_up(AR1Transform(loc, scale, atanh_rho=atanh_rho), batch_shape, self._given_validate_args)
        return new


def unwrap(fn: Distribution) -> tuple[Distribution, int]:
    """The innermost distribution, and how many of its batch dimensions are reinterpreted."""
    if not isinstance(fn, Independent):
        return fn, 0
    innermost, ndims = unwrap(fn.base_dist)
    return innermost, ndims + fn.reinterpreted_batch_ndims


def _factors_of(other: Distribution) -> Normal:
    base, ndims = unwrap(other)
    if not isinstance(base, Normal) or ndims != 1:
        raise ValueError(
            "other must be an AR1Normal or an Independent(Normal, 1); got "
            f"{type(base).__name__} with {ndims} reinterpreted dimensions."
        )
    return base


def _checked(loc: Tensor, scale: Tensor | float, atanh_rho: Tensor, validate_args: bool | None) -> AR1Normal:
    """The constructor, but for its warning, which is for what a user gave."""
    chain, transform = AR1Normal.__new__(AR1Normal), AR1Transform(loc, scale, atanh_rho=atanh_rho)
    chain._set_up(transform, transform.batch_shape, validate_args)
    chain._validate_parameters()
    return chain


def _is_validated(validate_args: bool | None) -> bool:
    return (Distribution._validate_args if validate_args is None else validate_args) and has_values()


def _describe(value: Tensor) -> str:
    is_number = value.numel() == 1 and not torch._C._functorch.is_batchedtensor(value)  # vmap has no item()
    return str(value.item() if is_number else value.size())
