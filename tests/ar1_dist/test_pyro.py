"""AR1Normal in Pyro: sample statements, handlers, every ELBO, analytic divergences, reparametrisation and MCMC."""

import copy
import io
import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.inspect import get_dependencies
from pyro.infer.reparam import AutoReparam, LocScaleReparam

from ar1_dist import AR1Normal, AR1Transform
from ar1_dist.constraints import open_interval

from . import reference
from .cases import CASES, Case, assert_close, over
from .elbo import PARTICLES, Conjugate, estimator_of

N, D = 4, 3
CHAIN = Case(D)
CHAINS = Case(D, (N,))
SHARED = Case(D, (N,), shared_scale=True, shared_rho=True)


class Subclass(AR1Normal):
    pass


def log_prob_of(case: Case, value: torch.Tensor) -> np.ndarray:
    return reference.log_prob(case.arrays(), value.detach().numpy())


def trace_of(model, *args) -> poutine.Trace:
    trace = poutine.trace(model).get_trace(*args)
    trace.compute_log_prob()
    return trace


# sample statements, plates and handlers


@over(CASES)
def test_sample_statement(case):
    site = trace_of(lambda: pyro.sample("z", case.build())).nodes["z"]
    assert site["fn"].event_dim == 1
    assert site["value"].shape == (*case.batch_shape, case.d)
    assert_close(site["log_prob"], log_prob_of(case, site["value"]))


@over(CASES)
def test_infer_shapes(case):
    chain = case.build()
    shapes = {name: value.shape for name, value in case.parameters().items()}
    assert AR1Normal.infer_shapes(**shapes) == (chain.batch_shape, chain.event_shape)
    assert chain.shape((7,)) == chain((7,)).shape


@pytest.mark.parametrize("cls", [AR1Normal, Subclass])
@pytest.mark.parametrize("subsample_size", [None, 2])
@over([CHAIN, SHARED, Case(1, (N,)), Case(D, (1,))])
def test_plate(case, subsample_size, cls):
    parameters = case.parameters()
    per_row = case.batch_shape == (N,)

    def model():
        with pyro.plate("data", N, subsample_size=subsample_size) as index:
            rows = {name: value[index] if per_row else value for name, value in parameters.items()}
            return index, pyro.sample("z", cls(**rows))

    trace = trace_of(model)
    index, z = trace.nodes["_RETURN"]["value"]
    site = trace.nodes["z"]
    size = subsample_size or N
    assert type(site["fn"]) is cls
    assert site["fn"].batch_shape == (size,)
    assert z.shape == (size, case.d)
    assert z.unique(dim=0).shape[0] == size  # a draw for each
    arrays = {name: array[index.numpy()] if per_row else array for name, array in case.arrays().items()}
    expected = np.broadcast_to(reference.log_prob(arrays, z.numpy()), (size,))
    assert_close(site["unscaled_log_prob"], expected)
    assert_close(site["log_prob_sum"], N / size * expected.sum())


@pytest.mark.parametrize("cls", [AR1Normal, Subclass])
def test_nested_plates(cls):
    parameters = CHAINS.parameters()

    def model():
        with pyro.plate("outer", 5, dim=-2), pyro.plate("inner", N, dim=-1):
            return pyro.sample("z", cls(**parameters))

    site = trace_of(model).nodes["z"]
    assert type(site["fn"]) is cls
    assert site["value"].shape == (5, N, D)
    assert_close(site["log_prob"], log_prob_of(CHAINS, site["value"]))


def test_plate_of_another_size():
    with pytest.raises(ValueError, match="Shape mismatch inside plate"), pyro.plate("data", N + 1):
        pyro.sample("z", CHAINS.build())


def test_expanded_draws_are_independent():
    draws = CHAIN.build().expand((20000,)).sample()
    assert np.cov(draws.numpy().T) == pytest.approx(
        reference.covariance(CHAIN.arrays()), abs=0.05 * float(CHAIN.build().variance.max())
    )


MASK = torch.tensor([True, False, True, False])


