r"""A check that divergences between guide and model are taken in closed form."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import check_fully_reparametrized
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

__all__ = ["assert_analytic_kl"]


def assert_analytic_kl(model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> None:
    r"""Raise unless :class:`~pyro.infer.TraceMeanField_ELBO` takes every divergence between guide and model in
    closed form, and rightly.

    That estimator is

    .. math:: \mathbb{E}_q \log p(x \mid z) - \sum_{\mathrm{sites}\ s} \operatorname{KL}(q_s \Vert p_s)

    with each KL from :func:`torch.distributions.kl_divergence`. Where that has none, it takes
    :math:`\log q_s(z_s) - \log p_s(z_s)` at the draw instead and says nothing: the loss is right, but its gradient is
    as noisy as :class:`~pyro.infer.Trace_ELBO`'s. Reported are, by name and with the reason,

    - sites with no closed form: the pair of types is not registered, one of the two is masked by ``.mask(...)`` and
      the other is not, the prior was wrapped into an ``ExpandedDistribution``, or the guide has a
      ``TransformedDistribution``, be it by the identity;
    - sites of the guide only, which are sampled always, and of the model only, which it fails at;

    and what makes the loss itself wrong:

    - a scale or mask that is not the same in model and guide: the estimator takes the guide's;
    - a ``Delta`` with a ``log_density``, the Jacobian of a constrained site in an ``AutoContinuous``: its
      divergence leaves that out;
    - a guide's distribution that is not fully reparametrised;
    - sites in another order than the model's: the guide need not be mean field.

    Example:

        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from ar1_dist import AR1Normal
        >>> def model():
        ...     pyro.sample("z", dist.StudentT(3.0, torch.zeros(2), 1.0).to_event(1))
        >>> def guide():
        ...     pyro.sample("z", AR1Normal(torch.zeros(2), 1.0, 0.5))
        >>> assert_analytic_kl(model, guide)
        Traceback (most recent call last):
            ...
        ValueError: TraceMeanField_ELBO takes no exact divergence for this model and guide:
          'z': no closed form from AR1Normal to Independent(StudentT), so that it is sampled

    Args:
        model (Callable): a Pyro model.
        guide (Callable): a Pyro guide, a function or an autoguide.
        args, kwargs: arguments of both.

    Raises:
        ValueError: naming the sites and the reasons.

    Note:
        It runs guide and model once, as the first half of a step does: that makes parameters that there aren't yet
        and draws random numbers. What it says holds for what these arguments led to.
    """
    model_trace, guide_trace = get_importance_trace("flat", math.inf, model, guide, args, kwargs)
    latents = {name: site for name, site in model_trace.nodes.items() if _is_latent(site)}
    guides = {name: site for name, site in guide_trace.nodes.items() if site["type"] == "sample"}
    problems = []
    for name, site in latents.items():
        if name not in guides:
            problems.append(f"{name!r}: the guide has no such site, so that it fails")
        else:
            problems += [f"{name!r}: {reason}" for reason in _reasons(guides[name], site)]
    problems += [
        f"{name!r}: the model has no such site, so that its entropy is sampled"
        for name in guides
        if name not in model_trace.nodes
    ]
    orders = [[name for name in names if name in guides and name in latents] for names in (latents, guides)]
    if orders[0] != orders[1]:
        problems.append(f"the guide's order {orders[1]} is not the model's {orders[0]}: it may not be mean field")
    if problems:
        raise ValueError(
            "TraceMeanField_ELBO takes no exact divergence for this model and guide:\n  " + "\n  ".join(problems)
        )


def _is_latent(site: dict) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _reasons(guide_site: dict, model_site: dict) -> Iterator[str]:
    """Why the estimator's term at a site is not the divergence."""
    q, p = guide_site["fn"], model_site["fn"]
    try:
        check_fully_reparametrized(guide_site)
    except NotImplementedError:
        yield f"the guide's {_describe(q)} is not fully reparametrised"
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        yield f"no closed form from {_describe(q)} to {_describe(p)}{_advice(q, p)}, so that it is sampled"
        return  # and then by each one's own scale and mask
    if isinstance(kl, Tensor) and kl.shape != q.batch_shape:
        yield f"the divergence has shape {tuple(kl.shape)}, not the guide's batch shape {tuple(q.batch_shape)}"
    for name in ("scale", "mask"):
        if not _equal(guide_site[name], model_site[name]):
            yield f"its {name} differs between guide and model, and the guide's is taken for both"
    masks = [[layer._mask for layer in _layers(fn) if isinstance(layer, MaskedDistribution)] for fn in (q, p)]
    if not all(map(_equal, *masks)):
        yield "its .mask(...) differs between guide and model, and where either is masked the divergence is 0"
    for layer in _layers(q):
        if isinstance(layer, dist.Delta) and not _equal(layer.log_density, 0.0):
            yield "the divergence from a Delta leaves out its log_density, the Jacobian of a constrained site"


def _layers(fn: Distribution) -> Iterator[Distribution]:
    """A distribution, its base, the base of that, and so on."""
    yield fn
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
        yield fn


def _describe(fn: Distribution) -> str:
    *wrappers, innermost = [type(layer).__name__ for layer in _layers(fn)]
    return "".join(f"{name}(" for name in wrappers) + innermost + ")" * len(wrappers)


def _advice(q: Distribution, p: Distribution) -> str:
    layers = [list(_layers(fn)) for fn in (q, p)]
    masked, expanded, transformed = (
        [any(isinstance(layer, cls) for layer in of_one) for of_one in layers]
        for cls in (MaskedDistribution, ExpandedDistribution, dist.TransformedDistribution)
    )
    if masked[0] != masked[1]:
        return f" (only the {'guide' if masked[0] else 'model'} is masked: poutine.mask both)"
    if any(expanded):
        return " (a class without an expand method was expanded, by a plate perhaps: build it in its whole shape)"
    if any(transformed):
        return " (a transformed one has a divergence to one of equal transforms alone, be its own the identity)"
    return ""


def _equal(a: Any, b: Any) -> bool:
    """Whether two scales, masks or densities are equal everywhere; no mask is the same as True."""
    a, b = (torch.as_tensor(True if value is None else value) for value in (a, b))
    return bool((a == b.to(a.device)).all())
