import json
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from vae_models.model.likelihoods import LIKELIHOODS, Gaussian
from vae_models.model.posteriors import POSTERIORS, Diagonal, Full
from vae_models.model.vae import VAE
from vae_models.results.evaluation import (
    eval_mode,
    evaluate,
    interpolate,
    mean_correlation,
    most_active_latents,
    total_correlation,
    traverse,
)
from vae_models.settings.objectives import Objective

every_posterior = pytest.mark.parametrize("posterior", POSTERIORS)

WITH_ERROR = [
    "negative_elbo",
    "reconstruction",
    "kl",
    "nll",
    "effective_sample_size",
    "gap",
    "total_correlation",
    "mean_abs_rho",
]


def dense(q) -> MultivariateNormal:
    """The same normal distribution, by its covariance matrix."""
    covariance = q.covariance_matrix if hasattr(q, "covariance_matrix") else torch.diag_embed(q.variance)
    return MultivariateNormal(q.mean, covariance)


def standard_error(values: torch.Tensor) -> float:
    return (values.std() / math.sqrt(len(values))).item()


@torch.no_grad()
def linear_gaussian(widening: float = 1.0) -> tuple[VAE, MultivariateNormal]:
    """x = Wz + b + noise, so that the evidence and the true posterior are normal (Bishop, *Pattern Recognition and
    Machine Learning*, 2006, section 2.3.3). The encoder's scales are the true posterior's, times ``widening``."""
    d, size = 3, 8
    decoder = nn.Linear(d, size)
    head = Full(size, d)
    vae = VAE(
        nn.Flatten(), head, nn.Sequential(decoder, nn.Unflatten(-1, (1, 2, 4))), d, likelihood=Gaussian(0.5)
    ).double()
    weight, variance = decoder.weight, 0.25
    covariance = torch.linalg.inv(torch.eye(d) + weight.T @ weight / variance)
    gain = covariance @ weight.T / variance
    scale_tril = widening * torch.linalg.cholesky(covariance)
    head.loc.weight.copy_(gain)
    head.loc.bias.copy_(-gain @ decoder.bias)
    head.log_variance.weight.zero_()
    head.log_variance.bias.copy_(2 * scale_tril.diagonal().log())
    head.coefficients.bias.copy_(-torch.linalg.inv(scale_tril / scale_tril.diagonal()[:, None])[*head.places])
    evidence = weight @ weight.T + variance * torch.eye(size, dtype=torch.float64)
    return vae, MultivariateNormal(decoder.bias.clone(), evidence)


def test_exact_posterior():
    """Every importance weight is the evidence: the bound is exact with any number of samples, and all of them count."""
    vae, evidence = linear_gaussian()
    x = evidence.sample((400,)).reshape(-1, 1, 2, 4)
    log_evidence = evidence.log_prob(x.flatten(1))
    metrics = evaluate(vae, x, num_samples=25)
    assert metrics["nll"] == pytest.approx(-log_evidence.mean().item(), rel=1e-6)
    assert metrics["nll_se"] == pytest.approx(standard_error(log_evidence), rel=1e-6)
    assert metrics["effective_sample_size"] == pytest.approx(25, rel=1e-6)
    assert metrics["effective_sample_size_se"] == pytest.approx(0, abs=1e-6)
    assert -vae.log_likelihood(x, 3).mean().item() == pytest.approx(metrics["nll"], rel=1e-6)
    # The true gap is zero; its estimate has the noise of the reconstruction, and not the spread of the images.
    assert metrics["gap"] == pytest.approx(0, abs=4 * metrics["gap_se"])
    assert 0 < metrics["gap_se"] < metrics["nll_se"] / 3


def test_too_wide_posterior():
    """With scales c times too large, in d dimensions, the gap tends to d/2 (c^2 - 1 - log c^2), and the share of the
    effective samples to the inverse of E_q (p/q)^2, which is (sqrt(2 c^2 - 1) / c^2)^d."""
    c, d = 1.3, 3
    vae, evidence = linear_gaussian(widening=c)
    x = evidence.sample((50,)).reshape(-1, 1, 2, 4)
    metrics = evaluate(vae, x, num_samples=4000)
    assert metrics["gap"] == pytest.approx(d / 2 * (c**2 - 1 - math.log(c**2)), abs=0.02)
    assert metrics["effective_sample_size"] == pytest.approx(4000 * (math.sqrt(2 * c**2 - 1) / c**2) ** d, rel=0.01)
    assert metrics["nll"] == pytest.approx(-evidence.log_prob(x.flatten(1)).mean().item(), abs=0.01)


