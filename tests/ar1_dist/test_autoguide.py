"""Guides of autoregressive chains: whatever Pyro's AutoMultivariateNormal does, exactness, and analytic divergences."""

import contextlib
import copy
import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import statsmodels.datasets
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    JitTraceMeanField_ELBO,
    Predictive,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoMultivariateNormal,
    init_to_mean,
    init_to_value,
)
from pyro.infer.autoguide.effect import AutoNormalMessenger
from pyro.infer.reparam import NeuTraReparam
from statsmodels.tsa.statespace.structural import UnobservedComponents

from ar1_dist import AR1Normal, AutoAR1Normal, AutoAR1NormalMessenger, assert_analytic_kl

from . import reference
from .elbo import ROWS as N
from .elbo import Conjugate, losses_of, sample

D = 3
GUIDES = [AutoAR1Normal, AutoMultivariateNormal]
PARAMETERS = {AutoAR1Normal: ("loc", "scale", "atanh_rho"), AutoMultivariateNormal: ("loc", "scale", "scale_tril")}
both_guides = pytest.mark.parametrize("guide_class", GUIDES)


def mixed_model():
    """Sites of every shape that AutoContinuous takes: a scalar, a positive one, a vector, one in a plate."""
    a = pyro.sample("a", dist.Normal(1.0, 1.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    z = pyro.sample("z", AR1Normal(torch.zeros(D), 1.0, 0.5))
    with pyro.plate("rows", N):
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        pyro.sample("x", dist.Normal(a + z.sum(-1, keepdim=True) + w[..., 0], s), obs=torch.linspace(0, 1, N))


LATENT_DIM = 1 + 1 + D + 2 * N
SHAPES = {"a": (), "s": (), "z": (D,), "w": (N, 3)}


def trained(guide_class, model=mixed_model, steps=3, **options):
    guide = guide_class(model, **options)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(steps):
        assert np.isfinite(svi.step())
    return guide


# parity with AutoMultivariateNormal


@both_guides
def test_sites_and_shapes(guide_class):
    guide = guide_class(mixed_model)
    values = guide()
    assert isinstance(guide, AutoContinuous)
    assert guide.latent_dim == LATENT_DIM
    assert {name: tuple(value.shape) for name, value in values.items()} == SHAPES
    posterior = guide.get_posterior()
    assert (posterior.batch_shape, posterior.event_shape) == ((), (LATENT_DIM,))


@both_guides
@pytest.mark.parametrize("init_loc_fn", [init_to_mean, init_to_value(values={"a": torch.tensor(3.0)})])
def test_initial_values(guide_class, init_loc_fn):
    pyro.set_rng_seed(1)
    guide = guide_class(mixed_model, init_loc_fn=init_loc_fn, init_scale=0.25)
    guide()
    expected = AutoDiagonalNormal(mixed_model, init_loc_fn=init_loc_fn)
    pyro.set_rng_seed(1)
    expected()
    posterior = guide.get_posterior()
    torch.testing.assert_close(posterior.mean, expected.get_posterior().mean)
    torch.testing.assert_close(posterior.covariance_matrix, 0.25**2 * torch.eye(LATENT_DIM))


@both_guides
@pytest.mark.parametrize("init_scale", [0.0, -1.0, 1, "wide", float("nan")])
def test_invalid_init_scale(guide_class, init_scale):
    with pytest.raises(ValueError, match="init_scale"):
        guide_class(mixed_model, init_scale=init_scale)


@both_guides
def test_no_latent_variables(guide_class):
    with pytest.raises(RuntimeError, match="no latent variables"):
        guide_class(lambda: pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(())))()


@both_guides
def test_base_distribution_and_transform_make_the_posterior(guide_class):
    guide = trained(guide_class)
    posterior = guide.get_posterior()
    transformed = dist.TransformedDistribution(guide.get_base_dist(), guide.get_transform())
    pyro.set_rng_seed(0)
    draw = posterior.sample((5,))
    pyro.set_rng_seed(0)
    torch.testing.assert_close(transformed.sample((5,)), draw)
    torch.testing.assert_close(transformed.log_prob(draw), posterior.log_prob(draw), rtol=1e-4, atol=1e-4)


@both_guides
def test_median_and_quantiles(guide_class):
    guide = trained(guide_class)
    loc, scale = guide._loc_scale()
    posterior = guide.get_posterior()
    torch.testing.assert_close(loc, posterior.mean)
    torch.testing.assert_close(scale, posterior.stddev)
    median, quantiles = guide.median(), guide.quantiles([0.1, 0.5, 0.9])
    assert {name: tuple(value.shape) for name, value in median.items()} == SHAPES
    for name, value in median.items():
        assert quantiles[name].shape == (3, *SHAPES[name])
        torch.testing.assert_close(quantiles[name][1], value)
        assert not value.requires_grad
    assert median["a"].item() == pytest.approx(loc[0].item())
    assert median["s"].item() == pytest.approx(loc[1].exp().item())
    expected = scipy.stats.lognorm(scale[1].item(), scale=loc[1].exp().item()).ppf([0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles["s"], expected, rtol=1e-5)


@both_guides
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(guide_class, parallel):
    conjugate = Conjugate()
    guide = trained(guide_class, conjugate)
    count = 2000 if parallel else 10
    draws = Predictive(conjugate.model, guide=guide, num_samples=count, parallel=parallel)()["z"].detach()
    posterior = guide.get_posterior()
    assert draws.shape == (count, D)
    assert ((draws.mean(0) - posterior.mean).abs() < 5 * posterior.stddev / count**0.5).all()


@both_guides
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, JitTrace_ELBO])
@pytest.mark.parametrize("options", [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}])
def test_steps_with_every_elbo(guide_class, elbo, options):
    guide = guide_class(mixed_model)
    guide()  # a jit can't make parameters
    estimator = elbo(max_plate_nesting=1, ignore_jit_warnings=True, **options)
    svi = SVI(mixed_model, guide, pyro.optim.ClippedAdam({"lr": 0.05}), estimator)
    losses = [svi.step() for _ in range(3)]
    assert np.isfinite(losses).all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in guide.parameters())


