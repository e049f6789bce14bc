"""Programs with one site, and estimators of their losses."""

import pyro
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

ROWS = 4
PARTICLES = {
    "one particle": {},
    "particles": {"num_particles": 3},
    "vectorized particles": {"num_particles": 3, "vectorize_particles": True},
}


def sample(fn, plate=True, scale=1.0, mask=True):
    """A program with one site."""

    def program():
        with poutine.scale(scale=scale), poutine.mask(mask=mask):
            if plate:
                with pyro.plate("rows", ROWS):
                    pyro.sample("z", fn)
            else:
                pyro.sample("z", fn)

    return program


def estimator_of(elbo, **options) -> pyro.infer.ELBO:
    if elbo is not RenyiELBO:
        options |= {"ignore_jit_warnings": True, "strict_enumeration_warning": False}
    return elbo(max_plate_nesting=1, **options)


def losses_of(model, guide, elbo=TraceMeanField_ELBO, **options) -> list[float]:
    """Under two seeds."""
    estimator = elbo(max_plate_nesting=2, **options)
    losses = []
    for seed in range(2):
        pyro.set_rng_seed(seed)
        losses.append(estimator.loss(model, guide))
    return losses


def true_loss(model, guide) -> float:
    pyro.set_rng_seed(0)
    return Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1).loss(model, guide)
