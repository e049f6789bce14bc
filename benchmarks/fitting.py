"""What the benchmarks of guides share: Pyro's guides beside the chain's, their training, and their ELBO."""

import math
import time
from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuide,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_mean,
)
from pyro.infer.reparam import DiscreteCosineReparam

from ar1_dist import AutoAR1Normal

__all__ = ["Program", "elbo_of", "fit", "guides_of", "parameter_count"]

Program = Callable[[], object]


def guides_of(model: Program, site: str) -> dict[str, tuple[AutoGuide, Program]]:
    """Each guide by its name, with the model that it is a guide of: in frequencies for two of them."""

    def in_frequencies(smooth: float) -> Program:
        return poutine.reparam(model, config={site: DiscreteCosineReparam(smooth=smooth)})

    classes = {
        "AutoAR1Normal": (AutoAR1Normal, model),
        "AutoDiagonalNormal": (AutoDiagonalNormal, model),
        "AutoLowRankMultivariateNormal": (AutoLowRankMultivariateNormal, model),
        "AutoMultivariateNormal": (AutoMultivariateNormal, model),
        "AutoNormal, DiscreteCosineReparam(smooth=0)": (AutoNormal, in_frequencies(0.0)),
        "AutoNormal, DiscreteCosineReparam(smooth=1)": (AutoNormal, in_frequencies(1.0)),
    }
    return {name: (cls(guided, init_loc_fn=init_to_mean), guided) for name, (cls, guided) in classes.items()}


def fit(guide: AutoGuide, model: Program, steps: int, particles: int, lr: float, decay: float = 1e-3) -> float:
    """Train with Adam, its rate falling by the factor of decay in the end; seconds of the processor per step."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    optimizer = pyro.optim.ClippedAdam({"lr": lr, "lrd": decay ** (1 / steps), "clip_norm": math.inf})
    estimator = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, optimizer, estimator)
    svi.step()
    start = time.process_time()
    for _ in range(steps - 1):
        svi.step()
    return (time.process_time() - start) / (steps - 1)


def elbo_of(guide: AutoGuide, model: Program, draws: int = 1000, rounds: int = 20) -> float:
    """The ELBO in nats, a mean over so many draws in each round. For each draw at once the density of a dense normal
    takes a copy of its matrix."""
    pyro.set_rng_seed(1)
    estimator = Trace_ELBO(num_particles=draws, vectorize_particles=True, max_plate_nesting=0)
    with torch.no_grad():
        return -sum(estimator.loss(model, guide) for _ in range(rounds)) / rounds


def parameter_count(guide: AutoGuide) -> int:
    return sum(parameter.numel() for parameter in guide.parameters())
