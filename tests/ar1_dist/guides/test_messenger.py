"""The guide of a chain at each site: exactness, analytic divergences, plates, time, prediction and saving."""

import contextlib
import copy
import io
import pickle
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, JitTraceMeanField_ELBO, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import init_to_value
from pyro.infer.autoguide.effect import AutoNormalMessenger

from ar1_dist import AR1Normal, AutoAR1Normal, AutoAR1NormalMessenger, assert_analytic_kl
from tests.ar1_dist import reference
from tests.ar1_dist.elbo import ROWS as N
from tests.ar1_dist.elbo import Conjugate, chain_sites, losses_of, sample

D = 3
both_guides = pytest.mark.parametrize("guide_class", [AutoAR1Normal, AutoAR1NormalMessenger])


def shapes(parameters) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in parameters}


@pytest.mark.parametrize(
    ("prior", "shape"),
    [
        (lambda: AR1Normal(torch.zeros(D), 1.0, 0.5), (D,)),
        pytest.param(
            lambda: AR1Normal(torch.zeros(1), 1.0, 0.5), (1,), marks=pytest.mark.filterwarnings("ignore:.*no chain")
        ),
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

    guide = AutoAR1NormalMessenger(model, time_dim=-1)
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


@pytest.mark.parametrize("elbo", [JitTrace_ELBO, JitTraceMeanField_ELBO])
def test_traced_steps(elbo):
    def model():
        z = pyro.sample("z", AR1Normal(torch.zeros(20), 1.0, 0.9))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(20))

    svi = SVI(model, AutoAR1NormalMessenger(model), pyro.optim.Adam({"lr": 0.1}), elbo(ignore_jit_warnings=True))
    losses = [svi.step() for _ in range(20)]
    assert losses[-1] < losses[0]


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


def test_a_sequential_plate_raises():
    def model():
        for i in pyro.plate("rows", N):
            pyro.sample(f"z{i}", AR1Normal(torch.zeros(D), 1.0, 0.5))

    with pytest.raises(NotImplementedError, match="'z0' is in a sequential plate"):
        AutoAR1NormalMessenger(model)()


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


# time


def hidden_markov(duration: int, k: int) -> dist.GaussianHMM:
    """A random walk for each of k features, seen with noise."""
    normal = dist.Normal(torch.zeros(k), 1.0).to_event(1)
    return dist.GaussianHMM(normal, torch.eye(k), normal, torch.eye(k), normal, duration=duration)


@pytest.mark.parametrize(
    ("prior", "time_dim", "found"),
    [
        (lambda: dist.Normal(torch.zeros(5, 1), 1.0).to_event(2), None, -2),
        (lambda: dist.Normal(torch.zeros(5, 2), 1.0).to_event(2), -2, -2),
        (lambda: dist.Normal(torch.zeros(5, 2), 1.0).to_event(2), {"z": -2}, -2),
        (lambda: dist.Normal(torch.zeros(5, 2, 3), 1.0).to_event(3), -3, -3),
        (lambda: hidden_markov(5, 1), None, -2),
        (lambda: hidden_markov(5, 2), None, -2),
        (lambda: AR1Normal(torch.zeros(2, 5), 1.0, 0.5).to_event(1), None, -1),
        (lambda: dist.Normal(torch.zeros(2, 5), 1.0).to_event(2), -1, -1),
    ],
)
@pytest.mark.parametrize("plates", [(), (N,)], ids=str)
def test_chains_run_along_time(prior, time_dim, found, plates):
    def model():
        with pyro.plate_stack("rows", plates) if plates else contextlib.nullcontext():
            pyro.sample("z", prior())

    guide = AutoAR1NormalMessenger(model, time_dim=time_dim)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        site = chain_sites(guide)["z"]
    shape = prior().event_shape
    assert site["fn"].event_shape == shape
    assert site["fn"].batch_shape == plates
    assert site["value"].shape == guide.locs.z.shape == (*plates, *shape)
    with torch.no_grad():
        guide.atanh_rhos.z.fill_(1.0)
    draws = poutine.trace(pyro.plate("draws", 20_000, dim=-3)(guide)).get_trace().nodes["z"]["value"].squeeze(1)
    u = ((draws - guide.locs.z) / guide.scales.z).movedim(found, -1).flatten(1, -2).unbind(-2)[-1]  # one chain
    assert np.corrcoef(u.detach().numpy().T)[0] == pytest.approx(np.tanh(1.0) ** np.arange(5), abs=0.03)


def test_divergence_along_another_dimension_than_the_last_is_analytic():
    def model():
        with pyro.plate("rows", N):
            pyro.sample("z", dist.Normal(torch.ones(5, 2), 2.0).to_event(2))

    guide = AutoAR1NormalMessenger(model, time_dim=-2)
    guide()
    with torch.no_grad():
        for value in guide.parameters():
            value.add_(torch.randn_like(value))
    assert_analytic_kl(model, guide)
    moved = (value.movedim(-2, -1) for value in (guide.locs.z, guide.scales.z, guide.atanh_rhos.z))
    expected = sum(
        reference.dense_kl(mean, cov, np.ones(5), 4 * np.eye(5))
        for mean, cov in zip(*dense_moments(*moved), strict=True)
    )
    assert losses_of(model, guide) == pytest.approx([expected] * 2, rel=1e-5)


def test_no_closed_form_to_a_hidden_markov_model_is_said():
    def model():
        pyro.sample("z", hidden_markov(5, 1))

    guide = AutoAR1NormalMessenger(model)
    with pytest.raises(ValueError, match="'z': no closed form .* to GaussianHMM, so that it is sampled"):
        assert_analytic_kl(model, guide)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceMeanField_ELBO(num_particles=8))
    losses = [svi.step() for _ in range(100)]
    assert sum(losses[-10:]) / 10 < 0.5 < sum(losses[:10]) / 10  # the prior is a chain and noise