@both_guides
def test_traced_losses_are_the_losses(guide_class):
    guide = trained(guide_class)
    losses = []
    for elbo in (Trace_ELBO, JitTrace_ELBO):
        pyro.set_rng_seed(3)
        estimator = elbo(max_plate_nesting=1, ignore_jit_warnings=True)
        estimator.loss_and_grads(mixed_model, guide)
        pyro.set_rng_seed(3)
        losses.append(estimator.loss_and_grads(mixed_model, guide))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@both_guides
def test_a_single_latent_variable(guide_class):
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones((), dtype=torch.float64))

    guide = guide_class(model)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.97}), Trace_ELBO(64, vectorize_particles=True))
    for _ in range(150):
        svi.step()
    loc, scale = guide._loc_scale()
    assert loc.item() == pytest.approx(0.5, abs=0.05)
    assert scale.item() == pytest.approx(0.5**0.5, abs=0.05)
    assert guide.median()["z"].shape == ()


@both_guides
def test_subsampled_local_variables_share_parameters(guide_class):
    """As in every AutoContinuous: the latent vector has the size of the subsample."""

    def model():
        with pyro.plate("rows", 10, subsample_size=N):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(N))

    assert trained(guide_class, model).latent_dim == N


@both_guides
def test_sequential_plates_raise(guide_class):
    def model():
        for i in pyro.plate("rows", N):
            pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))

    with pytest.raises(NotImplementedError, match="sequential"):
        guide_class(model)()


@both_guides
def test_discrete_sites_raise(guide_class):
    with pytest.raises(Exception, match="discrete"):
        guide_class(lambda: pyro.sample("z", dist.Bernoulli(0.5)))()


@both_guides
def test_part_of_a_list(guide_class):
    guide = AutoGuideList(mixed_model)
    guide.append(guide_class(poutine.block(mixed_model, expose=["z", "a"])))
    guide.append(AutoDelta(poutine.block(mixed_model, hide=["z", "a"])))
    svi = SVI(mixed_model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    assert np.isfinite([svi.step() for _ in range(2)]).all()
    assert set(guide.median()) == set(SHAPES)


def test_prior_of_another_precision():
    guide = trained(AutoAR1Normal, Conjugate())
    assert guide.get_posterior().loc.dtype == torch.float64


# saving and loading


def same_posteriors(first, second) -> bool:
    return all(
        torch.equal(getattr(first.get_posterior(), name), getattr(second.get_posterior(), name))
        for name in ("mean", "covariance_matrix")
    )


@both_guides
def test_state_dict(guide_class):
    guide = trained(guide_class)
    state = copy.deepcopy(guide.state_dict())
    pyro.clear_param_store()
    again = guide_class(mixed_model)
    again()
    assert not same_posteriors(guide, again)
    again.load_state_dict(state)
    assert same_posteriors(guide, again)


@both_guides
def test_parameter_store(guide_class, tmp_path):
    guide = trained(guide_class)
    assert set(pyro.get_param_store().keys()) == {f"{guide_class.__name__}.{name}" for name in PARAMETERS[guide_class]}
    pyro.get_param_store().save(tmp_path / "parameters.pt")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "parameters.pt")
    again = guide_class(mixed_model)
    again()
    assert same_posteriors(guide, again)


