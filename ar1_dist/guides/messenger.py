"""A Pyro guide with an autoregressive chain at each sample site."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import attrgetter
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import MaskedDistribution, TorchDistributionMixin
from pyro.infer.autoguide import init_to_feasible, init_to_mean
from pyro.infer.autoguide.effect import AutoNormalMessenger
from pyro.infer.autoguide.utils import deep_setattr, helpful_support_errors
from pyro.nn.module import PyroParam
from pyro.poutine.runtime import get_plates
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from ar1_dist.ar1_normal import AR1Normal
from ar1_dist.guides.checks import check_init_scale, check_store, store_name
from ar1_dist.guides.event_time import MovedimDistribution, find_time_dim
from ar1_dist.guides.rounding import warn_if_rounded

__all__ = ["AutoAR1NormalMessenger"]

_CONSTRAINTS = {"locs": constraints.real, "scales": constraints.positive, "atanh_rhos": constraints.real}


class AutoAR1NormalMessenger(AutoNormalMessenger):
    r"""A guide that puts an autoregressive normal on each real-valued sample site, along its time,

    .. math:: q(z) = \prod_{\mathrm{sites}\ s} \mathrm{AR1Normal}(z_s;\,
        \mathrm{loc}_s, \mathrm{scale}_s, \tanh\alpha_s) ,

    with parameters of their own for each element of the site's plates and of its other event dimensions, and
    independent between these. The guide's distribution is on the site itself, so that
    :class:`~pyro.infer.TraceMeanField_ELBO` takes the divergence to priors that are
    :class:`~ar1_dist.AR1Normal`, ``Independent(Normal)``, ``MultivariateNormal`` or ``LowRankMultivariateNormal`` in
    closed form, along another dimension than the last to ``Independent(Normal)``
    (:func:`~ar1_dist.assert_analytic_kl` says whether it does). Like every
    :class:`~pyro.infer.autoguide.effect.AutoMessenger` it deals with plates, subsampling and amortised plates.

    Which sites are chains, and along what:

    - A site of real numbers with an event dimension is one, or one for each index of its other event dimensions.
      Time is the only event dimension of more than one element, or what the prior's type says: the first event
      dimension of ``GaussianHMM`` and its kin, which are (time, features), the last one of an
      :class:`~ar1_dist.AR1Normal`. Where neither tells it is the last one, with a warning; say it by ``time_dim``.
      A chain of one element is none.
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
        ...         level = pyro.sample("level", AR1Normal(torch.zeros(100), 1.0, 0.9))
        ...         pyro.sample("x", dist.Normal(level, 1.0).to_event(1), obs=torch.ones(8, 100))
        >>> guide = AutoAR1NormalMessenger(model)
        >>> assert_analytic_kl(model, guide)
        >>> guide.locs.level.shape, guide.atanh_rhos.level.shape
        (torch.Size([8, 100]), torch.Size([8, 99]))

    Args:
        model (Callable): a Pyro model.
        init_loc_fn (Callable): initial value of each site, one of Pyro's initialisation functions.
        init_scale (float): initial standard deviation of each coordinate, positive. Correlations start at 0.
        amortized_plates (tuple of str): names of the plates whose elements share their parameters.
        time_dim (int or dict): the event dimension that is time, negative, such as -2 for events (time, features);
            for all sites, or from the names of sites to those of each.

    Raises:
        ValueError: if ``init_scale`` is not a positive, finite float or ``time_dim`` not as above; at a call, if
            ``time_dim`` is not an event dimension of a site, or a site has another shape than at the first call or in
            the state that was loaded.

    Note:
        The guide draws the sites that it drew at its first call, or that are in the ``state_dict`` that it loaded
        before, and no others: that call needs the data, and the model draws what is observed in it and not later, as
        in :class:`~pyro.infer.Predictive`, or what a longer model has new. A warning names those sites.

    Note:
        Parameters are ``locs.<site>``, ``scales.<site>`` and ``atanh_rhos.<site>``, of the site's shape (the last of
        these with one element less along time), made at the first call. A prior under ``.mask(...)`` has its chain
        masked alike, as :func:`pyro.poutine.mask` masks both.

    Note:
        Of an :class:`~pyro.infer.autoguide.AutoContinuous` it has ``median``, ``quantiles`` and ``call``, whose
        arguments are the model's. It has no vector of all latent variables, and so no ``latent_dim``,
        ``sample_latent``, ``get_base_dist`` and ``get_transform``, nor neural transport; ``get_posterior`` is of one
        site.
    """

    def __init__(
        self,
        model: Callable,
        *,
        init_loc_fn: Callable = init_to_mean(fallback=init_to_feasible),  # noqa: B008 (a function, as in Pyro)
        init_scale: float = 0.1,
        amortized_plates: tuple[str, ...] = (),
        time_dim: int | dict[str, int] | None = None,
    ) -> None:
        check_init_scale(init_scale)
        for dim in time_dim.values() if isinstance(time_dim, dict) else (-1 if time_dim is None else time_dim,):
            if not isinstance(dim, int) or isinstance(dim, bool) or dim >= 0:
                raise ValueError(f"time_dim must be a negative integer, or a dict of these by site; got {time_dim!r}.")
        super().__init__(model, init_loc_fn=init_loc_fn, init_scale=init_scale, amortized_plates=amortized_plates)
        self._given_time_dim = time_dim
        self._latents: set[str] = set()  # the sites that the guide draws, of which there are no more once it is made
        self._made = False
        self._loaded: set[str] = set()  # of these, those that were loaded and not met since
        self._in_store: dict[str, bool] = {}  # whether Pyro's store had their parameters already
        self._levels: Tensor | None = None
        self._told: set[str] = set()
        self._rounded: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("trace", None)  # a guide that was not called yet has none
        return state

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]  # as Pyro's own
        if self._loaded:
            check_store(self)
        values = super().__call__(*args, **kwargs)
        if not self._made:
            self._warn_of_the_first_call()
        self._made = True
        return values

    def _warn_of_the_first_call(self) -> None:
        if len(set(self._in_store.values())) > 1:
            new = [name for name, in_store in self._in_store.items() if not in_store]
            self._warn(
                f"Pyro's parameter store had parameters for other sites, and none for {new}: if these are data, call "
                "the guide with them first"
            )
        given = set(self._given_time_dim) if isinstance(self._given_time_dim, dict) else set()
        if given - self._latents:
            self._warn(f"time_dim names {sorted(given - self._latents)}, which the guide does not draw")

    # which sites

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if self._is_models_own(msg):
            self._warn(f"site {name!r} was not latent when the guide was made, so that the model draws it")
            msg["stop"] = True  # nor shall a trace of the guide have it
            return
        super()._pyro_sample(msg)
        if msg["is_observed"] and name in self._latents:
            self._warn(f"site {name!r} is observed, and was latent when the guide was made: make it with the data")
        elif not msg["is_observed"] and not site_is_subsample(msg):
            self._latents.add(name)

    def _pyro_post_sample(self, msg: Any) -> None:
        if not self._is_models_own(msg):
            super()._pyro_post_sample(msg)

    def _is_models_own(self, msg: Any) -> bool:
        return self._made and not (msg["is_observed"] or site_is_subsample(msg) or msg["name"] in self._latents)

    # posteriors

    def get_posterior(self, name: str, prior: Any) -> Any:
        """The guide's distribution at a site, or while ``median`` runs its median; see Pyro's
        :class:`~pyro.poutine.guide.GuideMessenger` for how to override it."""
        if self._computing_median or not _is_real(prior.support):
            return super().get_posterior(name, prior)
        loc, scale = self._get_params(name, prior)
        time_dim = self._time_dim(name, prior)
        if time_dim is None:
            self._warn_if_rounded(name, loc, scale)
            return dist.Normal(loc, scale)
        loc, scale, atanh_rho = (
            value.movedim(time_dim, -1) for value in (loc, scale, attrgetter(name)(self.atanh_rhos))
        )
        self._warn_if_rounded(name, loc, scale, atanh_rho)
        posterior = AR1Normal(loc, scale, atanh_rho=atanh_rho).to_event(prior.event_dim - 1)
        if time_dim != -1:
            posterior = MovedimDistribution(posterior, time_dim)
        if isinstance(prior, MaskedDistribution):
            posterior = posterior.expand(prior.batch_shape).mask(prior._mask)
        return posterior

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of each latent site, and the values of the model's other sites there.

        Args:
            args, kwargs: the model's.

        Returns:
            dict: from names of sites to tensors.
        """
        return super().median(*args, **kwargs)

    @torch.no_grad()
    def quantiles(self, quantiles: Iterable[float], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Quantiles of each coordinate of each latent site.

        Example:

            >>> def model():
            ...     pyro.sample("state", AR1Normal(torch.zeros(5), 1.0, 0.9))
            >>> AutoAR1NormalMessenger(model, init_scale=1.0).quantiles([0.05, 0.5, 0.95])["state"][:, 0]
            tensor([-1.6449,  0.0000,  1.6449])

        Args:
            quantiles (iterable of float): n probabilities.
            args, kwargs: the model's.

        Returns:
            dict: from names of sites to tensors of the site's shape after a first dimension of size n.
        """
        self._levels = dist.Normal(0.0, 1.0).icdf(torch.as_tensor(quantiles, dtype=torch.float64))
        self._at_levels: dict[str, Tensor] = {}
        try:
            self.median(*args, **kwargs)
            return self._at_levels
        finally:
            self._levels = None
            del self._at_levels

    def _get_posterior_median(self, name: str, prior: Any) -> Tensor:
        with helpful_support_errors({"name": name, "fn": prior}):
            transform = biject_to(prior.support)
        loc, scale = self._get_params(name, prior)
        if self._levels is not None:
            levels = self._levels.to(loc).reshape(-1, *[1] * len(transform.inverse_shape(prior.shape())))
            self._at_levels[name] = transform(loc + scale * levels).expand(len(levels), *prior.shape())
        return transform(loc).clone()

    def _time_dim(self, name: str, prior: TorchDistributionMixin) -> int | None:
        """The dimension of a site's chain, or None where there is none."""
        if not _is_real(prior.support):
            self._no_chain(name, f"its support is {prior.support}: its guide is a normal transformed to that")
            return None
        if prior.event_dim == 0:
            self._no_chain(name, "its prior has no event dimension: its guide is an independent normal")
            return None
        given = self._given_time_dim
        dim = given.get(name) if isinstance(given, dict) else given
        event_shape = tuple(prior.event_shape)
        if dim is None:
            dim = find_time_dim(prior)
            if dim is None:
                dim = -1
                self._warn(
                    f"site {name!r} has events of shape {event_shape}, and is taken for a chain along the last "
                    "dimension. Say by time_dim which one is time"
                )
        elif -dim > prior.event_dim:
            raise ValueError(
                f"{type(self).__name__}: time_dim {dim} is no event dimension of site {name!r}, whose events have "
                f"shape {event_shape}. Give a dict by names of sites."
            )
        if event_shape[dim] == 1:
            self._no_chain(name, f"its time, dimension {dim} of {event_shape}, has one element")
        return dim

    def _no_chain(self, name: str, reason: str) -> None:
        self._warn(f"site {name!r} is no chain, for {reason}")

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            warnings.warn(f"{type(self).__name__}: {text}.", stacklevel=2)

    def _warn_if_rounded(self, name: str, *parameters: Tensor) -> None:
        if name not in self._rounded and warn_if_rounded(type(self).__name__, f"site {name!r}", *parameters):
            self._rounded.add(name)

    # parameters

    def _get_params(self, name: str, prior: Any) -> tuple[Tensor, Tensor]:
        """The location and the scale at a site, made at the first call; ``atanh_rhos`` has the rest of a chain."""
        transform = biject_to(prior.support)
        event_dim = prior.event_dim if _is_real(prior.support) else transform.domain.event_dim
        time_dim = self._time_dim(name, prior)
        try:
            self._unconstrained("locs", name)
        except AttributeError:
            self._make_params(name, prior, event_dim, time_dim)
        if name in self._loaded:
            self._set_event_dim(name, event_dim)
        self._check_shapes(name, prior, event_dim, time_dim)
        return attrgetter(name)(self.locs), attrgetter(name)(self.scales)

    def _unconstrained(self, group: str, name: str) -> Tensor:
        """A parameter in its whole shape, whatever plates there are around."""
        return attrgetter(f"{group}.{name}_unconstrained")(self)

    @torch.no_grad()
    def _make_params(self, name: str, prior: TorchDistributionMixin, event_dim: int, time_dim: int | None) -> None:
        if not all(plate.vectorized for plate in get_plates()):
            raise NotImplementedError(
                f"{type(self).__name__}: site {name!r} is in a sequential plate, not a vectorised one."
            )
        self._in_store[name] = store_name(self, f"locs.{name}") in pyro.get_param_store()
        value = self.init_loc_fn({"name": name, "fn": prior}).detach()
        loc: Tensor = self._adjust_plates(biject_to(prior.support).inv(value), event_dim)
        values = {"locs": loc, "scales": torch.full_like(loc, self._init_scale)}
        if time_dim is not None:
            values["atanh_rhos"] = torch.zeros_like(loc).narrow(time_dim, 1, loc.shape[time_dim] - 1)
        for group, init in values.items():
            constraint = constraints.independent(_CONSTRAINTS[group], event_dim)
            deep_setattr(self, f"{group}.{name}", PyroParam(init, constraint, event_dim=event_dim))

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

    def _check_shapes(self, name: str, prior: TorchDistributionMixin, event_dim: int, time_dim: int | None) -> None:
        """Parameters would broadcast to some of the shapes that a site can have at a later call."""
        shape = list(biject_to(prior.support).inverse_shape(prior.shape()))
        for plate in get_plates():
            dim = (plate.dim or 0) - event_dim
            if -dim <= len(shape):
                shared = plate.name in (*self._outer_plates, *self.amortized_plates)
                shape[dim] = 1 if shared else plate.full_size or plate.size
        while len(shape) > event_dim and shape[0] == 1:
            del shape[0]
        made = tuple(self._unconstrained("locs", name).shape)
        if made != tuple(shape):
            source = (
                "Pyro's parameter store has parameters of" if self._in_store.get(name) else "the guide was made for"
            )
            raise ValueError(
                f"{type(self).__name__}: site {name!r} has shape {tuple(shape)}, and {source} shape {made} (of all "
                "elements of its plates, without those whose elements share parameters)."
            )
        if time_dim is not None:
            shape[time_dim] = shape[time_dim] - 1  # not in place: a tensor, in a trace
            made = tuple(self._unconstrained("atanh_rhos", name).shape)
            if made != tuple(shape):
                raise ValueError(
                    f"{type(self).__name__}: site {name!r} has time_dim {time_dim} and correlations of shape "
                    f"{tuple(shape)}, and the guide was made for such of shape {made}, along another dimension."
                )

    # loading

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        made = self._made
        keys = super().load_state_dict(state_dict, strict, assign)
        self._made &= strict or made  # the first call makes what the state lacks
        return keys

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if not self._made and not self._latents:
            for key, value in state_dict.items():
                group, _, leaf = key.removeprefix(prefix).partition(".")
                if key.startswith(prefix) and group in _CONSTRAINTS and leaf.endswith("_unconstrained"):
                    name = leaf.removesuffix("_unconstrained")
                    param = PyroParam(torch.ones_like(value), _CONSTRAINTS[group])  # to be filled
                    deep_setattr(self, f"{group}.{name}", param)
                    self._loaded.add(name)
            self._latents |= self._loaded
            self._made = bool(self._loaded)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _set_event_dim(self, name: str, event_dim: int) -> None:
        """A state does not say which dimensions are plates', from which subsamples are taken."""
        for group in _CONSTRAINTS:
            *path, leaf = f"{group}.{name}".split(".")
            try:
                module = reduce(getattr, path, self)
            except AttributeError:  # no chain
                continue
            if leaf in module._pyro_params:
                module._pyro_params[leaf] = (constraints.independent(_CONSTRAINTS[group], event_dim), event_dim)
        self._loaded.discard(name)


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))