def test_a_subsample_of_chains_along_another_dimension():
    def model(index=None):
        with pyro.plate("rows", N, subsample=index):
            pyro.sample("z", dist.Normal(torch.zeros(5, 1), 1.0).to_event(2))

    guide = AutoAR1NormalMessenger(model)
    guide()
    with torch.no_grad():
        guide.locs.z.copy_(torch.arange(float(N)).reshape(N, 1, 1))
    assert guide.median(torch.tensor([3, 1]))["z"][:, 0, 0].tolist() == [3, 1]


def test_time_that_is_not_plain_is_said():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(5, 2), 1.0).to_event(2))
        pyro.sample("w", dist.Normal(torch.zeros(5), 1.0).to_event(1))

    for options in ({}, {"time_dim": {"w": -1}}):
        guide = AutoAR1NormalMessenger(model, **options)
        with pytest.warns(UserWarning, match=r"'z' has events of shape \(5, 2\).* last .*time_dim"):
            guide()
        assert guide.atanh_rhos.z.shape == (5, 1)
        pyro.clear_param_store()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            guide()
            AutoAR1NormalMessenger(model, time_dim={"z": -1})()
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"time_dim -2 is no event dimension of site 'w', .* shape \(5,\)"):
        AutoAR1NormalMessenger(model, time_dim=-2)()


def test_time_dim_of_no_site_is_said():
    with pytest.warns(UserWarning, match=r"time_dim names \['Z'\], which the guide does not draw"):
        AutoAR1NormalMessenger(Conjugate().model, time_dim={"z": -1, "Z": -1})()


@pytest.mark.parametrize("time_dim", [0, 1, True, -1.0, "z", {"z": 1}])
def test_invalid_time_dim(time_dim):
    with pytest.raises(ValueError, match="time_dim must be a negative integer"):
        AutoAR1NormalMessenger(Conjugate().model, time_dim=time_dim)


@pytest.mark.parametrize(("shape", "time_dim"), [((1,), None), ((1, 1), None), ((5, 1), -1), ((1, 2), -2)])
def test_a_chain_of_one_element_is_said(shape, time_dim):
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))

    guide = AutoAR1NormalMessenger(model, time_dim=time_dim)
    with pytest.warns(UserWarning, match="'z' is no chain, for its time, .* has one element"):
        assert guide()["z"].shape == shape
    assert_analytic_kl(model, guide)