@pytest.mark.parametrize(
    "masked_model",
    [
        lambda: pyro.sample("z", CHAINS.build().mask(MASK)),
        lambda: poutine.mask(pyro.sample, mask=MASK)("z", CHAINS.build()),
        lambda: pyro.sample("z", CHAIN.build().mask(MASK), obs=torch.zeros(N, D, dtype=torch.float64)),
    ],
    ids=["method", "handler", "broadcast"],
)
def test_mask(masked_model):
    site = trace_of(masked_model).nodes["z"]
    case = CHAIN if site["is_observed"] else CHAINS
    assert_close(site["log_prob"], np.where(MASK, log_prob_of(case, site["value"]), 0.0))
    assert (site["log_prob"][MASK] != 0).all()


def test_to_event():
    chains = Case(D, (2, N)).build().to_event(1)
    assert (chains.batch_shape, chains.event_shape) == ((2,), (N, D))
    value = chains.rsample((5,))
    assert_close(chains.log_prob(value), log_prob_of(Case(D, (2, N)), value).sum(-1))
    assert_close(chains.entropy(), reference.entropy(Case(D, (2, N)).arrays()).sum(-1))


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_scale_on_model_and_guide(elbo):
    def model():
        with pyro.plate("data", N):
            z = pyro.sample("z", CHAIN.build())
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(N, D, dtype=torch.float64))

    def guide():
        with pyro.plate("data", N):
            pyro.sample("z", CHAINS.build())

    losses = []
    for factor in (1.0, 0.25):
        pyro.set_rng_seed(0)
        losses.append(elbo().loss(poutine.scale(model, factor), poutine.scale(guide, factor)))
    assert losses[1] == pytest.approx(0.25 * losses[0], rel=1e-12)


def test_condition_replay_and_block():
    value = torch.linspace(-1, 1, N * D, dtype=torch.float64).reshape(N, D)

    def model():
        return pyro.sample("z", CHAINS.build())

    conditioned = trace_of(poutine.condition(model, {"z": value}))
    assert conditioned.nodes["z"]["is_observed"]
    assert_close(conditioned.nodes["z"]["log_prob"], log_prob_of(CHAINS, value))
    trace = trace_of(model)
    assert torch.equal(poutine.replay(model, trace)(), trace.nodes["z"]["value"])
    assert "z" not in trace_of(poutine.block(model, hide=["z"])).nodes


def test_lift_with_a_prior_and_of_a_parameter():
    def model():
        loc = pyro.param("loc", torch.zeros(D, dtype=torch.float64))
        return pyro.sample("z", AR1Normal(loc, 1.0, 0.5))

    trace = trace_of(poutine.lift(model, prior={"loc": CHAIN.build()}))
    assert trace.nodes["loc"]["type"] == "sample"
    loc, z = trace.nodes["loc"]["value"], trace.nodes["z"]["value"]
    assert_close(trace.nodes["loc"]["log_prob"], log_prob_of(CHAIN, loc))
    lifted = {"loc": loc.numpy(), "scale": np.ones(1), "rho": np.full(1, 0.5)}
    assert_close(trace.nodes["z"]["log_prob"], reference.log_prob(lifted, z.numpy()))


def test_the_posterior_is_a_chain():
    conjugate = Conjugate(N)
    covariance = reference.covariance({"loc": np.zeros(D), "scale": conjugate.scale, "rho": conjugate.rho})
    np.testing.assert_allclose(covariance, conjugate.cov, rtol=1e-10)


@pytest.mark.parametrize(
    ("elbo", "particles"),
    [
        *itertools.product(
            [Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO],
            PARTICLES,
        ),
        (RenyiELBO, "particles"),
        (RenyiELBO, "vectorized particles"),
    ],
)
def test_elbo_at_the_posterior_is_the_evidence(elbo, particles):
    conjugate = Conjugate(N)
    estimator = estimator_of(elbo, **PARTICLES[particles])
    for _ in range(2):  # a jit traces once, and then runs what it has traced
        loss = estimator.loss_and_grads(conjugate.model, conjugate.exact_guide)
        assert loss == pytest.approx(-conjugate.log_evidence.sum(), rel=1e-10)
    for name in ("loc", "scale", "rho"):
        gradient = pyro.param(name).grad
        assert gradient.isfinite().all()
        assert gradient.any()  # of one draw: only the expected gradient is zero