@every_posterior
def test_elbo_against_dense_monte_carlo(posterior, build):
    vae, x, n = build(posterior).double(), torch.rand(4, 1, 8, 8, dtype=torch.float64), 10_000
    metrics = evaluate(vae, x, num_samples=n)
    with torch.no_grad():
        q = dense(vae.encode(x))
        z = q.sample((n,))
        pi = vae.decoder(z.flatten(0, 1)).sigmoid().unflatten(0, (n, 4))
        reconstruction = -(x * pi.log() + (1 - x) * (1 - pi).log()).sum((-3, -2, -1))
        log_prior = -(z.square().sum(-1) + 4 * math.log(2 * math.pi)) / 2
        log_weight = log_prior - reconstruction - q.log_prob(z)
        kl = kl_divergence(q, MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double()))

    def close(mean, samples):
        """Within five standard errors of the difference of two such Monte-Carlo means."""
        return pytest.approx(mean.item(), abs=5 * (2 * samples.var(0).mean() / samples.numel()).sqrt().item())

    weight = (log_weight - log_weight.logsumexp(0)).exp() * n  # the bound varies as the mean of these, of mean 1
    assert metrics["reconstruction"] == close(reconstruction.mean(), reconstruction)
    assert metrics["negative_elbo"] == close(-log_weight.mean(), log_weight)
    assert metrics["nll"] == close((math.log(n) - log_weight.logsumexp(0)).mean(), weight)
    assert metrics["kl"] == pytest.approx(kl.mean().item(), rel=1e-6)
    assert metrics["kl_se"] == pytest.approx(standard_error(kl), rel=1e-6)
    assert metrics["negative_elbo"] == pytest.approx(metrics["reconstruction"] + metrics["kl"], rel=1e-9)
    assert metrics["gap"] == pytest.approx(metrics["negative_elbo"] - metrics["nll"], rel=1e-6)
    assert metrics["gap"] > 0


@every_posterior
def test_total_correlation_against_dense(posterior, build):
    vae, x = build(posterior).double(), torch.rand(20, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        covariance = dense(vae.encode(x)).covariance_matrix
        expected = (covariance.diagonal(dim1=-2, dim2=-1).log().sum(-1) - covariance.logdet()) / 2
        torch.testing.assert_close(total_correlation(vae.encode(x)), expected, rtol=1e-6, atol=1e-9)
    metrics = evaluate(vae, x, num_samples=1)
    assert metrics["total_correlation"] == pytest.approx(expected.mean().item(), rel=1e-6, abs=1e-9)
    assert metrics["total_correlation_se"] == pytest.approx(standard_error(expected), rel=1e-4, abs=1e-9)
    assert (metrics["total_correlation"] == 0) == (posterior == "diagonal")


def test_total_correlation_is_not_negative_through_rounding(build):
    """A full covariance that is diagonal, as it is when training starts."""
    vae = VAE.build((1, 8, 8), posterior="full", latent_dim=64)
    with torch.no_grad():
        got = total_correlation(vae.encode(torch.rand(200, 1, 8, 8)))
    assert got.min() == 0
    assert got.max() < 1e-3


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_figures_where_they_are_known(likelihood):
    """With the prior as the posterior and a decoder that ignores z, all is one function of the image."""
    vae, x = VAE.build((1, 8, 8), likelihood=likelihood, latent_dim=4, posterior="diagonal"), torch.rand(9, 1, 8, 8)
    for parameter in [*vae.posterior.parameters(), vae.decoder[0].weight]:
        nn.init.zeros_(parameter)
    nn.init.normal_(vae.decoder[2].bias)
    with torch.no_grad():
        expected = -vae.decode(torch.zeros(4)).log_prob(x).double()
    for chunk_size in (1, 4, 10_000):
        metrics = evaluate(vae, x, num_samples=3, chunk_size=chunk_size)
        for name in ("negative_elbo", "reconstruction", "nll"):
            assert metrics[name] == pytest.approx(expected.mean().item(), rel=1e-5)
            assert metrics[f"{name}_se"] == pytest.approx(standard_error(expected), rel=1e-4)
        assert metrics["kl"] == metrics["kl_se"] == metrics["active_units"] == 0
        assert metrics["effective_sample_size"] == pytest.approx(3, rel=1e-3)
        assert (metrics["num_images"], metrics["num_samples"]) == (9, 3)


@every_posterior
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 4096])
def test_chunks(posterior, chunk_size, build, monkeypatch):
    """No more images or latent vectors at once than asked for, a last batch of one image, and all samples drawn."""
    vae, x = build(posterior), torch.rand(8, 1, 8, 8)
    encoded, decoded = [], []
    encode, decode = vae.encode, vae.decode
    monkeypatch.setattr(vae, "encode", lambda x: encoded.append(len(x)) or encode(x))
    monkeypatch.setattr(vae, "decode", lambda z: decoded.append(z.shape[:-1].numel()) or decode(z))
    metrics = evaluate(vae, x, num_samples=5, chunk_size=chunk_size)
    assert max(*encoded, *decoded) <= chunk_size
    assert (sum(encoded), sum(decoded)) == (8, 40)
    whole = evaluate(vae, x, num_samples=1)
    for name in ("kl", "kl_se", "total_correlation", "total_correlation_se", "active_units"):
        assert metrics[name] == pytest.approx(whole[name], rel=1e-4)


