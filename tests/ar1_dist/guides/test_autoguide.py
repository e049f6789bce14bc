"""Guides of autoregressive chains: whatever Pyro's AutoMultivariateNormal does, exactness, and analytic divergences."""

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
from pyro.contrib.forecast import Forecaster, ForecastingModel
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
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
from pyro.infer.reparam import NeuTraReparam
from statsmodels.tsa.statespace.structural import UnobservedComponents

from ar1_dist import AR1Normal, AutoAR1Normal, AutoAR1NormalMessenger
from tests.ar1_dist import reference
from tests.ar1_dist.elbo import ROWS as N
from tests.ar1_dist.elbo import Conjugate, chain_sites

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


@pytest.mark.parametrize("guide_class", [AutoAR1Normal, AutoAR1NormalMessenger])
def test_infinite_init_scale(guide_class):  # which Pyro's take
    with pytest.raises(ValueError, match="init_scale must be a positive, finite float; got inf"):
        guide_class(mixed_model, init_scale=float("inf"))


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


# what an AutoContinuous leaves in silence


@pytest.mark.parametrize("fewer", [True, False], ids=["fewer", "all, in another order"])
def test_local_variables_of_a_subsample_raise(fewer):
    """Their parameters would be those of places in the batch; Pyro's guides draw indices of their own and go on."""
    index = torch.tensor([2, 0]) if fewer else torch.tensor([1, 0, 2, 3])
    conjugate = Conjugate(N)
    guide = AutoAR1Normal(conjugate.model)
    for _ in range(2):  # nor does it go on at a second try
        with pytest.raises(ValueError, match="'z' is in the subsampled plate 'rows'.*AutoAR1NormalMessenger"):
            guide(index)
    guide = trained(AutoAR1Normal, conjugate.model)
    for _ in range(2):
        with pytest.raises(ValueError, match="'z' is in the subsampled plate 'rows'.*AutoAR1NormalMessenger"):
            guide(index)
    guide(torch.arange(N))


def test_local_variables_of_a_drawn_subsample_raise():
    def model(subsample_size):
        with pyro.plate("rows", 10, subsample_size=subsample_size):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="subsampled plate 'rows', 4 of 10"):
        AutoAR1Normal(model)(4)
    guide = trained(AutoAR1Normal, lambda: model(10))
    assert guide.latent_dim == 10


def test_global_variables_of_subsampled_data():
    def model(index):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 10, subsample=index):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(len(index)))

    guide = AutoAR1Normal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(torch.randperm(10)[:size]) for size in (4, 4, 7)]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("event", [True, False], ids=["event", "plate"])
def test_another_shape_than_at_the_first_call_raises(event, keyword):
    def model(size):
        if event:
            pyro.sample("z", AR1Normal(torch.zeros(size), 1.0, 0.5))
        else:
            with pyro.plate("rows", size):
                pyro.sample("z", dist.Normal(0.0, 1.0))

    def draw(size):
        return guide(size=size)["z"].shape if keyword else guide(size)["z"].shape

    guide = AutoAR1Normal(model)
    assert draw(5) == (5,)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'z' has shape \(8,\), and the guide was made for shape \(5,\)"):
            draw(8)
    with pytest.raises(ValueError, match="'z' has shape"):
        Predictive(model, guide=guide, num_samples=2)(8)
    assert draw(5) == guide()["z"].shape == (5,)