@pytest.mark.parametrize("particles", PARTICLES)
def test_mean_field_elbo_at_the_posterior(particles):
    conjugate = Conjugate(N)
    prior_loc, prior_cov = CHAIN.arrays()["loc"], reference.covariance(CHAIN.arrays())
    kl = sum(reference.dense_kl(loc, conjugate.cov, prior_loc, prior_cov) for loc in conjugate.loc)
    options = PARTICLES[particles]
    pyro.set_rng_seed(1)
    loss = estimator_of(TraceMeanField_ELBO, **options).loss_and_grads(conjugate.model, conjugate.exact_guide)
    pyro.set_rng_seed(1)
    chain = AR1Normal(*(torch.from_numpy(getattr(conjugate, name)) for name in ("loc", "scale", "rho")))
    if "vectorize_particles" in options:
        draws = chain.sample((3,))
    else:
        draws = torch.stack([chain.sample() for _ in range(options.get("num_particles", 1))])
    log_likelihood = (
        scipy.stats.norm(draws.numpy(), Conjugate.noise).logpdf(conjugate.data.numpy()).sum((-2, -1)).mean()
    )
    assert loss == pytest.approx(kl - log_likelihood, rel=1e-10)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, JitTrace_ELBO])
def test_svi_finds_the_posterior(elbo):
    conjugate = Conjugate(N)

    def guide():
        loc = pyro.param("loc", torch.zeros(N, D, dtype=torch.float64))
        scale = pyro.param("scale", torch.ones(D, dtype=torch.float64), constraint=AR1Normal.arg_constraints["scale"])
        rho = pyro.param("rho", torch.zeros(D - 1, dtype=torch.float64), constraint=AR1Normal.arg_constraints["rho"])
        with pyro.plate("rows", N, dim=-1):
            pyro.sample("z", AR1Normal(loc, scale, rho))

    estimator = estimator_of(elbo, num_particles=64, vectorize_particles=True)
    svi = SVI(conjugate.model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}), estimator)
    for _ in range(500):
        svi.step()
    for name in ("loc", "scale", "rho"):
        np.testing.assert_allclose(pyro.param(name).detach().numpy(), getattr(conjugate, name), atol=0.03)


def test_subsampled_svi_step_is_unbiased():
    """The loss of a subsample, scaled by the plate, averages over subsamples to the whole loss."""
    conjugate = Conjugate(N)
    parameters = [torch.from_numpy(getattr(conjugate, name)) for name in ("loc", "scale", "rho")]

    def model(subsample=None):
        with pyro.plate("data", N, dim=-1, subsample=subsample) as index:
            z = pyro.sample("z", AR1Normal(**conjugate.prior))
            pyro.sample("x", dist.Normal(z, Conjugate.noise).to_event(1), obs=conjugate.data[index])

    def guide(subsample=None):
        with pyro.plate("data", N, dim=-1, subsample=subsample) as index:
            pyro.sample("z", AR1Normal(parameters[0][index], *parameters[1:]))

    pairs = [torch.tensor(pair) for pair in itertools.combinations(range(N), 2)]
    losses = [Trace_ELBO().loss(model, guide, subsample=pair) for pair in pairs]
    assert losses == pytest.approx([-2 * conjugate.log_evidence[pair.numpy()].sum() for pair in pairs], rel=1e-10)
    assert np.mean(losses) == pytest.approx(-conjugate.log_evidence.sum(), rel=1e-10)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_nuts(jit_compile):
    conjugate = Conjugate(N)
    kernel = NUTS(conjugate.model, jit_compile=jit_compile, ignore_jit_warnings=True, max_tree_depth=5)
    mcmc = MCMC(kernel, num_samples=300, warmup_steps=150, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["z"].numpy()
    effective = mcmc.diagnostics()["z"]["n_eff"].numpy().clip(50, 300)
    error = conjugate.scale / np.sqrt(effective)
    assert (np.abs(draws.mean(0) - conjugate.loc) < 5 * error).all()
    # The rows have one covariance: all of them estimate it.
    centred = (draws - draws.mean(0)).reshape(-1, D)
    spread = np.outer(conjugate.scale, conjugate.scale) * np.sqrt(2 / (N * effective.min()))
    assert (np.abs(np.cov(centred.T) - conjugate.cov) < 5 * spread).all()


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(parallel):
    conjugate = Conjugate(N)
    count = 4000 if parallel else 20
    predictive = Predictive(conjugate.model, guide=conjugate.exact_guide, num_samples=count, parallel=parallel)
    z = predictive()["z"].detach()
    assert z.shape == (count, N, D)
    standard_error = conjugate.scale / count**0.5
    assert (np.abs(z.numpy().mean(0) - conjugate.loc) < 5 * standard_error).all()
    again = Predictive(conjugate.model, posterior_samples={"z": z}, return_sites=["z"], parallel=parallel)()
    assert torch.equal(again["z"], z)


@pytest.mark.parametrize("elbo", [TraceEnum_ELBO, JitTraceEnum_ELBO])
def test_enumeration_over_chains(elbo):
    cases = [Case(D, seed=seed) for seed in range(3)]
    stacked = {name: torch.stack([case.parameters()[name] for case in cases]) for name in ("loc", "scale", "rho")}
    data = torch.from_numpy(np.random.default_rng(0).normal(size=(N, D)))
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)

    @config_enumerate
    def model():
        logits = pyro.param("logits", weights.log())
        with pyro.plate("rows", N, dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=logits))
            pyro.sample("x", AR1Normal(**{name: value[k] for name, value in stacked.items()}), obs=data)

    joint = np.stack([log_prob_of(case, data) for case in cases], -1) + weights.log().numpy()
    log_evidence = scipy.special.logsumexp(joint, axis=-1)
    responsibilities = np.exp(joint - log_evidence[:, None])
    estimator = estimator_of(elbo)
    for _ in range(2):
        pyro.clear_param_store()
        loss = estimator.loss_and_grads(model, lambda: None)
        assert loss == pytest.approx(-log_evidence.sum(), rel=1e-10)
        assert_close(pyro.param("logits").grad, N * weights.numpy() - responsibilities.sum(0))


