"""TraceMeanField_ELBO takes the registered divergences in closed form, whatever surrounds the sites."""

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer.trace_mean_field_elbo
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    JitTraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoDelta

from ar1_dist import AR1Normal

from . import reference
from .cases import Case
from .elbo import PARTICLES, estimator_of, losses_of

N, D = 4, 3
CHAIN = Case(D)
CHAINS = Case(D, (N,))
SHARED = Case(D, (N,), shared_scale=True, shared_rho=True)
MASK = torch.tensor([True, False, True, False])


class Subclass(AR1Normal):
    pass


def _normal(case: Case) -> dist.Distribution:
    parameters = case.parameters()
    return dist.Normal(parameters["loc"], parameters["scale"].expand(parameters["loc"].shape)).to_event(1)


def _dense(case: Case) -> dist.MultivariateNormal:
    covariance = torch.from_numpy(reference.covariance(case.arrays()))
    return dist.MultivariateNormal(case.parameters()["loc"], covariance_matrix=covariance)


def _low_rank(case: Case) -> dist.LowRankMultivariateNormal:
    loc = case.parameters()["loc"]
    factor = torch.stack([loc.cos(), loc.sin()], -1)
    return dist.LowRankMultivariateNormal(loc, factor, torch.full_like(loc, 0.5))


ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
STANDARD = {
    "numbers": lambda: dist.Normal(0.0, 1.0).expand([D]).to_event(1),
    "numbers, whole shape": lambda: dist.Normal(0.0, 1.0).expand([N, D]).to_event(1),
    "0-d tensors": lambda: dist.Normal(ZERO, ONE).expand([N, D]).to_event(1),
    "tensors": lambda: dist.Normal(torch.zeros(N, D), torch.ones(N, D)).to_event(1),
    "for one row": lambda: dist.Normal(torch.zeros(D), 1.0).to_event(1),
    "Independent": lambda: dist.Independent(dist.Normal(torch.zeros(D), torch.ones(D)), 1),
    "expand_by": lambda: dist.Normal(0.0, 1.0).expand_by([D]).to_event(1),
    "to_event first": lambda: dist.Normal(torch.zeros(D), 1.0).to_event(1).expand([N]),
    "MultivariateNormal": lambda: dist.MultivariateNormal(ZERO.expand(D), torch.eye(D, dtype=torch.float64)),
    "AR1Normal": lambda: AR1Normal(torch.zeros(D), 1.0, 0.0),
}
OTHER = Case(D, seed=1)
IN_A_PLATE = {
    **{f"AR1Normal to standard normal: {name}": (CHAINS.build, prior) for name, prior in STANDARD.items()},
    "shared AR1Normal to standard normal": (SHARED.build, STANDARD["numbers"]),
    "Subclass to standard normal": (lambda: Subclass(**CHAINS.parameters()), STANDARD["numbers"]),
    "expanded AR1Normal to standard normal": (CHAIN.build, STANDARD["numbers"]),
    "AR1Normal to AR1Normal": (CHAINS.build, OTHER.build),
    "AR1Normal to normal": (CHAINS.build, lambda: _normal(OTHER)),
    "AR1Normal to dense": (CHAINS.build, lambda: _dense(OTHER)),
    "AR1Normal to low rank": (CHAINS.build, lambda: _low_rank(OTHER)),
    "normal to AR1Normal": (lambda: _normal(CHAINS), OTHER.build),
    "dense to AR1Normal": (lambda: _dense(CHAINS), OTHER.build),
    "low rank to AR1Normal": (lambda: _low_rank(CHAINS), OTHER.build),
    "dense to standard normal": (lambda: _dense(CHAINS), STANDARD["numbers"]),
    "low rank to standard normal": (lambda: _low_rank(CHAINS), STANDARD["numbers"]),
}
AS_ONE_EVENT = {
    "standard normal": (lambda: CHAINS.build().to_event(1), lambda: dist.Normal(0.0, 1.0).expand([N, D]).to_event(2)),
    "two layers": (
        lambda: CHAINS.build().to_event(1),
        lambda: dist.Normal(0.0, 1.0).expand([N, D]).to_event(1).to_event(1),
    ),
    "AR1Normal": (lambda: CHAINS.build().to_event(1), lambda: OTHER.build().expand([N]).to_event(1)),
    "normal to AR1Normal": (
        lambda: dist.Independent(_normal(CHAINS), 1),
        lambda: OTHER.build().expand([N]).to_event(1),
    ),
    "normal, flattened, to AR1Normal": (
        lambda: _normal(CHAINS).base_dist.to_event(2),
        lambda: OTHER.build().expand([N]).to_event(1),
    ),
}


