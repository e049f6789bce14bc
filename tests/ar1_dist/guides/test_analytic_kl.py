"""Where the divergence is analytic, and where not."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_value
from pyro.infer.autoguide.effect import AutoNormalMessenger

from ar1_dist import AR1Normal, AutoAR1Normal, AutoAR1NormalMessenger, assert_analytic_kl
from tests.ar1_dist.elbo import ROWS as N
from tests.ar1_dist.elbo import losses_of, sample, true_loss

D = 3
MASK = torch.tensor([True, False, True, False])
STANDARD = dist.Normal(torch.zeros(D), 1.0).to_event(1)
CHAIN = AR1Normal(torch.ones(D), 0.5, 0.6)


class WithoutExpand(AR1Normal):
    """A class that a plate wraps into an ExpandedDistribution."""

    def expand(self, batch_shape, _instance=None):
        return dist.TorchDistribution.expand(self, batch_shape)


IDENTITY, IDENTITY_OF_CHAIN = (
    dist.TransformedDistribution(base, [torch.distributions.identity_transform])
    for base in (STANDARD, dist.Normal(torch.ones(D), 0.5).to_event(1))
)
MASKED, MASKED_STANDARD = CHAIN.expand([N]).mask(MASK), STANDARD.expand([N]).mask(MASK)
ANALYTIC = {
    "standard normal": (sample(STANDARD), sample(CHAIN)),
    "Ornstein-Uhlenbeck": (sample(AR1Normal(torch.zeros(D), 1.0, torch.tensor([0.9, 0.1]))), sample(CHAIN)),
    "MultivariateNormal": (sample(dist.MultivariateNormal(torch.zeros(D), torch.eye(D))), sample(CHAIN)),
    "both masked": (sample(MASKED_STANDARD), sample(MASKED)),
    "both under mask": (sample(STANDARD, mask=MASK), sample(CHAIN, mask=MASK)),
    "both under scale": (sample(STANDARD, scale=0.5), sample(CHAIN, scale=0.5)),
    "equal transforms": (sample(IDENTITY), sample(IDENTITY_OF_CHAIN)),
}
SAMPLED = {
    "unregistered": (sample(dist.StudentT(3.0, torch.zeros(D), 1.0).to_event(1)), sample(CHAIN), "StudentT"),
    "normal to low rank": (
        sample(dist.LowRankMultivariateNormal(torch.zeros(D), torch.ones(D, 1), torch.ones(D))),
        sample(STANDARD),
        "LowRankMultivariateNormal",
    ),
    "model masked": (sample(MASKED_STANDARD), sample(CHAIN), "only the model is masked"),
    "guide masked": (sample(STANDARD), sample(MASKED), "only the guide is masked"),
    "expanded prior": (
        sample(WithoutExpand(torch.zeros(D), 1.0, 0.5)),
        sample(CHAIN),
        r"ExpandedDistribution\(Without",
    ),
    "identity transform": (sample(STANDARD), sample(IDENTITY_OF_CHAIN), "be its own the identity"),
    "MultivariateNormal": (
        sample(dist.MultivariateNormal(torch.zeros(D), torch.eye(D)), plate=False),
        AutoNormalMessenger(sample(dist.MultivariateNormal(torch.zeros(D), torch.eye(D)), plate=False)),
        "to MultivariateNormal",
    ),
}
WRONG = {
    "scale": (sample(STANDARD, scale=0.5), sample(CHAIN), "its scale differs"),
    "mask": (sample(STANDARD, mask=MASK), sample(CHAIN), "its mask differs"),
    "another mask": (sample(STANDARD, mask=MASK), sample(CHAIN, mask=torch.arange(N) < 1), "its mask differs"),
    ".mask": (sample(STANDARD.expand([N]).mask(~MASK)), sample(MASKED), r"its \.mask"),
}


@pytest.mark.parametrize("case", ANALYTIC)
def test_analytic(case):
    model, guide = ANALYTIC[case]
    assert_analytic_kl(model, guide)
    losses = losses_of(model, guide)
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(true_loss(model, guide), abs=0.15 + 0.03 * abs(losses[0]))


@pytest.mark.parametrize("case", SAMPLED)
def test_sampled(case):
    model, guide, reason = SAMPLED[case]
    with pytest.raises(ValueError, match=f"(?s)'z'.*{reason}"):
        assert_analytic_kl(model, guide)
    losses = losses_of(model, guide)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("case", WRONG)
def test_wrong(case):
    """There is a closed form, and it is not what the estimator without it has as its mean."""
    model, guide, reason = WRONG[case]
    with pytest.raises(ValueError, match=f"'z': {reason}"):
        assert_analytic_kl(model, guide)
    losses = losses_of(model, guide)
    assert losses[0] == losses[1]
    assert abs(losses[0] - true_loss(model, guide)) > 0.5


def test_partly_observed_site():
    """obs_mask makes a latent site under the mask's complement: the guide needs it as well, under its name."""
    data = torch.zeros(N, D)

    def model():
        with pyro.plate("rows", N):
            pyro.sample("x", STANDARD, obs=data, obs_mask=MASK)

    guide = AutoAR1NormalMessenger(model)
    assert_analytic_kl(model, guide)
    losses = losses_of(model, guide)
    assert losses[0] == losses[1]

    def unmasked():
        with pyro.plate("rows", N):
            pyro.sample("x_unobserved", CHAIN)

    with pytest.raises(ValueError, match="'x_unobserved': its mask differs"):
        assert_analytic_kl(model, unmasked)
    masked = poutine.mask(unmasked, mask=~MASK)
    assert_analytic_kl(model, masked)
    difference = losses_of(model, unmasked)[0] - losses_of(model, masked)[0]
    kl = torch.distributions.kl_divergence(CHAIN, STANDARD).item()
    assert difference == pytest.approx(2 * kl, rel=1e-5)