@both_guides
@pytest.mark.parametrize("copied", ["deepcopy", "save"])
def test_copies(guide_class, copied):
    guide = trained(guide_class)
    if copied == "deepcopy":
        again = copy.deepcopy(guide)
    else:
        buffer = io.BytesIO()
        torch.save(guide, buffer)  # leaves its model out, as Pyro's guides do
        buffer.seek(0)
        again = torch.load(buffer, weights_only=False)
    assert same_posteriors(guide, again)


# neural transport


def test_neutra():
    """In the coordinates of the exact posterior the chain is white noise, and NUTS samples it at once."""
    conjugate = Conjugate()
    guide = AutoAR1Normal(conjugate.model)
    guide()
    set_parameters(guide, conjugate)
    neutra = NeuTraReparam(guide)
    model = neutra.reparam(conjugate.model)
    mcmc = MCMC(NUTS(model, max_tree_depth=4), num_samples=200, warmup_steps=50, disable_progbar=True)
    mcmc.run()
    white = mcmc.get_samples()["z_shared_latent"]
    assert white.shape == (200, D)
    assert np.cov(white.numpy().T) == pytest.approx(np.eye(D), abs=0.5)
    draws = neutra.transform_sample(white)["z"].detach().numpy()
    assert (np.abs(draws.mean(0) - conjugate.loc) < 0.4 * conjugate.scale).all()


# exactness


def set_parameters(guide: AutoAR1Normal, conjugate: Conjugate) -> None:
    with torch.no_grad():
        guide.loc.copy_(torch.from_numpy(conjugate.loc))
        guide.atanh_rho.copy_(torch.from_numpy(conjugate.atanh_rho))
    guide.scale = torch.from_numpy(conjugate.scale.copy())


@pytest.mark.parametrize("options", [{}, {"num_particles": 3, "vectorize_particles": True}])
@pytest.mark.parametrize("d", [1, D, 40])
def test_elbo_at_the_posterior_is_the_evidence(options, d):
    """Of every draw; the gradient of one draw is not zero, its mean is."""
    conjugate = Conjugate(d=d)
    guide = AutoAR1Normal(conjugate.model)
    guide()
    set_parameters(guide, conjugate)
    losses = [Trace_ELBO(max_plate_nesting=0, **options).loss_and_grads(conjugate.model, guide) for _ in range(2)]
    assert losses == pytest.approx([-conjugate.log_evidence.sum()] * 2, rel=1e-10)


def test_svi_finds_the_posterior():
    conjugate = Conjugate()
    guide = AutoAR1Normal(conjugate.model)
    estimator = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(conjugate.model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}), estimator)
    for _ in range(500):
        svi.step()
    posterior = guide.get_posterior()
    np.testing.assert_allclose(posterior.mean.detach(), conjugate.loc, atol=0.03)
    np.testing.assert_allclose(posterior.covariance_matrix.detach(), conjugate.cov, atol=0.03)