# constraints


@pytest.mark.parametrize("shape", [(), (1,), (D - 1,)], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_trained_rho_stays_inside(shape, sign, dtype):
    row = torch.tensor([1.0, sign, 1.0], dtype=dtype)
    data = torch.tensor([[1.0], [-2.0], [0.5], [-0.3]], dtype=dtype) * row  # whose likelihood is highest at |rho| = 1

    def model():
        constraint = AR1Normal.arg_constraints["rho"] if shape else open_interval(-1.0, 1.0)
        rho = pyro.param("rho", torch.full(shape, 0.1, dtype=dtype), constraint=constraint)
        with pyro.plate("data", N):
            pyro.sample("x", AR1Normal(torch.zeros(D, dtype=dtype), 1.0, rho, validate_args=True), obs=data)

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.5}), Trace_ELBO())
    losses = []
    for _ in range(150):
        losses.append(svi.step())
        rho = pyro.param("rho").detach()
        assert rho.shape == shape
        assert (rho.abs() < 1).all()
    assert np.isfinite(losses).all()
    assert (sign * rho > 0.999).all()
    assert losses[-1] < losses[0]


def test_maximum_likelihood_finds_rho():
    true = Case(D, seed=5).arrays()
    data = AR1Normal(*map(torch.from_numpy, true.values())).sample((4000,))
    known = [torch.from_numpy(true[name]) for name in ("loc", "scale")]

    def model():
        initial = torch.zeros(D - 1, dtype=torch.float64)
        rho = pyro.param("rho", initial, constraint=AR1Normal.arg_constraints["rho"])
        with pyro.plate("data", len(data)):
            pyro.sample("x", AR1Normal(*known, rho), obs=data)

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(300):
        svi.step()
    # The information about rho of one pair with known scales is (1 + rho^2)/(1 - rho^2)^2.
    rho = true["rho"]
    standard_error = (1 - rho**2) / np.sqrt((1 + rho**2) * len(data))
    assert (np.abs(pyro.param("rho").detach().numpy() - rho) < 5 * standard_error).all()


# reparametrisation and transforms


def test_dependence_through_rho_is_tracked():
    """Also by the recurrence, which is an autograd function of its own."""

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", AR1Normal(torch.zeros(D), 1.0, atanh_rho=a))
        pyro.sample("x", dist.Normal(z[..., -1], 1.0), obs=torch.zeros(()))

    prior = get_dependencies(model)["prior_dependencies"]
    assert set(prior["z"]) == {"z", "a"}
    assert set(prior["x"]) == {"x", "z"}