@pytest.mark.parametrize("chunk_size", [1, 64])
def test_chunks_of_samples_are_summed(chunk_size):
    vae, evidence = linear_gaussian(widening=1.3)
    x = evidence.sample((10,)).reshape(-1, 1, 2, 4)
    whole, parts = (evaluate(vae, x, num_samples=500, chunk_size=size) for size in (10_000, chunk_size))
    assert parts["nll"] == pytest.approx(whole["nll"], abs=0.03)
    assert parts["effective_sample_size"] == pytest.approx(whole["effective_sample_size"], rel=0.03)


def test_active_units():
    """Means that vary a little more and a little less than the threshold, and one that does not vary but is far off."""
    head = Diagonal(3, 3)
    with torch.no_grad():
        head.loc.weight.copy_(torch.diag(torch.tensor([0.0101, 0.0099, 0.0]).sqrt()))
        head.loc.bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
    decoder = nn.Sequential(nn.Linear(3, 3), nn.Unflatten(-1, (1, 1, 3)))
    vae = VAE(nn.Flatten(), head, decoder, 3, likelihood=Gaussian(1.0))
    x = torch.randn(50, 1, 1, 3)
    x = (x - x.mean(0)) / x.std(0)
    assert evaluate(vae, x, num_samples=1)["active_units"] == 1
    assert evaluate(vae, x, num_samples=1, chunk_size=7)["active_units"] == 1
    assert most_active_latents(vae, x, 2) == [0, 1]
    assert most_active_latents(vae, x, 9, chunk_size=7) == [0, 1, 2]


@pytest.mark.parametrize("posterior", ["ar1", "markov"])
def test_mean_abs_rho(posterior, build):
    vae, x = build(posterior), torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        rho = vae.posterior.atanh_rho(vae.encoder(x)).tanh().abs().double().mean(-1)
    metrics = evaluate(vae, x, num_samples=1, chunk_size=7)
    assert metrics["mean_abs_rho"] == pytest.approx(rho.mean().item(), rel=1e-5)
    assert metrics["mean_abs_rho_se"] == pytest.approx(standard_error(rho), rel=1e-4)
    assert metrics["mean_abs_rho"] > 0.01


@pytest.mark.parametrize(("posterior", "latent_dim"), [("diagonal", 4), ("full", 4), ("ar1", 1), ("markov", 1)])
def test_no_rho_without_pairs(posterior, latent_dim, build):
    metrics = evaluate(build(posterior, latent_dim), torch.rand(5, 1, 8, 8), num_samples=1)
    assert metrics["mean_abs_rho"] is None
    assert metrics["mean_abs_rho_se"] is None


@every_posterior
def test_flat_and_in_order(posterior, build):
    metrics = evaluate(build(posterior), torch.rand(5, 1, 8, 8), num_samples=2)
    expected = [each for name in WITH_ERROR for each in (name, f"{name}_se")]
    assert list(metrics) == [*expected, "active_units", "num_images", "num_samples"]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_same_seed_same_figures(build):
    vae, x = build("ar1"), torch.rand(5, 1, 8, 8)
    torch.manual_seed(5)
    first = evaluate(vae, x, num_samples=2)
    torch.manual_seed(5)
    assert evaluate(vae, x, num_samples=2) == first
    assert evaluate(vae, x, num_samples=2) != first