MISSING = "(?s)'b': the guide has no such site.*'c': the model has no such site"


def test_sites_of_one_side_only():
    def model():
        pyro.sample("a", STANDARD)
        pyro.sample("b", STANDARD)

    def guide():
        pyro.sample("a", CHAIN)
        pyro.sample("c", CHAIN, infer={"is_auxiliary": True})

    with pytest.warns(UserWarning, match="in model but not guide"), pytest.raises(ValueError, match=MISSING):
        assert_analytic_kl(model, guide)
    with pytest.raises(KeyError), pytest.warns(UserWarning, match="in model but not guide"):
        TraceMeanField_ELBO().loss(model, guide)
    losses = losses_of(poutine.block(model, hide=["b"]), guide)
    assert losses[0] != losses[1]


def test_order_of_the_sites():
    def model():
        a = pyro.sample("a", STANDARD)
        pyro.sample("b", AR1Normal(a, 1.0, 0.5))

    def guide():
        b = pyro.sample("b", CHAIN)
        pyro.sample("a", AR1Normal(b, 1.0, 0.5))

    with pytest.raises(ValueError, match=r"order \['b', 'a'\] is not the model's \['a', 'b'\]"):
        assert_analytic_kl(model, guide)
    with pytest.warns(UserWarning, match="mean field"):
        TraceMeanField_ELBO().loss(model, guide)


def test_deltas():
    """A point estimate has an exact divergence; an AutoContinuous hides its draws behind Deltas, and its Jacobian."""

    def model():
        pyro.sample("z", CHAIN)
        pyro.sample("s", dist.LogNormal(1.0, 1.0))

    assert_analytic_kl(model, AutoDelta(model))
    guide = AutoAR1Normal(model, init_loc_fn=init_to_value(values={"z": torch.zeros(D), "s": torch.tensor(9.0)}))
    with pytest.raises(ValueError, match="(?s)'s': .*log_density.*'_AutoAR1Normal_latent': the model has no such"):
        assert_analytic_kl(model, guide)
    losses = []
    for elbo in (Trace_ELBO, TraceMeanField_ELBO):
        pyro.set_rng_seed(0)
        losses.append([elbo().loss(model, guide) for _ in range(200)])
    assert np.mean(losses[1]) - np.mean(losses[0]) == pytest.approx(np.log(9.0), abs=0.05)


def test_a_guide_that_is_not_reparametrised():
    def model():
        pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="'z': the guide's Bernoulli is not fully reparametrised"):
        assert_analytic_kl(model, model)


def test_arguments_are_passed_on():
    def model(d, loc):
        pyro.sample("z", AR1Normal(torch.zeros(d), 1.0, 0.5))

    def guide(d, loc):
        pyro.sample("z", AR1Normal(torch.full((d,), loc), 1.0, 0.5))

    assert_analytic_kl(model, guide, 3, loc=1.0)


def test_every_problem_is_named():
    def sites(fn, scale):
        def program():
            with poutine.scale(scale=scale):
                pyro.sample("a", fn)
            pyro.sample("b", fn)

        return program

    student = dist.StudentT(3.0, torch.zeros(D), 1.0).to_event(1)
    with pytest.raises(ValueError, match="exact divergence") as raised:
        assert_analytic_kl(sites(student, 1.0), sites(CHAIN, 2.0))
    assert str(raised.value).count("no closed form from AR1Normal to Independent(StudentT)") == 2
