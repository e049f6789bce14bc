"""A Pyro guide with one autoregressive chain over all latent variables."""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.autoguide import AutoContinuous, init_to_median
from pyro.nn.module import PyroParam
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import unwrap
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ar1_dist.ar1_normal import AR1Normal
from ar1_dist.guides.checks import check_init_scale, check_store, layout_of
from ar1_dist.guides.event_time import find_time_dim
from ar1_dist.guides.rounding import warn_if_rounded
from ar1_dist.transforms import AR1Transform

__all__ = ["AutoAR1Normal"]


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
        ValueError: if ``init_scale`` is not a positive, finite float; at a call, if a latent site is in a subsampled
            plate, or has another shape than at the first call or in the state that was loaded.

    Note:
        Neighbours are neighbours in the flattened vector. Of several sites the last coordinate of one and the first
        of the next are a pair too, and of an event of shape (T, k) it is the k that run first, which a warning says:
        give the model its time as the last dimension, or take :class:`~ar1_dist.AutoAR1NormalMessenger`.

    Note:
        The guide draws the sites that are latent at its first call, and never those that are observed then: that call
        needs the data. A model of more time steps needs a guide of its own, or its new ones in sites of their own,
        which the model then draws. To see to that the guide runs the model again where the arguments' shapes, or
        integers and strings among them, have changed since the last call. A ``state_dict`` can be loaded before the
        first call.

    Note:
        In a subsampled plate latent variables would have no parameters of their own, but share those of their place
        in the batch; :class:`~ar1_dist.AutoAR1NormalMessenger` gives each its own. Train with
        :class:`~pyro.infer.Trace_ELBO`: :class:`~pyro.infer.TraceMeanField_ELBO` leaves out the Jacobians of
        constrained sites of any ``AutoContinuous``.
    """

    scale: Any  # a PyroParam, which reads as a tensor
    scale_constraint = constraints.independent(constraints.softplus_positive, 1)

    def __init__(self, model: Callable, init_loc_fn: Callable = init_to_median, init_scale: float = 0.1) -> None:
        check_init_scale(init_scale)
        self._init_scale = init_scale
        self._is_rounded = False
        super().__init__(model, init_loc_fn=init_loc_fn)
        self._layout: Any = None  # of the arguments for which shapes were checked last
        self._told: set[str] = set()

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        try:
            if self._prototype_frames:
                _check_plates(self._trace_model(*args, **kwargs))
            if "loc" in self._parameters:
                check_store(self)
            else:
                self._make_parameters(self._init_loc())
            if self.loc.shape != (self.latent_dim,):
                sites = {name: tuple(shape) for name, shape in self._unconstrained_shapes.items()}
                raise ValueError(
                    f"{type(self).__name__}: the parameters that were loaded, or are in Pyro's parameter store, are of "
                    f"{len(self.loc)} latent coordinates, and the model has {self.latent_dim}, in shapes {sites}. Does "
                    "the call lack the data?"
                )
        except ValueError:
            self.prototype_trace = None  # which the next call would take
            raise
        self._layout = layout_of((args, kwargs))
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            fn = site["fn"]
            if sum(size > 1 for size in fn.event_shape) > 1 and find_time_dim(fn) != -1:
                self._warn(
                    f"the event of site {name!r} has shape {tuple(fn.event_shape)}, and flattened it is a chain along "
                    "its last dimension. If time is another one, take AutoAR1NormalMessenger with time_dim"
                )

    def _make_parameters(self, loc: Tensor) -> None:
        self.loc = torch.nn.Parameter(loc)
        self.scale = PyroParam(torch.full_like(loc, self._init_scale), self.scale_constraint)
        self.atanh_rho = torch.nn.Parameter(loc.new_zeros(len(loc) - 1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        loc = state_dict.get(prefix + "loc")
        if loc is not None and self.prototype_trace is None:
            self._make_parameters(torch.zeros_like(loc))  # to be filled, and kept by the first call
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        model, master = self._model, self.master
        state = super().__getstate__()  # which takes them from the guide too
        self._model, self.master = model, master
        return state

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        if self.prototype_trace is not None and (args or kwargs) and not torch._C._get_tracing_state():
            self._check_layout(*args, **kwargs)
        return super().forward(*args, **kwargs)

    def _check_layout(self, *args: Any, **kwargs: Any) -> None:
        """Other arguments can lead to other sites, of which an ``AutoContinuous`` would know nothing."""
        layout = layout_of((args, kwargs))
        if layout == self._layout or self._model is None:  # a copy from a file has no model
            return
        if _is_forecasting(self.model):  # Forecaster draws itself the steps that the guide lacks
            return
        trace = self._trace_model(*args, **kwargs)
        _check_plates(trace)
        guided = dict(self.prototype_trace.iter_stochastic_nodes())
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or poutine.util.site_is_subsample(site):
                continue
            if name not in guided:
                if not site["is_observed"]:
                    self._warn(f"site {name!r} was not latent when the guide was made, so that the model draws it")
            elif site["is_observed"]:
                self._warn(f"site {name!r} is observed, and was latent when the guide was made: make it with the data")
            elif (shape := _shape(site)) != (made := _shape(guided[name])):
                raise ValueError(
                    f"{type(self).__name__}: site {name!r} has shape {shape}, and the guide was made for shape {made}."
                )
        self._layout = layout

    @torch.no_grad()
    def _trace_model(self, *args: Any, **kwargs: Any) -> Trace:
        return poutine.block(poutine.trace(self.model).get_trace)(*args, **kwargs)

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            warnings.warn(f"{type(self).__name__}: {text}.", stacklevel=2)

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of each latent site.

        Args:
            args, kwargs: the model's.

        Returns:
            dict: from names of sites to tensors.
        """
        return super().median(*args, **kwargs)

    def quantiles(self, quantiles: Sequence[float], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Quantiles of each coordinate of each latent site.

        Args:
            quantiles (sequence of float): n probabilities.
            args, kwargs: the model's.

        Returns:
            dict: from names of sites to tensors of the site's shape after a first dimension of size n.
        """
        return super().quantiles(quantiles, *args, **kwargs)

    def get_base_dist(self) -> TorchDistributionMixin:
        return dist.Normal(torch.zeros_like(self.loc), torch.ones_like(self.loc)).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> AR1Transform:
        return AR1Transform(self.loc, self.scale, atanh_rho=self.atanh_rho)

    def get_posterior(self, *args: Any, **kwargs: Any) -> AR1Normal:
        """The posterior over the unconstrained latent vector, an :class:`~ar1_dist.AR1Normal`."""
        if not self._is_rounded:
            chain = self.loc, self.scale, self.atanh_rho
            self._is_rounded = warn_if_rounded(type(self).__name__, "the latent vector", *chain)
        return AR1Normal(self.loc, self.scale, atanh_rho=self.atanh_rho)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return self.loc, self.scale


def _is_forecasting(model: Callable) -> bool:
    module = sys.modules.get("pyro.contrib.forecast")  # which would take a second to import, for models of it alone
    return module is not None and isinstance(unwrap(model), module.ForecastingModel)


def _shape(site: Any) -> tuple[int, ...]:
    return tuple(site["value"].shape)


def _check_plates(trace: Trace) -> None:
    """Raise if a latent site is in a plate of which the trace has a part, or all in another order."""
    for name, site in trace.iter_stochastic_nodes():
        for frame in () if poutine.util.site_is_subsample(site) else site["cond_indep_stack"]:
            if _is_subsampled(frame, trace):
                raise ValueError(
                    f"AutoAR1Normal: latent site {name!r} is in the subsampled plate {frame.name!r}, {frame.size} of "
                    f"{frame.full_size}, and its parameters would be those of places in the batch, not of the plate's "
                    "elements. Take AutoAR1NormalMessenger, which has parameters for each element."
                )


def _is_subsampled(frame: CondIndepStackFrame, trace: Trace) -> bool:
    if frame.full_size != frame.size:
        return True
    indices = trace.nodes[frame.name]["value"] if frame.name in trace.nodes else None
    return indices is not None and torch.as_tensor(indices).tolist() != list(range(frame.size))
