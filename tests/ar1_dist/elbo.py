"""Programs with one site, one of them solvable exactly, and estimators of their losses."""

import numpy as np
import pyro
import pyro.distributions as dist
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

from ar1_dist import AR1Normal

from . import reference
from .cases import Case

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


def chain_sites(guide, *args) -> dict[str, dict]:
    trace = poutine.trace(guide).get_trace(*args)
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not site["is_observed"]}


class Conjugate:
    """A chain, or a plate of chains, seen with independent normal noise; the answer by dense linear algebra.

    The posterior's precision is tridiagonal too, so that it is an AR1Normal; at it the importance weight of every draw
    is the evidence.

    Args:
        rows (int, optional): of the plate; none without it.
        d (int): size of the chains.
    """

    noise = 0.7

    def __init__(self, rows: int | None = None, d: int = 3) -> None:
        case = Case(d)
        self.rows = rows
        self.prior = case.parameters()
        covariance = reference.covariance(case.arrays())
        shape = (d,) if rows is None else (rows, d)
        data = np.random.default_rng(2).normal(size=shape)
        self.data = torch.from_numpy(data)
        self.cov = np.linalg.inv(np.linalg.inv(covariance) + np.eye(d) / self.noise**2)
        prior_loc = case.arrays()["loc"]
        self.loc = (np.linalg.solve(covariance, prior_loc) + data / self.noise**2) @ self.cov
        evidence = scipy.stats.multivariate_normal(prior_loc, covariance + self.noise**2 * np.eye(d))
        self.log_evidence = evidence.logpdf(data)  # of each row
        self.scale = np.sqrt(np.diagonal(self.cov))
        self.rho = np.diagonal(self.cov, 1) / self.scale[:-1] / self.scale[1:]
        self.atanh_rho = np.arctanh(self.rho)

    def model(self, subsample: torch.Tensor | None = None) -> None:
        if self.rows is None:
            self._row(self.data)
        else:
            with pyro.plate("rows", self.rows, subsample=subsample, dim=-1) as index:
                self._row(self.data[index])

    def _row(self, data: torch.Tensor) -> None:
        z = pyro.sample("z", AR1Normal(**self.prior))
        pyro.sample("x", dist.Normal(z, self.noise).to_event(1), obs=data)

    def __call__(self, *args) -> None:
        self.model(*args)

    def exact_guide(self) -> None:
        """The posterior, as parameters, of a plate of chains."""
        loc, scale, rho = (
            pyro.param(name, torch.from_numpy(getattr(self, name).copy())) for name in ("loc", "scale", "rho")
        )
        with pyro.plate("rows", self.rows, dim=-1):
            pyro.sample("z", AR1Normal(loc, scale, rho))