class Nile:
    """The local level model of the Nile's yearly flow, in hundreds from 1000: a random walk seen with noise (Durbin and
    Koopman, 2012). The answer by dense linear algebra, the evidence by statsmodels' Kalman filter."""

    noise, step, initial = 15099**0.5 / 100, 1469.1**0.5 / 100, 250 / 100

    def __init__(self) -> None:
        flow = (statsmodels.datasets.nile.load_pandas().data["volume"].to_numpy() - 1000) / 100
        self.flow, t = torch.from_numpy(flow), np.arange(len(flow))
        scale = torch.from_numpy(np.sqrt(self.initial**2 + t * self.step**2))
        self.prior = AR1Normal(torch.zeros_like(scale), scale, atanh_rho=(scale[:-1] / self.step).asinh())
        prior_cov = self.initial**2 + self.step**2 * np.minimum(t, t[:, None])
        self.cov = np.linalg.inv(np.linalg.inv(prior_cov) + np.eye(len(flow)) / self.noise**2)
        self.loc = self.cov @ flow / self.noise**2
        filtered = UnobservedComponents(flow, "llevel")
        filtered.ssm.initialize_known([0.0], [[self.initial**2]])
        filtered.ssm.loglikelihood_burn = 0
        self.log_evidence = filtered.loglike([self.noise**2, self.step**2])

    def model(self) -> None:
        level = pyro.sample("level", self.prior)
        pyro.sample("flow", dist.Normal(level, self.noise).to_event(1), obs=self.flow)


@pytest.mark.parametrize(
    ("guide_class", "elbo"), [(AutoAR1Normal, Trace_ELBO), (AutoAR1NormalMessenger, TraceMeanField_ELBO)]
)
def test_elbo_of_the_nile_is_the_evidence(guide_class, elbo):
    nile = Nile()
    steps = 1000
    guide = guide_class(nile.model)
    estimator = elbo(num_particles=30, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(nile.model, guide, pyro.optim.ClippedAdam({"lr": 0.06, "lrd": 0.01 ** (1 / steps)}), estimator)
    for _ in range(steps):
        svi.step()
    q = guide.get_posterior() if guide_class is AutoAR1Normal else chain_sites(guide)["level"]["fn"]
    gap = reference.dense_kl(q.mean.detach().numpy(), q.covariance_matrix.detach().numpy(), nile.loc, nile.cov)
    assert gap < 0.05
    with torch.no_grad():
        elbo = -Trace_ELBO(num_particles=1000, vectorize_particles=True, max_plate_nesting=0).loss(nile.model, guide)
    assert elbo == pytest.approx(nile.log_evidence - gap, abs=0.03)


def test_a_chain_beats_mean_field_on_stochastic_volatility():
    """A posterior that is not normal: of the logarithms of variances, each seen by one return."""
    prior = AR1Normal(torch.zeros(100), 1.0, 0.95)
    returns = torch.randn(100) * (prior.sample() / 2).exp()

    def model():
        h = pyro.sample("h", prior)
        pyro.sample("return", dist.Normal(0.0, (h / 2).exp()).to_event(1), obs=returns)

    elbos = {}
    for guide_class in (AutoAR1Normal, AutoMultivariateNormal, AutoDiagonalNormal):
        pyro.clear_param_store()
        guide = guide_class(model)
        estimator = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=0)
        svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.01 ** (1 / 500)}), estimator)
        for _ in range(500):
            svi.step()
        with torch.no_grad():
            elbos[guide_class] = -Trace_ELBO(1000, vectorize_particles=True, max_plate_nesting=0).loss(model, guide)
    assert elbos[AutoAR1Normal] > elbos[AutoDiagonalNormal] + 15
    assert elbos[AutoAR1Normal] > elbos[AutoMultivariateNormal] - 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's own peak")