def moments(distribution) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance, of shapes (N, D) and (N, D, D)."""
    while isinstance(distribution, torch.distributions.Independent) and len(distribution.event_shape) > 1:
        distribution = distribution.base_dist
    covariance = getattr(distribution, "covariance_matrix", None)
    if covariance is None:
        covariance = distribution.variance.diag_embed()
    mean = distribution.mean.reshape(-1, D).double().expand(N, D)
    return mean.numpy(), covariance.reshape(-1, D, D).double().expand(N, D, D).numpy()


def dense_kls(guide, prior) -> np.ndarray:
    rows = zip(*moments(guide), *moments(prior), strict=True)
    return np.array([reference.dense_kl(*row) for row in rows])


@pytest.fixture
def divergences(monkeypatch):
    """What TraceMeanField_ELBO got when it asked for a divergence: it is silent about having got none."""
    results = []
    original = pyro.infer.trace_mean_field_elbo.kl_divergence

    def record(q, p):
        try:
            results.append(original(q, p))
        except NotImplementedError as error:
            results.append(error)
            raise
        return results[-1]

    monkeypatch.setattr(pyro.infer.trace_mean_field_elbo, "kl_divergence", record)
    return results


def assert_analytic(divergences, losses, expected: float) -> None:
    """A divergence was found each time, and is all of the loss: another draw gives the same number."""
    assert divergences
    assert all(isinstance(result, torch.Tensor) for result in divergences)
    assert losses == pytest.approx([expected] * len(losses), rel=1e-10)


@pytest.mark.parametrize("particles", ["one particle", "vectorized particles"])
@pytest.mark.parametrize("pair", IN_A_PLATE)
def test_analytic_divergence_in_a_plate(pair, particles, divergences):
    guide, prior = IN_A_PLATE[pair]

    def sample(make):
        with pyro.plate("data", N):
            pyro.sample("z", make())

    losses = losses_of(lambda: sample(prior), lambda: sample(guide), **PARTICLES[particles])
    assert_analytic(divergences, losses, dense_kls(guide(), prior()).sum())


# torch rounds its dense normals' constants to float32 when it traces them.
@pytest.mark.parametrize(
    "pair", [pair for pair in IN_A_PLATE if not any(word in pair for word in ("dense", "low rank", "Multivariate"))]
)
def test_analytic_divergence_in_a_jit(pair):
    guide, prior = IN_A_PLATE[pair]

    def sample(make):
        factor = pyro.param("factor", torch.ones(()))  # a jit needs something to differentiate
        with pyro.plate("data", N), poutine.scale(scale=factor):
            pyro.sample("z", make())

    estimator = estimator_of(JitTraceMeanField_ELBO)
    expected = dense_kls(guide(), prior()).sum()
    for _ in range(2):
        loss = estimator.loss_and_grads(lambda: sample(prior), lambda: sample(guide))
        assert loss == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("pair", AS_ONE_EVENT)
def test_analytic_divergence_of_one_event(pair, divergences):
    guide, prior = AS_ONE_EVENT[pair]
    losses = losses_of(lambda: pyro.sample("z", prior()), lambda: pyro.sample("z", guide()))
    assert_analytic(divergences, losses, dense_kls(guide(), prior()).sum())


def test_analytic_divergence_of_a_subsample(divergences):
    parameters = CHAINS.parameters()
    index = torch.tensor([0, 2])

    def guide():
        with pyro.plate("data", N, subsample=index):
            pyro.sample("z", AR1Normal(**{name: value[index] for name, value in parameters.items()}))

    def model():
        with pyro.plate("data", N, subsample=index):
            pyro.sample("z", dist.Normal(0.0, 1.0).expand([D]).to_event(1))

    expected = dense_kls(CHAINS.build(), STANDARD["numbers"]())[index.numpy()].sum() * 2
    assert_analytic(divergences, losses_of(model, guide), expected)


@pytest.mark.parametrize("prior", ["numbers", "AR1Normal", "MultivariateNormal"])
@pytest.mark.parametrize("by_handler", [False, True], ids=["method", "handler"])
def test_analytic_divergence_under_masks(prior, by_handler, divergences):
    def sample(make):
        with pyro.plate("data", N):
            if by_handler:
                poutine.mask(pyro.sample, mask=MASK)("z", make())
            else:
                pyro.sample("z", make().expand([N]).mask(MASK))

    losses = losses_of(lambda: sample(STANDARD[prior]), lambda: sample(CHAINS.build))
    expected = dense_kls(CHAINS.build(), STANDARD[prior]())[MASK.numpy()].sum()
    assert_analytic(divergences, losses, expected)


def test_analytic_divergence_under_scale(divergences):
    def sample(make):
        with pyro.plate("data", N):
            pyro.sample("z", make())

    losses = losses_of(
        poutine.scale(lambda: sample(STANDARD["numbers"]), 0.5), poutine.scale(lambda: sample(CHAINS.build), 0.5)
    )
    assert_analytic(divergences, losses, 0.5 * dense_kls(CHAINS.build(), STANDARD["numbers"]()).sum())


def test_divergence_of_a_delta_guide(divergences):
    def model():
        pyro.sample("z", CHAIN.build())

    guide = AutoDelta(model)
    guide()
    value = next(iter(pyro.get_param_store().values())).detach()
    assert_analytic(divergences, losses_of(model, guide), -float(reference.log_prob(CHAIN.arrays(), value.numpy())))


def test_the_recorder_sees_a_missing_divergence(divergences):
    losses = losses_of(
        lambda: pyro.sample("z", dist.StudentT(3.0, torch.zeros(D), 1.0).to_event(1)),
        lambda: pyro.sample("z", CHAIN.build()),
    )
    assert isinstance(divergences[0], NotImplementedError)
    assert losses[0] != losses[1]