def test_training_objective_does_not_matter():
    x = torch.rand(5, 1, 8, 8)
    figures = []
    for objective in (Objective(), Objective.beta_vae(4.0), Objective.info_vae(alpha=0.0, lambda_=1000.0)):
        torch.manual_seed(0)
        figures.append(evaluate(VAE.build((1, 8, 8), objective=objective), x, num_samples=2))
    assert figures[0] == figures[1] == figures[2]


def test_batch_normalisation():
    """Neither the running statistics nor a batch of one image nor the modes of submodules are a matter."""
    options = {"channels": (4, 8), "hidden": 16}
    vae, x = VAE.build((1, 8, 8), network="dcgan", network_options=options, latent_dim=3), torch.rand(9, 1, 8, 8)
    vae.train()
    vae.encode(x)  # running statistics that are not those of initialisation
    vae.encoder.eval()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    torch.manual_seed(0)
    metrics = evaluate(vae, x, num_samples=2, chunk_size=8)
    assert vae.training
    assert vae.decoder.training
    assert not vae.encoder.training
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    torch.manual_seed(0)
    assert evaluate(vae.eval(), x, num_samples=2, chunk_size=8) == metrics


def test_eval_mode_ends_with_an_error():
    module = nn.Linear(1, 1)

    def fail():
        with eval_mode(module):
            assert not module.training
            assert not module(torch.ones(1)).requires_grad
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert module.training
    assert module(torch.ones(1)).requires_grad


@pytest.mark.parametrize(
    ("n", "arguments", "message"),
    [(1, {}, "at least two"), (2, {"num_samples": 0}, "at least 1"), (2, {"chunk_size": 0}, "at least 1")],
)
def test_bad_arguments(n, arguments, message, build):
    with pytest.raises(ValueError, match=message):
        evaluate(build("ar1"), torch.rand(n, 1, 8, 8), **arguments)


@every_posterior
def test_mean_correlation(posterior, build):
    vae, x = build(posterior), torch.rand(9, 1, 8, 8)
    with torch.no_grad():
        covariance = dense(vae.encode(x)).covariance_matrix
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    expected = (covariance / scale.unsqueeze(-1) / scale.unsqueeze(-2)).mean(0)
    for chunk_size in (4, 9):
        torch.testing.assert_close(mean_correlation(vae, x, chunk_size=chunk_size), expected, rtol=1e-4, atol=1e-5)


def test_traverse(build):
    vae, x = build("markov"), torch.rand(1, 8, 8)
    images = traverse(vae, x, [2, 0], [-3.0, 0.5, 3.0])
    assert images.shape == (2, 3, 1, 8, 8)
    with torch.no_grad():
        z = vae.encode(x.unsqueeze(0)).mean[0]
        z[0] = 0.5
        torch.testing.assert_close(images[1, 1], vae.decode(z).mean)


def test_interpolate(build):
    vae, first, second = build("full"), torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    images = interpolate(vae, first, second, 5)
    assert images.shape == (3, 5, 1, 8, 8)
    torch.testing.assert_close(images[:, 0], vae.reconstruct(first))
    torch.testing.assert_close(images[:, -1], vae.reconstruct(second))
    with torch.no_grad():
        middle = vae.decode((vae.encode(first).mean + vae.encode(second).mean) / 2).mean
    torch.testing.assert_close(images[:, 2], middle)


def test_images_of_the_wrong_meaning(build):
    vae, good = build("ar1"), torch.rand(5, 1, 8, 8)
    calls = [
        lambda x: evaluate(vae, x, num_samples=1),
        lambda x: mean_correlation(vae, x),
        lambda x: most_active_latents(vae, x, 2),
        lambda x: traverse(vae, x[0], [0], [1.0]),
        lambda x: interpolate(vae, x, x, 3),
    ]
    for call in calls:
        call(good.double())
        for x in (good.squeeze(1), (255 * good).byte()):
            with pytest.raises(ValueError, match=r"must be a floating-point tensor of shape \(N, 1, 8, 8\)"):
                call(x)
        for x in (255 * good, 2 * good - 1, good / 0):
            with pytest.raises(ValueError, match=r"must be finite and within Interval"):
                call(x)
    with pytest.raises(ValueError, match=r"latents must be from 0 to 3, got \[0, -1\]"):
        traverse(vae, good[0], [0, -1], [1.0])
    with pytest.raises(ValueError, match=r"pairs and steps are needed, got \(5, 1, 8, 8\), \(1, 1, 8, 8\) and 3"):
        interpolate(vae, good, good[:1], 3)