def test_time_and_memory_are_linear():
    """A dense matrix of 100,000 coordinates would take 40 GB."""
    d = 100_000
    code = f"""
import pyro, pyro.distributions as dist, torch
from pyro.infer import SVI, Trace_ELBO
from ar1_dist import AR1Normal, AutoAR1Normal
def model(d, data):
    z = pyro.sample("z", AR1Normal(torch.zeros(d), 100.0, 0.9999))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=data)
def use(d):
    guide, data = AutoAR1Normal(model), torch.randn(d).cumsum(0)
    svi = SVI(model, guide, pyro.optim.Adam({{"lr": 0.05}}), Trace_ELBO())
    for _ in range(3):
        svi.step(d, data)
    assert sum(parameter.numel() for parameter in guide.parameters()) == 3 * d - 1
    assert guide.quantiles([0.05, 0.95])["z"].shape == (2, d)
    guide.get_transform(), guide.get_base_dist()
def peak():  # unlike resource.getrusage's, it is not the parent's
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return 1024 * int(lines["VmHWM"].split()[0])
use(10)
pyro.clear_param_store()
before = peak()
use({d})
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 400 * 4 * d


# a chain at each site


def chain_sites(guide, *args) -> dict[str, dict]:
    trace = poutine.trace(guide).get_trace(*args)
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not site["is_observed"]}


def shapes(parameters) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in parameters}


@pytest.mark.parametrize(
    ("prior", "shape"),
    [
        (lambda: AR1Normal(torch.zeros(D), 1.0, 0.5), (D,)),
        (lambda: AR1Normal(torch.zeros(1), 1.0, 0.5), (1,)),
        (lambda: dist.Normal(0.0, 1.0).expand([D]).to_event(1), (D,)),
        (lambda: dist.Normal(0.0, 1.0).expand([2, D]).to_event(2), (2, D)),
        (lambda: AR1Normal(torch.zeros(2, D), 1.0, 0.5).to_event(1), (2, D)),
        (lambda: dist.MultivariateNormal(torch.zeros(D), torch.eye(D)), (D,)),
        (lambda: dist.LowRankMultivariateNormal(torch.zeros(D), torch.ones(D, 1), torch.ones(D)), (D,)),
    ],
)
@pytest.mark.parametrize("plates", [(), (N,), (5, N)], ids=str)
def test_site_is_a_chain_with_an_analytic_divergence(prior, shape, plates):
    def model():
        with pyro.plate_stack("rows", plates) if plates else contextlib.nullcontext():
            return pyro.sample("z", prior())

    guide = AutoAR1NormalMessenger(model)
    site = chain_sites(guide)["z"]
    fn = site["fn"]
    while not isinstance(fn, AR1Normal):
        assert isinstance(fn, torch.distributions.Independent)
        fn = fn.base_dist
    assert site["value"].shape == (*plates, *shape)
    d = shape[-1]
    assert shapes(guide.named_pyro_params()) == {
        "locs.z": (*plates, *shape),
        "scales.z": (*plates, *shape),
        "atanh_rhos.z": (*plates, *shape[:-1], d - 1),
    }
    with torch.no_grad():
        guide.locs.z.add_(torch.linspace(-1, 1, d))
        guide.atanh_rhos.z.add_(0.7)
    assert_analytic_kl(model, guide)
    means, covs = dense_moments(guide.locs.z, guide.scales.z, guide.atanh_rhos.z)
    prior_covariance = getattr(prior(), "covariance_matrix", None)
    if prior_covariance is None:
        base = prior().base_dist
        prior_covariance = base.covariance_matrix[0] if isinstance(base, AR1Normal) else torch.eye(d)
    expected = sum(
        reference.dense_kl(mean, cov, np.zeros(d), prior_covariance.double().numpy())
        for mean, cov in zip(means, covs, strict=True)
    )
    for elbo in (TraceMeanField_ELBO, JitTraceMeanField_ELBO):
        losses = losses_of(model, guide, elbo, ignore_jit_warnings=True)
        assert losses == pytest.approx([expected] * 2, rel=1e-4)


def dense_moments(loc, scale, atanh_rho) -> tuple[np.ndarray, np.ndarray]:
    """Row by row, in float64."""
    loc, scale, atanh_rho = (value.detach().double().numpy() for value in (loc, scale, atanh_rho))
    d = loc.shape[-1]
    rows = {"loc": loc, "scale": scale, "rho": np.tanh(atanh_rho)}
    return loc.reshape(-1, d), reference.covariance(rows).reshape(-1, d, d)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_of_a_plate_of_chains(elbo):
    conjugate = Conjugate(N)
    guide = AutoAR1NormalMessenger(conjugate.model, init_scale=0.5)
    estimator = elbo(num_particles=32, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(conjugate.model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}), estimator)
    for _ in range(500):
        svi.step()
    np.testing.assert_allclose(guide.locs.z.detach(), conjugate.loc, atol=0.06)
    for name in ("scale", "atanh_rho"):
        expected = np.broadcast_to(getattr(conjugate, name), (N, D - (name == "atanh_rho")))
        np.testing.assert_allclose(getattr(guide, name + "s").z.detach(), expected, atol=0.06)


def test_subsampled_plate():
    conjugate = Conjugate(N)
    index = torch.tensor([2, 0])
    guide = AutoAR1NormalMessenger(conjugate.model)
    site = chain_sites(guide, index)["z"]
    assert shapes(guide.named_pyro_params()) == {"locs.z": (N, D), "scales.z": (N, D), "atanh_rhos.z": (N, D - 1)}
    with torch.no_grad():
        for value in guide.parameters():
            value.add_(torch.randn_like(value))
    with pyro.plate("rows", N):
        loc, scale, atanh_rho = guide.locs.z, guide.scales.z, guide.atanh_rhos.z
    site = chain_sites(guide, index)["z"]
    assert torch.equal(site["fn"].loc, loc[index])
    assert torch.equal(site["fn"].scale, scale[index])
    assert torch.equal(site["fn"].atanh_rho, atanh_rho[index])
    assert site["scale"] == N / 2
    assert_analytic_kl(conjugate.model, guide, index)
    losses = [TraceMeanField_ELBO().loss(conjugate.model, guide, torch.tensor([i, j])) for i, j in [(0, 1), (2, 3)]]
    assert np.isfinite(losses).all()


def test_amortised_plate():
    conjugate = Conjugate(N)
    guide = AutoAR1NormalMessenger(conjugate.model, amortized_plates=("rows",))
    for index in (torch.tensor([1]), torch.tensor([0, 3]), None):
        site = chain_sites(guide, index)["z"]
        assert site["fn"].batch_shape == (N if index is None else len(index),)
        assert site["value"].unique(dim=0).shape[0] == len(site["value"])  # a draw for each
        assert shapes(guide.named_pyro_params()) == {"locs.z": (D,), "scales.z": (D,), "atanh_rhos.z": (D - 1,)}
        assert_analytic_kl(conjugate.model, guide, index)


def test_parameters_made_among_particles_have_no_particle_dimension():
    """Not even where one site's prior depends on another's value, where Pyro's messenger gives them one."""

    def model():
        a = pyro.sample("a", AR1Normal(torch.zeros(D), 1.0, 0.5))
        b = pyro.sample("b", AR1Normal(a, 1.0, 0.5))
        s = pyro.sample("s", dist.LogNormal(b.mean(-1), 1.0))
        pyro.sample("x", dist.Normal(b, s.unsqueeze(-1)).to_event(1), obs=torch.ones(D))

    guide = AutoAR1NormalMessenger(model)
    with pytest.warns(UserWarning, match="'s' is no chain"):
        TraceMeanField_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=0).loss(model, guide)
    assert {tuple(value.shape) for value in guide.parameters()} == {(D,), (D - 1,), ()}
    assert np.isfinite(TraceMeanField_ELBO().loss(model, guide))


