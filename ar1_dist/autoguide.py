r"""Pyro guides whose posterior is an autoregressive chain.

======================================  ==========================================================================
guide                                   posterior
======================================  ==========================================================================
:class:`~ar1_dist.AutoAR1Normal`        one chain over all latent variables, flattened and unconstrained
:class:`AutoAR1NormalMessenger`         a chain at each real-valued sample site, on the site itself: analytic KL
======================================  ==========================================================================
"""

import warnings
from collections.abc import Callable
from operator import attrgetter

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import MaskedDistribution, TorchDistributionMixin
from pyro.infer.autoguide import AutoContinuous, init_to_feasible, init_to_mean, init_to_median
from pyro.infer.autoguide.effect import AutoNormalMessenger
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn.module import PyroParam
from pyro.poutine.runtime import get_plates
from torch import Tensor

from ar1_dist.ar1_normal import AR1Normal
from ar1_dist.rounding import warn_if_rounded
from ar1_dist.transforms import AR1Transform

__all__ = ["AutoAR1Normal", "AutoAR1NormalMessenger"]


class AutoAR1Normal(AutoContinuous):
    r"""A guide with one autoregressive normal over the whole latent vector,

    .. math:: q(z) = \mathrm{AR1Normal}(z;\, \mathrm{loc}, \mathrm{scale}, \tanh \alpha), \qquad
        \mathrm{loc} \in \mathbb{R}^d,\ \mathrm{scale} \in \mathbb{R}_+^d,\ \alpha \in \mathbb{R}^{d-1},

    where z holds every latent variable of the model, unconstrained, flattened and in the model's order: a scale for
    each coordinate and a correlation for each neighbouring pair. The posterior of a latent Gauss–Markov chain that is
    observed with independent normal noise is in this family. A step takes time and memory linear in d, as it does for
    :class:`~pyro.infer.autoguide.AutoDiagonalNormal`, which this is at :math:`\alpha = 0`; it has 3 d - 1 parameters
    where :class:`~pyro.infer.autoguide.AutoMultivariateNormal` has d (d + 5)/2 or more.

    Example:

        >>> import pyro
        >>> def model():
        ...     z = pyro.sample("z", AR1Normal(torch.zeros(100), 1.0, 0.9))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(100))
        >>> guide = AutoAR1Normal(model)
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
        >>> loss = svi.step()
        >>> guide.get_posterior()
        AR1Normal(loc: torch.Size([100]), scale: torch.Size([100]), atanh_rho: torch.Size([99]))

    Args:
        model (Callable): a Pyro model.
        init_loc_fn (Callable): initial value of each site, one of Pyro's initialisation functions.
        init_scale (float): initial standard deviation of each unconstrained coordinate, positive. Correlations start
            at 0.

    Raises:
        ValueError: if ``init_scale`` is not a positive float.

    Note:
        Neighbours are neighbours in the flattened vector. Of several sites the last coordinate of one and the first
        of the next are a pair too, and of a site of shape (T, k) it is the k that run first: give the model its time
        as the last dimension.

    Note:
        As for every :class:`~pyro.infer.autoguide.AutoContinuous`, latent variables inside a subsampled plate have no
        parameters of their own; :class:`AutoAR1NormalMessenger` has. Train with
        :class:`~pyro.infer.Trace_ELBO`: :class:`~pyro.infer.TraceMeanField_ELBO` leaves out the Jacobians of
        constrained sites of any ``AutoContinuous``.
    """

    scale_constraint = constraints.independent(constraints.softplus_positive, 1)

    def __init__(self, model: Callable, init_loc_fn: Callable = init_to_median, init_scale: float = 0.1) -> None:
        if not isinstance(init_scale, float) or not init_scale > 0:
            raise ValueError(f"init_scale must be a positive float; got {init_scale!r}.")
        self._init_scale = init_scale
        self._is_rounded = False
        super().__init__(model, init_loc_fn=init_loc_fn)

    def _setup_prototype(self, *args, **kwargs):
        super()._setup_prototype(*args, **kwargs)
        self.loc = torch.nn.Parameter(self._init_loc())
        self.scale = PyroParam(torch.full_like(self.loc, self._init_scale), self.scale_constraint)
        self.atanh_rho = torch.nn.Parameter(self.loc.new_zeros(self.latent_dim - 1))

    def get_base_dist(self):
        return dist.Normal(torch.zeros_like(self.loc), torch.ones_like(self.loc)).to_event(1)

    def get_transform(self, *args, **kwargs):
        return AR1Transform(self.loc, self.scale, atanh_rho=self.atanh_rho)

    def get_posterior(self, *args, **kwargs):
        """The posterior over the unconstrained latent vector, an :class:`~ar1_dist.AR1Normal`."""
        if not self._is_rounded:
            chain = self.loc, self.scale, self.atanh_rho
            self._is_rounded = warn_if_rounded(type(self).__name__, "the latent vector", *chain)
        return AR1Normal(self.loc, self.scale, atanh_rho=self.atanh_rho)

    def _loc_scale(self, *args, **kwargs):
        return self.loc, self.scale