# prediction


def predicted(guide_class, likelihood, data, **options):
    def model(data=None):
        z = pyro.sample("z", AR1Normal(torch.zeros(D), 1.0, 0.5))
        pyro.sample("y", likelihood(z).to_event(1), obs=data)

    guide = guide_class(model)
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.97}), elbo)
    for _ in range(150):
        svi.step(data)
    return guide, Predictive(model, guide=guide, num_samples=1000, **options)()


@pytest.mark.filterwarnings("ignore:AutoAR1NormalMessenger. site 'y'")
@pytest.mark.parametrize("parallel", [False, True])
@both_guides
def test_predictive_has_the_noise(guide_class, parallel):
    guide, draws = predicted(guide_class, lambda z: dist.Normal(z, 1.0), torch.ones(D), parallel=parallel)
    prior = reference.covariance({"loc": np.zeros(D), "scale": np.ones(D), "rho": np.full(D - 1, 0.5)})
    posterior = np.linalg.inv(np.linalg.inv(prior) + np.eye(D))
    assert draws["z"].shape == draws["y"].shape == (1000, D)
    assert draws["z"].std(0).numpy() == pytest.approx(np.sqrt(np.diag(posterior)), abs=0.1)
    assert draws["y"].std(0).numpy() == pytest.approx(np.sqrt(1 + np.diag(posterior)), abs=0.1)
    assert set(guide.median()) == set(guide.quantiles([0.5])) == {"z"}


@pytest.mark.filterwarnings("ignore:AutoAR1NormalMessenger. site 'y'")
@both_guides
def test_predictive_of_counts(guide_class):
    _, draws = predicted(guide_class, lambda z: dist.Poisson(z.exp()), torch.tensor([3.0, 4.0, 5.0]))
    assert (draws["y"] == draws["y"].round()).all()
    assert (draws["y"].var(0) > draws["z"].exp().mean(0)).all()


def test_what_was_observed_is_the_models_and_that_is_said():
    conjugate = Conjugate()

    def model(data=None):
        z = pyro.sample("z", AR1Normal(**conjugate.prior))
        y = pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=data)
        pyro.sample("late", dist.Normal(y.sum(), 1.0))

    guide = AutoAR1NormalMessenger(model)
    with pytest.warns(UserWarning, match="'late' is no chain"):
        assert set(guide(conjugate.data)) == {"z", "y", "late"}
    with pytest.warns(UserWarning, match="site 'y' was not latent when the guide was made, so that the model draws it"):
        assert set(chain_sites(guide)) == {"z", "late"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(guide()) == set(guide.median()) == {"z", "late"}
        assert [set(trace.stochastic_nodes) for trace in guide.get_traces()] == [{"z", "late"}] * 2
    assert {name for name, _ in guide.named_pyro_params()} == {
        "locs.z", "scales.z", "atanh_rhos.z", "locs.late", "scales.late",
    }  # fmt: skip


def test_a_guide_made_without_the_data_says_so():
    def model(data=None):
        z = pyro.sample("z", AR1Normal(torch.zeros(D), 1.0, 0.5))
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=data)

    guide = AutoAR1NormalMessenger(model)
    guide()
    with pytest.warns(UserWarning, match="site 'y' is observed, and was latent when the guide was made"):
        guide(torch.ones(D))


@pytest.mark.filterwarnings("ignore:.*'z3' was not latent")
def test_new_steps_are_the_priors():
    """A model with a site for each step, longer at prediction: its transitions forecast."""

    def model(steps):
        z = torch.zeros(2)
        for t in range(steps):
            z = pyro.sample(f"z{t}", dist.Normal(z, 1.0).to_event(1))

    guide = AutoAR1NormalMessenger(model)
    guide(2)
    with pytest.warns(UserWarning, match="site 'z2' was not latent"):
        draws = Predictive(model, guide=guide, num_samples=1000)(4)
    assert draws["z1"].std(0).mean().item() == pytest.approx(0.1, abs=0.01)
    assert draws["z3"].std(0).mean().item() == pytest.approx(2.01**0.5, abs=0.1)