@pytest.mark.parametrize("plates", [(), (N,)], ids=str)
def test_training_leaves_the_prior_as_it_is(plates):
    """Parameters start from its mean, not in it, as those of Pyro's messenger do."""
    loc, mean = torch.zeros(*plates, D), torch.zeros(plates)

    def model():
        with pyro.plate_stack("rows", plates) if plates else contextlib.nullcontext():
            z = pyro.sample("z", AR1Normal(loc, 1.0, 0.5))
            m = pyro.sample("m", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z + m.unsqueeze(-1), 1.0).to_event(1), obs=torch.ones(*plates, D))

    guide = AutoAR1NormalMessenger(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO())
    with pytest.warns(UserWarning, match="'m' is no chain"):
        svi.step()
    assert guide.locs.z.any()
    assert guide.locs.m.any()
    assert not loc.any()
    assert not mean.any()


@pytest.mark.parametrize(
    ("prior", "reason"),
    [
        (lambda: dist.Normal(0.0, 1.0), "no event dimension"),
        (lambda: dist.Normal(torch.zeros(N), 1.0), "no event dimension"),
        (lambda: dist.LogNormal(torch.zeros(N), 1.0), "support"),
        (lambda: dist.Dirichlet(torch.ones(N)), "support"),
        (lambda: dist.Uniform(torch.zeros(D), 1.0).to_event(1), "support"),
    ],
)
def test_other_sites_get_normals_and_a_warning(prior, reason):
    def model():
        with pyro.plate("rows", N):
            pyro.sample("b.z", prior())

    guide, pyros = AutoAR1NormalMessenger(model, init_scale=0.3), AutoNormalMessenger(model, init_scale=0.3)
    with pytest.warns(UserWarning, match=f"site 'b.z' is no chain, for .*{reason}"):
        guide()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guide()
    pyros()
    pyro.set_rng_seed(0)
    site = chain_sites(guide)["b.z"]
    pyro.set_rng_seed(0)
    expected = chain_sites(pyros)["b.z"]
    torch.testing.assert_close(site["value"], expected["value"])
    torch.testing.assert_close(site["fn"].log_prob(site["value"]), expected["fn"].log_prob(site["value"]))
    if reason == "no event dimension":
        assert_analytic_kl(model, guide)


