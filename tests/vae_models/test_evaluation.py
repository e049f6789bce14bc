import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from vae_models.evaluation import evaluate
from vae_models.posteriors import POSTERIORS

NAMES = ["negative_elbo", "reconstruction", "kl", "nll", "mean_abs_rho"]


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_kl_and_sum(posterior, build, digits):
    vae, x = build(posterior), digits.test
    metrics = evaluate(vae, x, num_samples=50)
    q = vae.encode(x)
    covariance = q.covariance_matrix if hasattr(q, "covariance_matrix") else torch.diag_embed(q.variance)
    kl = kl_divergence(MultivariateNormal(q.mean, covariance), MultivariateNormal(torch.zeros(4), torch.eye(4)))
    assert metrics["kl"] == pytest.approx(kl.mean().item(), rel=1e-5)
    assert metrics["kl_se"] == pytest.approx((kl.std() / math.sqrt(len(x))).item(), rel=1e-4)
    assert metrics["negative_elbo"] == pytest.approx(metrics["reconstruction"] + metrics["kl"], rel=1e-6)
    assert metrics["nll"] < metrics["negative_elbo"]
    assert set(metrics) == {*NAMES, *(f"{name}_se" for name in NAMES)}


def test_reconstruction_and_nll_where_they_are_known(build, digits):
    """With the prior as the posterior and a decoder that ignores z, both are one function of the image."""
    vae, x = build("diagonal"), digits.test
    for parameter in [*vae.posterior.parameters(), vae.decoder[0].weight]:
        torch.nn.init.zeros_(parameter)
    pi = vae.decode(torch.zeros(4)).mean.double()
    expected = -(x * pi.log() + (1 - x) * (1 - pi).log()).sum((1, 2, 3))
    metrics = evaluate(vae, x, num_samples=3)
    assert metrics["kl"] == 0
    for name in ("negative_elbo", "reconstruction", "nll"):
        assert metrics[name] == pytest.approx(expected.mean().item(), rel=1e-5)
        assert metrics[f"{name}_se"] == pytest.approx((expected.std() / math.sqrt(len(x))).item(), rel=1e-4)


@pytest.mark.parametrize("posterior", ["ar1", "markov"])
def test_mean_abs_rho(posterior, build, digits):
    vae = build(posterior)
    rho = vae.posterior.atanh_rho(vae.encoder(digits.test)).tanh().abs()
    metrics = evaluate(vae, digits.test, num_samples=1)
    assert metrics["mean_abs_rho"] == pytest.approx(rho.mean().item(), rel=1e-5)
    assert metrics["mean_abs_rho"] > 0.01
    per_image = rho.mean(-1)
    assert metrics["mean_abs_rho_se"] == pytest.approx((per_image.std() / math.sqrt(len(rho))).item(), rel=1e-4)


@pytest.mark.parametrize(("posterior", "latent_dim"), [("diagonal", 4), ("ar1", 1), ("markov", 1)])
def test_no_rho_without_pairs(posterior, latent_dim, build, digits):
    metrics = evaluate(build(posterior, latent_dim), digits.test, num_samples=1)
    assert metrics["mean_abs_rho"] is None
    assert metrics["mean_abs_rho_se"] is None


def test_batches_do_not_matter(build, digits):
    vae = build("markov")
    small, large = (evaluate(vae, digits.test, num_samples=500, batch_size=n) for n in (100, 1000))
    assert small["kl"] == pytest.approx(large["kl"], rel=1e-5)
    assert small["nll"] == pytest.approx(large["nll"], abs=0.05)


def test_same_seed_same_figures(build, digits):
    vae = build("ar1")
    torch.manual_seed(5)
    first = evaluate(vae, digits.test, num_samples=2)
    torch.manual_seed(5)
    assert evaluate(vae, digits.test, num_samples=2) == first
    assert evaluate(vae, digits.test, num_samples=2) != first