class LocalLevel(ForecastingModel):
    def model(self, zero_data, covariates):
        with self.time_plate:
            step = pyro.sample("step", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        self.predict(dist.Normal(0.0, 1.0), step.cumsum(-2))


def test_pyros_forecaster():
    """Its time is a plate, longer at the forecast, of which it draws the rest."""
    forecaster = Forecaster(
        model := LocalLevel(),
        torch.randn(20, 1),
        torch.zeros(20, 0),
        guide=AutoAR1Normal(model),
        num_steps=3,
        log_every=0,
    )
    draws = forecaster(torch.randn(20, 1), torch.zeros(24, 0), num_samples=200)
    assert draws.shape == (200, 4, 1)
    assert forecaster.guide.latent_dim == 20
    assert (draws.std(0).squeeze(-1).diff() > -0.5).all()


def test_the_model_runs_again_for_other_shapes_alone():
    runs = []

    def model(data, beta=1.0):
        runs.append(data.shape)
        z = pyro.sample("z", AR1Normal(torch.zeros(D), 1.0, 0.5))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1).expand(data.shape[:1]).to_event(1), obs=data)

    guide = AutoAR1Normal(model)
    for data, beta in [(torch.zeros(4, D), 0.1), (torch.ones(4, D), 0.2), (torch.ones(2, D), 0.3)]:
        guide(data, beta=beta)
    assert runs == [(4, D), (2, D)]


def test_sites_that_were_not_latent_are_the_models():
    def model(steps=2, data=None):
        z = torch.zeros(())
        for t in range(steps):
            z = pyro.sample(f"z{t}", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    guide = AutoAR1Normal(model)
    guide(2, torch.ones(()))
    with pytest.warns(UserWarning, match="site '(z2|x)' was not latent"):
        assert set(guide(3)) == {"z0", "z1"}
    pyro.clear_param_store()
    guide = AutoAR1Normal(model)
    guide(2)
    with pytest.warns(UserWarning, match="site 'x' is observed, and was latent when the guide was made"):
        guide(2, torch.ones(()))


@pytest.mark.parametrize(
    ("prior", "warned"),
    [
        (lambda: dist.Normal(torch.zeros(5, 2), 1.0).to_event(2), True),
        (lambda: dist.Normal(torch.zeros(5, 1), 1.0).to_event(2), False),
        (lambda: AR1Normal(torch.zeros(2, 5), 1.0, 0.5).to_event(1), False),
        (lambda: dist.Normal(torch.zeros(5, 2), 1.0).to_event(1).expand([5]).to_event(1), True),
    ],
)
def test_interleaved_events_are_said(prior, warned):
    guide = AutoAR1Normal(lambda: pyro.sample("z", prior()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guide(), guide()
    assert len([each for each in caught if "'z' has shape (5, 2)" in str(each.message)]) == warned


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


def test_saving_leaves_the_guide_as_it_is():
    guide = trained(AutoAR1Normal)
    again = copy.deepcopy(guide)
    assert guide.model is not None
    assert set(again()) == set(again(1)) == set(SHAPES)  # without a model nothing is checked
    guide.median()


def test_a_state_is_loaded_before_the_first_call():
    guide = trained(AutoAR1Normal)
    state = copy.deepcopy(guide.state_dict())
    pyro.clear_param_store()
    again = AutoAR1Normal(mixed_model)
    again.load_state_dict(state)
    parameters = list(again.parameters())
    assert same_posteriors(guide, again)
    assert {name: value.tolist() for name, value in again.median().items()} == {
        name: value.tolist() for name, value in guide.median().items()
    }
    again()
    assert same_posteriors(guide, again)
    assert all(after is before for after, before in zip(again.parameters(), parameters, strict=True))
    with torch.no_grad():
        guide.loc.add_(1)
    again.load_state_dict(guide.state_dict())
    assert same_posteriors(guide, again)


def test_a_state_of_another_model_raises():
    state = trained(AutoAR1Normal).state_dict()
    pyro.clear_param_store()
    again = AutoAR1Normal(Conjugate().model)
    again.load_state_dict(state)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"of {LATENT_DIM} latent coordinates, and the model has 3.*'z': \(3,\)"):
            again()


def test_the_store_does_not_replace_a_loaded_state_in_silence():
    guide = trained(AutoAR1Normal)
    state = copy.deepcopy(guide.state_dict())
    again = AutoAR1Normal(mixed_model)
    again.load_state_dict(state)
    again()  # equal values are the store's or the state's
    with torch.no_grad():
        guide.loc.add_(1)
    again = AutoAR1Normal(mixed_model)
    again.load_state_dict(state)
    with pytest.raises(ValueError, match="another value of 'AutoAR1Normal.loc'.*clear_param_store"):
        again()


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
