"""Scales and correlations that the model draws, with particles and plates: right, refused by name, or warned of."""

import math
import re
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

from ar1_dist import AR1Normal, AutoAR1NormalMessenger

T = 6
CHAINS = {
    "scale": lambda tau: AR1Normal(torch.zeros(T), tau, 0.5),
    "rho": lambda tau: AR1Normal(torch.zeros(T + 1), 1.0, (-tau).exp()),
    "atanh_rho": lambda tau: AR1Normal(torch.zeros(T + 1), 1.0, atanh_rho=tau),
    "timescale": lambda tau: AR1Normal.from_times(torch.arange(T + 1.0), torch.zeros(T + 1), 1.0, tau),
    "noise_scale": lambda tau: AR1Normal.from_transitions(torch.zeros(T + 1), 1.0, tau, 1.0),
    "coefficient": lambda tau: AR1Normal.from_transitions(torch.zeros(T + 1), tau, 1.0, 1.0),
}


def model_of(chain, plate_size=None):
    def model():
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        if plate_size is None:
            pyro.sample("z", chain(tau))
        else:
            with pyro.plate("series", plate_size):
                pyro.sample("z", chain(tau))

    return model


def loss(model, num_particles, max_plate_nesting=0, loss_type=Trace_ELBO):
    elbo = loss_type(
        num_particles=num_particles, vectorize_particles=num_particles > 1, max_plate_nesting=max_plate_nesting
    )
    return elbo.loss(model, AutoNormal(model))


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("num_particles", [1, 4, T, T + 1])
@pytest.mark.parametrize("plate_size", [None, 3, T])
def test_one_number_for_each_particle(name, num_particles, plate_size):
    """With a last dimension of its own it is that with any number of particles, and nobody warns."""
    model = model_of(lambda tau: CHAINS[name](tau.unsqueeze(-1)), plate_size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(model, num_particles, max_plate_nesting=1)
        if plate_size is None:
            loss(model, num_particles)
        drawn = Predictive(model, {}, num_samples=T, parallel=True)()["z"]
    assert drawn.shape[0] == T


@pytest.mark.parametrize("name", CHAINS)
def test_error_names_the_remedy(name):
    with pytest.raises(ValueError, match=rf"{name}.* got .*\(4,\).* give {name}\.unsqueeze\(-1\)"):
        loss(model_of(CHAINS[name]), num_particles=4)


def draw_in_a_plate(model):
    with pyro.plate("series", T):
        pyro.poutine.trace(model).get_trace()


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(
    "run",
    [
        lambda model: loss(model, num_particles=T),
        lambda model: Predictive(model, {}, num_samples=T, parallel=True)(),
        draw_in_a_plate,
    ],
    ids=["particles", "samples", "plate"],
)
def test_as_many_particles_as_coordinates(name, run):
    """They could be meant as one number for each coordinate; a warning names the remedy."""
    wanted = rf"last dimension of {name}, .* site 'tau'.* give {name}\.unsqueeze\(-1\)"
    with pytest.warns(UserWarning, match=wanted) as caught:
        run(model_of(CHAINS[name]))
    assert all(re.search(wanted, str(each.message)) for each in caught)


def test_particles_beside_a_plate_of_as_many():
    """The particles of a scale of shape (T, 1) would lie along the plate."""
    with pytest.warns(UserWarning, match=r"scale, of shape \(6, 1\).* plate 'num_particles_vectorized'"):
        loss(model_of(CHAINS["scale"], T), num_particles=T, max_plate_nesting=1)


def test_leading_dimensions_that_do_not_broadcast():
    with pytest.raises(ValueError, match=r"must broadcast; got .* give scale\.unsqueeze\(-1\)"):
        AR1Normal(torch.zeros(3, T), torch.ones(4, 1), 0.5)


def test_one_number_for_each_coordinate():
    """Drawn in a plate that is closed, or an event, it is what it seems."""

    def model():
        with pyro.plate("coordinates", T):
            tau = pyro.sample("tau", dist.HalfNormal(1.0))
        scale = pyro.sample("scale", dist.HalfNormal(torch.ones(T)).to_event(1))
        pyro.sample("z", AR1Normal(torch.zeros(T), tau, 0.5))
        with pyro.plate("series", T):
            pyro.sample("series_of_z", AR1Normal(torch.zeros(T), scale, 0.5))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyro.poutine.trace(model).get_trace()


@pytest.mark.filterwarnings("ignore:.*'tau' is no chain")
@pytest.mark.parametrize("num_particles", [1, 4, T])
@pytest.mark.parametrize("plate_size", [None, 3, T])
def test_an_event_of_size_1_needs_no_remedy(num_particles, plate_size):
    def model():
        tau = pyro.sample("tau", dist.HalfNormal(torch.ones(1)).to_event(1))
        with pyro.plate("series", plate_size or 1):
            pyro.sample("z", AR1Normal(torch.zeros(T), tau, 0.5))

    guide = AutoAR1NormalMessenger(model)
    guide()
    elbo = TraceMeanField_ELBO(num_particles, 1, vectorize_particles=num_particles > 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isfinite(elbo.loss(model, guide))