@pytest.mark.filterwarnings("ignore:.*no chain")
@pytest.mark.parametrize("event", [True, False], ids=["event", "plate"])
@pytest.mark.parametrize("before", [1, 5])
def test_another_shape_than_at_the_first_call_raises(event, before):
    def model(size):
        with pyro.plate("rows", N if event else size):
            z = pyro.sample("z", AR1Normal(torch.zeros(size if event else D), 1.0, 0.5))
            pyro.sample("s", dist.LogNormal(z.sum(-1), 1.0))

    guide = AutoAR1NormalMessenger(model)
    guide(before)
    for call in (guide, guide.median, lambda size: guide.quantiles([0.5], size)):
        with pytest.raises(ValueError, match=r"site 'z' has shape \(.*8.*\), and the guide was made for shape \("):
            call(8)
    assert guide(before)["z"].shape == ((N, before) if event else (before, D))


def test_a_store_of_another_shape_raises():
    AutoAR1NormalMessenger(sample(AR1Normal(torch.zeros(5), 1.0, 0.5)))()
    with pytest.raises(ValueError, match=r"store has parameters of shape \(4, 5\)"):
        AutoAR1NormalMessenger(sample(AR1Normal(torch.zeros(8), 1.0, 0.5)))()


# what an AutoContinuous has


@pytest.mark.filterwarnings("ignore:.*no chain")
def test_messenger_quantiles():
    probabilities = [0.05, 0.5, 0.9]

    def model(index=None):
        with pyro.plate("rows", N, subsample=index):
            z = pyro.sample("z", AR1Normal(torch.zeros(D), 1.0, 0.5))
            s = pyro.sample("s", dist.LogNormal(z.sum(-1), 1.0))
            pyro.sample("x", dist.Normal(0.0, s), obs=torch.ones(N if index is None else len(index)))

    guide = AutoAR1NormalMessenger(model)
    guide()
    with torch.no_grad():
        for value in guide.parameters():
            value.add_(torch.randn_like(value))
    quantiles, median = guide.quantiles(probabilities), guide.median()
    assert set(quantiles) == {"z", "s"}
    for name, quantile in quantiles.items():
        loc, scale = (getattr(group, name).detach().numpy() for group in (guide.locs, guide.scales))
        expected = scipy.stats.norm(loc, scale).ppf(np.reshape(probabilities, (3,) + (1,) * loc.ndim))
        np.testing.assert_allclose(quantile, np.exp(expected) if name == "s" else expected, rtol=1e-4)
        torch.testing.assert_close(quantile[1], median[name])
        assert not quantile.requires_grad
        assert not median[name].requires_grad
    index = torch.tensor([2, 0])
    torch.testing.assert_close(guide.quantiles(torch.tensor([0.9]), index)["z"][0], quantiles["z"][2][index])
    guide.quantiles([0.0, 1.0])  # infinite, and not the model's values
    assert guide._levels is None


def test_messenger_quantiles_of_shared_parameters():
    conjugate = Conjugate(N)
    guide = AutoAR1NormalMessenger(conjugate.model, amortized_plates=("rows",))
    assert guide.quantiles([0.1, 0.9])["z"].shape == (2, N, D)


# saving and loading


def subsampling_model(index=None, data=None):
    """At the top of the module, so that it can be pickled."""
    with pyro.plate("rows", N, subsample=index):
        z = pyro.sample("b.z", AR1Normal(torch.zeros(D), 1.0, 0.5))
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, s.unsqueeze(-1)).to_event(1), obs=data)


def random_messenger(**options) -> AutoAR1NormalMessenger:
    guide = AutoAR1NormalMessenger(subsampling_model, **options)
    guide(None, torch.ones(N, D))
    with torch.no_grad():
        for value in guide.parameters():
            value.add_(torch.randn_like(value))
    return guide