def test_no_chain_along_a_plate():
    """The elements of a plate are independent."""

    def model():
        with pyro.plate("time", D):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = AutoAR1NormalMessenger(model)
    with pytest.warns(UserWarning, match="no event dimension"):
        fn = chain_sites(guide)["z"]["fn"]
    assert isinstance(fn, torch.distributions.Normal)
    assert fn.batch_shape == (D,)


def test_a_discrete_site_raises_as_in_pyro():
    def model():
        pyro.sample("z", dist.Categorical(torch.ones(3)))

    for guide in (AutoAR1NormalMessenger(model), AutoNormalMessenger(model)):
        with pytest.raises(Exception, match="discrete sample site 'z'"):
            guide()


def test_messenger_initial_values_and_median():
    def model():
        pyro.sample("z", AR1Normal(torch.arange(3.0), 1.0, 0.5))
        pyro.sample("s", dist.LogNormal(0.0, 1.0))
        pyro.sample("t", dist.Normal(2.0, 1.0))

    guide = AutoAR1NormalMessenger(model, init_scale=0.2)
    with pytest.warns(UserWarning, match="is no chain"):
        median = guide.median()
    torch.testing.assert_close(median["z"], torch.arange(3.0))
    torch.testing.assert_close(median["t"], torch.tensor(2.0))
    torch.testing.assert_close(median["s"], guide.locs.s.exp())
    torch.testing.assert_close(guide.scales.z, torch.full((3,), 0.2))
    assert not guide.atanh_rhos.z.any()
    pyro.clear_param_store()
    values = {"z": torch.ones(3), "s": torch.tensor(2.0), "t": torch.tensor(0.5)}
    guide = AutoAR1NormalMessenger(model, init_loc_fn=init_to_value(values=values))
    with pytest.warns(UserWarning, match="is no chain"):
        median = guide.median()
    for name, value in values.items():
        torch.testing.assert_close(median[name], value)
    with pytest.raises(ValueError, match="init_scale"):
        AutoAR1NormalMessenger(model, init_scale=0.0)


@pytest.mark.parametrize("saved", ["state_dict", "store", "deepcopy"])
def test_messenger_state(saved, tmp_path):
    conjugate = Conjugate(N)
    guide = AutoAR1NormalMessenger(conjugate.model)
    svi = SVI(conjugate.model, guide, pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO())
    for _ in range(3):
        svi.step()
    again = AutoAR1NormalMessenger(conjugate.model)
    state = copy.deepcopy(guide.state_dict())
    if saved == "store":
        pyro.get_param_store().save(tmp_path / "parameters.pt")
        pyro.clear_param_store()
        pyro.get_param_store().load(tmp_path / "parameters.pt")
        again()
    elif saved == "state_dict":
        pyro.clear_param_store()
        again()
        again.load_state_dict(state)
    else:
        again = copy.deepcopy(guide)
    assert set(state) == set(again.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())


def test_messenger_in_predictive():
    conjugate = Conjugate(N)
    guide = AutoAR1NormalMessenger(conjugate.model)
    guide()
    draws = Predictive(conjugate.model, guide=guide, num_samples=7)()
    assert draws["z"].shape == (7, N, D)


@pytest.mark.parametrize("by_handler", [False, True], ids=["method", "handler"])
def test_messenger_masks_where_the_prior_is(by_handler):
    standard, mask = dist.Normal(torch.zeros(D), 1.0).to_event(1), torch.tensor([True, False, True, False])
    model = sample(standard, mask=mask) if by_handler else sample(standard.expand([N]).mask(mask))
    guide = AutoAR1NormalMessenger(model)
    guide()
    with torch.no_grad():
        guide.locs.z.add_(torch.arange(4.0).unsqueeze(-1))
    assert_analytic_kl(model, guide)
    means, covs = dense_moments(guide.locs.z, guide.scales.z, guide.atanh_rhos.z)
    expected = sum(reference.dense_kl(means[row], covs[row], np.zeros(D), np.eye(D)) for row in (0, 2))
    assert losses_of(model, guide) == pytest.approx([expected] * 2, rel=1e-5)