class AutoAR1NormalMessenger(AutoNormalMessenger):
    r"""A guide that puts an autoregressive normal on each real-valued sample site, along its last event dimension,

    .. math:: q(z) = \prod_{\mathrm{sites}\ s} \mathrm{AR1Normal}(z_s;\,
        \mathrm{loc}_s, \mathrm{scale}_s, \tanh\alpha_s) ,

    with parameters of their own for each element of the site's plates and of its other event dimensions, and
    independent between these. The guide's distribution is on the site itself, so that
    :class:`~pyro.infer.TraceMeanField_ELBO` takes the divergence to priors that are
    :class:`~ar1_dist.AR1Normal`, ``Independent(Normal)``, ``MultivariateNormal`` or ``LowRankMultivariateNormal`` in
    closed form (:func:`assert_analytic_kl` says whether it does). Like every
    :class:`~pyro.infer.autoguide.effect.AutoMessenger` it deals with plates, subsampling and amortised plates.

    Which sites are chains:

    - A site of real numbers with an event dimension is one, or one for each index of its other event dimensions.
    - A site without event dimensions is none, also inside plates: a plate says that its elements are independent, and
      a guide that draws inside it can't make them otherwise. For a chain along time make time an event dimension of
      the prior, as ``.to_event(1)`` does, or use :class:`AutoAR1Normal`. It gets an independent normal on the site
      itself, whose divergence to a normal prior is in closed form too.
    - A constrained site is none. It gets the normal of
      :class:`~pyro.infer.autoguide.effect.AutoNormalMessenger`, transformed to its support.

    For sites that are no chains a warning gives the name and the reason, once. A discrete site raises, as in Pyro.

    Example:

        >>> import pyro
        >>> from ar1_dist import assert_analytic_kl
        >>> def model():
        ...     with pyro.plate("series", 8):
        ...         z = pyro.sample("z", AR1Normal(torch.zeros(100), 1.0, 0.9))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(8, 100))
        >>> guide = AutoAR1NormalMessenger(model)
        >>> assert_analytic_kl(model, guide)
        >>> guide.locs.z.shape, guide.atanh_rhos.z.shape
        (torch.Size([8, 100]), torch.Size([8, 99]))

    Args:
        model (Callable): a Pyro model.
        init_loc_fn (Callable): initial value of each site, one of Pyro's initialisation functions.
        init_scale (float): initial standard deviation of each coordinate, positive. Correlations start at 0.
        amortized_plates (tuple of str): names of the plates whose elements share their parameters.

    Raises:
        ValueError: if ``init_scale`` is not a positive float.

    Note:
        Parameters are ``locs.<site>``, ``scales.<site>`` and ``atanh_rhos.<site>``, made at the first call. A prior
        under ``.mask(...)`` has its chain masked alike, as :func:`pyro.poutine.mask` masks both.
    """

    def __init__(
        self,
        model: Callable,
        *,
        init_loc_fn: Callable = init_to_mean(fallback=init_to_feasible),  # noqa: B008 (a function, as in Pyro)
        init_scale: float = 0.1,
        amortized_plates: tuple[str, ...] = (),
    ) -> None:
        if not isinstance(init_scale, float) or not init_scale > 0:
            raise ValueError(f"init_scale must be a positive float; got {init_scale!r}.")
        super().__init__(model, init_loc_fn=init_loc_fn, init_scale=init_scale, amortized_plates=amortized_plates)
        self._told: set[str] = set()
        self._rounded: set[str] = set()

    def get_posterior(self, name, prior):
        """The guide's distribution at a site, or while ``median`` runs its median; see Pyro's
        :class:`~pyro.poutine.guide.GuideMessenger` for how to override it."""
        if not _is_real(prior.support):
            posterior = super().get_posterior(name, prior)
            self._tell(name, f"its support is {prior.support}: its guide is a normal transformed to that")
            return posterior
        if prior.event_dim == 0:
            self._tell(name, "its prior has no event dimension: its guide is an independent normal")
            loc, scale = self._get_params(name, prior)
            self._warn_if_rounded(name, loc, scale)
            return loc if self._computing_median else dist.Normal(loc, scale)
        loc, scale, atanh_rho = self._get_chain(name, prior)
        self._warn_if_rounded(name, loc, scale, atanh_rho)
        if self._computing_median:
            return loc
        posterior = AR1Normal(loc, scale, atanh_rho=atanh_rho).to_event(prior.event_dim - 1)
        if isinstance(prior, MaskedDistribution):
            posterior = posterior.expand(prior.batch_shape).mask(prior._mask)
        return posterior

    def _get_chain(self, name: str, prior: TorchDistributionMixin) -> tuple[Tensor, ...]:
        get = attrgetter(name)
        try:
            return get(self.locs), get(self.scales), get(self.atanh_rhos)
        except AttributeError:
            pass
        with torch.no_grad():
            loc = self._adjust_plates(self.init_loc_fn({"name": name, "fn": prior}).detach(), prior.event_dim)
            scale, atanh_rho = torch.full_like(loc, self._init_scale), torch.zeros_like(loc[..., 1:])
        for group, value, constraint in (
            ("locs", loc, constraints.real),
            ("scales", scale, constraints.positive),
            ("atanh_rhos", atanh_rho, constraints.real),
        ):
            vectors = constraints.independent(constraint, prior.event_dim)
            deep_setattr(self, f"{group}.{name}", PyroParam(value, vectors, event_dim=prior.event_dim))
        return self._get_chain(name, prior)

    def _adjust_plates(self, value, event_dim):
        # Pyro looks up a plate among names of plates, and so gives parameters that are made inside a plate of
        # particles a dimension for these wherever the prior depends on another site. And the mean that it starts from
        # may be the prior's own tensor, which training would change.
        value = value.clone()
        for plate in get_plates():
            dim = plate.dim - event_dim
            if plate.name in self._outer_plates and -value.dim() <= dim:
                value = value.mean(dim, keepdim=True)
        return super()._adjust_plates(value, event_dim)

    def _warn_if_rounded(self, name: str, *parameters: Tensor) -> None:
        if name not in self._rounded and warn_if_rounded(type(self).__name__, f"site {name!r}", *parameters):
            self._rounded.add(name)

    def _tell(self, name: str, reason: str) -> None:
        if name not in self._told:
            self._told.add(name)
            warnings.warn(f"{type(self).__name__}: site {name!r} is no chain, for {reason}.", stacklevel=2)


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))