@pytest.mark.parametrize("shape_params", [["atanh_rho"], None], ids=["named", "default"])
@pytest.mark.parametrize("centered", [0.0, 0.4, None])
@over([CHAINS, SHARED])
def test_loc_scale_reparam(case, centered, shape_params):
    parameters = case.parameters()
    parameters["atanh_rho"] = parameters.pop("rho").atanh()

    @poutine.reparam(config={"z": LocScaleReparam(centered, shape_params=shape_params)})
    def model():
        with pyro.plate("data", N):
            return pyro.sample("z", AR1Normal(**parameters))

    trace = trace_of(model)
    z = trace.nodes["_RETURN"]["value"].detach()
    site = trace.nodes["z_decentered"]
    assert type(site["fn"]) is AR1Normal
    # z = loc + scale^(1 - c) (z' - c loc) has the Jacobian of its factor.
    exponent = 1 - (0.5 if centered is None else centered)
    jacobian = exponent * np.log(np.broadcast_to(case.arrays()["scale"], (N, D))).sum(-1)
    assert_close(site["log_prob"], log_prob_of(case, z) + jacobian)


def test_auto_reparam():
    def model():
        with pyro.plate("data", N):
            return pyro.sample("z", CHAINS.build())

    trace = trace_of(poutine.reparam(model, config=AutoReparam()))
    assert trace.nodes["z_decentered"]["value"].shape == (N, D)


@over([CHAINS, SHARED])
def test_affine_transform_of_a_chain(case):
    parameters, arrays = case.parameters(), case.arrays()
    transform = dist.transforms.AffineTransform(0.5, -2.0)

    def model():
        with pyro.plate("outer", 2, dim=-2), pyro.plate("rows", N, dim=-1):
            return pyro.sample("z", dist.TransformedDistribution(AR1Normal(**parameters), [transform]))

    site = trace_of(model).nodes["z"]
    assert site["value"].shape == (2, N, D)
    moved = {"loc": 0.5 - 2 * arrays["loc"], "scale": 2 * arrays["scale"], "rho": arrays["rho"]}
    assert_close(site["log_prob"], reference.log_prob(moved, site["value"].numpy()))


@over([CHAINS, SHARED])
def test_transform_of_a_standard_normal(case):
    def model():
        base = dist.Normal(torch.zeros(D, dtype=torch.float64), 1.0).to_event(1)
        with pyro.plate("outer", 2, dim=-2), pyro.plate("rows", N, dim=-1):
            return pyro.sample("z", dist.TransformedDistribution(base, [AR1Transform(**case.parameters())]))

    site = trace_of(model).nodes["z"]
    assert site["value"].shape == (2, N, D)
    assert_close(site["log_prob"], log_prob_of(case, site["value"]))


# copies


def _saved(chain: AR1Normal) -> AR1Normal:
    buffer = io.BytesIO()
    torch.save(chain, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, _saved], ids=["deepcopy", "save"])
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("given", ["rho", "atanh_rho"])
@pytest.mark.parametrize("expanded", [False, True])
def test_copies_of_a_chain_with_leaf_parameters(copied, shape, given, expanded):
    leaves = {"loc": torch.zeros(D), "scale": torch.full(shape, 2.0), given: torch.full(shape, 0.3)}
    chain = Subclass(**{name: value.requires_grad_() for name, value in leaves.items()})
    if expanded:
        chain = chain.expand((N,))
    value = torch.linspace(-1, 1, D)
    chain.log_prob(value).sum().backward()  # derives the other parametrisation
    chain.covariance_matrix, chain.precision_matrix, chain.scale_tril, chain.entropy()  # noqa: B018
    again = copied(chain)
    assert type(again) is Subclass
    assert (again.batch_shape, again.event_shape) == (chain.batch_shape, chain.event_shape)
    assert torch.equal(again.log_prob(value), chain.log_prob(value))
    again.log_prob(value).sum().backward()  # and the copy can be trained


def test_parameters_in_the_store_survive_saving(tmp_path):
    constraint = AR1Normal.arg_constraints["rho"]
    pyro.param("rho", torch.tensor([0.3, -0.9], dtype=torch.float64), constraint=constraint)
    pyro.get_param_store().save(tmp_path / "parameters.pt")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "parameters.pt")
    assert_close(pyro.param("rho"), [0.3, -0.9])
    pyro.get_param_store()["rho"] = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert_close(pyro.param("rho").unconstrained(), np.arctanh([0.5, 0.5]))