@pytest.mark.filterwarnings("ignore:.*no chain")
def test_a_state_is_loaded_before_the_first_call():
    guide = random_messenger()
    state, median = copy.deepcopy(guide.state_dict()), guide.median(None, torch.ones(N, D))
    pyro.clear_param_store()
    again = AutoAR1NormalMessenger(subsampling_model)
    again.load_state_dict(state)
    assert set(again.state_dict()) == set(state)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())
    parameters, index = list(again.parameters()), torch.tensor([2, 0])
    with pytest.warns(UserWarning, match="site 'y' was not latent"):  # and is not drawn, though nothing was seen
        subsample = again.median(index)
    for name in ("b.z", "s"):
        assert torch.equal(subsample[name], median[name][index])
    assert "y" not in subsample
    assert torch.equal(again.median()["b.z"], median["b.z"])
    assert all(after is before for after, before in zip(again.parameters(), parameters, strict=True))
    svi = SVI(subsampling_model, again, pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO())
    svi.step(index, torch.ones(2, D))
    assert [bool(row.any()) for row in again.locs.b.z - guide.locs.b.z] == [True, False, True, False]


@pytest.mark.filterwarnings("ignore:.*no chain")
def test_part_of_a_state_can_be_loaded():
    state = {name: value for name, value in random_messenger().state_dict().items() if "b.z" in name}
    pyro.clear_param_store()
    again = AutoAR1NormalMessenger(subsampling_model)
    again.load_state_dict(state, strict=False)
    again(None, torch.ones(N, D))
    assert torch.equal(again.locs.b.z, state["locs.b.z_unconstrained"])
    assert again.locs.s.shape == (N,)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        again.load_state_dict({**again.state_dict(), "locs.other_unconstrained": torch.ones(3)})


@pytest.mark.filterwarnings("ignore:.*no chain")
def test_the_store_does_not_replace_a_loaded_state_in_silence():
    guide = random_messenger()
    state = copy.deepcopy(guide.state_dict())
    for changed in (False, True):
        again = AutoAR1NormalMessenger(subsampling_model)
        again.load_state_dict(state)
        if changed:
            with torch.no_grad():
                next(guide.parameters()).add_(1)
            with pytest.raises(ValueError, match=r"another value of 'locs.*clear_param_store"):
                again(None, torch.ones(N, D))
        else:
            again(None, torch.ones(N, D))


def test_a_state_of_another_shape_or_time_raises():
    def model(shape):
        pyro.sample("z", dist.Normal(torch.zeros(shape), 1.0).to_event(2))

    guide = AutoAR1NormalMessenger(model, time_dim=-2)
    guide((5, 2))
    state = copy.deepcopy(guide.state_dict())
    for shape, time_dim, message in [
        ((8, 2), -2, r"'z' has shape \(8, 2\), .* made for shape \(5, 2\)"),
        ((5, 2), -1, r"time_dim -1 .* shape \(5, 1\), .* shape \(4, 2\)"),
    ]:
        pyro.clear_param_store()
        again = AutoAR1NormalMessenger(model, time_dim=time_dim)
        again.load_state_dict(state)
        with pytest.raises(ValueError, match=message):
            again(shape)


@pytest.mark.filterwarnings("ignore:.*no chain")
@pytest.mark.parametrize("called", [True, False])
def test_messengers_are_pickled_with_their_models(called):
    guide = random_messenger() if called else AutoAR1NormalMessenger(subsampling_model)
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    pyro.clear_param_store()
    for again in (torch.load(buffer, weights_only=False), pickle.loads(pickle.dumps(guide)), copy.deepcopy(guide)):
        pyro.clear_param_store()
        values = again.median(None, torch.ones(N, D))
        if called:
            assert torch.equal(values["b.z"], guide.locs.b.z)
            with pytest.warns(UserWarning, match="site 'y' was not latent"):
                assert set(again()) == {"b.z", "s"}


@pytest.mark.filterwarnings("ignore:.*no chain")
def test_data_that_a_loaded_store_lacks_are_said(tmp_path):
    random_messenger()
    pyro.get_param_store().save(tmp_path / "parameters.pt")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "parameters.pt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        AutoAR1NormalMessenger(subsampling_model)(None, torch.ones(N, D))
    assert not [each for each in caught if "none for" in str(each.message)]
    with pytest.warns(UserWarning, match=r"none for \['y'\]: if these are data, call the guide with them first"):
        AutoAR1NormalMessenger(subsampling_model)()
