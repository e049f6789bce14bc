import copy
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import MultivariateNormal, kl_divergence

from vae_models.posteriors import POSTERIORS
from vae_models.vae import VAE

every_posterior = pytest.mark.parametrize("posterior", POSTERIORS)


def dense(q) -> MultivariateNormal:
    """The same normal distribution, by its covariance matrix."""
    covariance = q.covariance_matrix if hasattr(q, "covariance_matrix") else torch.diag_embed(q.variance)
    return MultivariateNormal(q.mean, covariance)


def bernoulli_log_prob(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    pi = logits.double().sigmoid()
    return (x * pi.log() + (1 - x) * (1 - pi).log()).flatten(-3).sum(-1)


@every_posterior
def test_shapes(posterior, build, digits):
    vae, x = build(posterior), digits.train[:3]
    assert vae.encode(x).batch_shape == (3,)
    assert vae.encode(x).event_shape == (4,)
    assert vae.decode(torch.randn(5, 3, 4)).batch_shape == (5, 3)
    assert vae.decode(torch.randn(4)).event_shape == (1, 8, 8)
    for images in (vae.sample(3), vae.reconstruct(x)):
        assert images.shape == (3, 1, 8, 8)
        assert images.min() > 0
        assert images.max() < 1
        assert not images.requires_grad
    assert vae.log_likelihood(x, 2).shape == (3,)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown posterior 'nope'; choose from diagonal, ar1, markov"):
        VAE.build((1, 8, 8), posterior="nope")
    with pytest.raises(ValueError, match="unknown network 'nope'; choose from mlp"):
        VAE.build((1, 8, 8), network="nope")


def test_one_seed_gives_one_start_for_every_posterior():
    start = {}
    for posterior in POSTERIORS:
        torch.manual_seed(3)
        start[posterior] = VAE.build((1, 8, 8), posterior=posterior).state_dict()
    for name in ("encoder.1.weight", "decoder.0.weight", "decoder.2.bias", "posterior.loc.weight"):
        assert all(torch.equal(start[posterior][name], start["diagonal"][name]) for posterior in POSTERIORS)


@every_posterior
def test_elbo_is_the_hand_computed_one(posterior, build, digits):
    """log p(x|z) at the guide's own z minus the KL divergence of dense normals."""
    vae, x = build(posterior), digits.train[:5]
    torch.manual_seed(1)
    loss = TraceMeanField_ELBO().loss(vae.model, vae.guide, x)
    torch.manual_seed(1)
    z = vae.encode(x).rsample()
    identity = MultivariateNormal(torch.zeros(4), torch.eye(4))
    expected = kl_divergence(dense(vae.encode(x)), identity) - bernoulli_log_prob(vae.decoder(z), x)
    assert loss == pytest.approx(expected.sum().item(), rel=1e-5)


@every_posterior
def test_elbo_uses_the_analytic_kl(posterior, build, digits):
    """With a decoder that ignores z the noise enters the bound only where the KL divergence is sampled: it does so in
    Trace_ELBO, and must not in TraceMeanField_ELBO."""
    vae, x = build(posterior), digits.train[:5]
    torch.nn.init.zeros_(vae.decoder[0].weight)
    analytic = {TraceMeanField_ELBO().loss(vae.model, vae.guide, x) for _ in range(5)}
    sampled = {Trace_ELBO().loss(vae.model, vae.guide, x) for _ in range(5)}
    assert len(analytic) == 1
    assert len(sampled) == 5
    reconstruction = -bernoulli_log_prob(vae.decoder(torch.zeros(5, 4)), x)
    kl = kl_divergence(dense(vae.encode(x)), MultivariateNormal(torch.zeros(4), torch.eye(4)))
    assert analytic.pop() == pytest.approx((reconstruction + kl).sum().item(), rel=1e-5)


@every_posterior
def test_vectorised_particles(posterior, build, digits):
    vae, x = build(posterior), digits.train[:5]
    elbo = TraceMeanField_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    loop = sum(TraceMeanField_ELBO().loss(vae.model, vae.guide, x) for _ in range(200)) / 200
    assert elbo.loss(vae.model, vae.guide, x) == pytest.approx(loop, rel=0.01)


@every_posterior
def test_svi_as_in_the_tutorials(posterior, build, digits):
    vae, x = build(posterior), digits.train[:64]
    before = copy.deepcopy(vae.state_dict())
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 3e-3}), TraceMeanField_ELBO())
    losses = [svi.step(x) / len(x) for _ in range(60)]
    assert sum(losses[-5:]) / 5 < 0.85 * sum(losses[:5]) / 5
    assert all(not torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert {name.partition("$$$")[0] for name in pyro.get_param_store()} == {"encoder", "posterior", "decoder"}


def test_elbo_module_and_torch_optimiser(build, digits):
    vae, x = build("ar1"), digits.train[:64]
    loss = TraceMeanField_ELBO()(vae.model, vae.guide)
    optimiser = torch.optim.Adam(vae.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        optimiser.step()
        losses.append(value.item() / len(x))
    assert sum(losses[-5:]) / 5 < 0.85 * sum(losses[:5]) / 5


def test_second_vae_in_one_parameter_store_is_an_error(build, digits):
    """Pyro alone would train the first one's parameters, and leave the second as it is."""
    x = digits.train[:5]
    first, second = build("ar1"), build("ar1")
    elbo = TraceMeanField_ELBO()
    elbo.loss(first.model, first.guide, x)
    for program in (second.model, second.guide, copy.deepcopy(first).model):
        with pytest.raises(RuntimeError, match=r"pyro.clear_param_store\(\).*scope"):
            program(x)
    with pyro.get_param_store().scope():
        elbo.loss(second.model, second.guide, x)
    elbo.loss(first.model, first.guide, x)
    pyro.clear_param_store()
    elbo.loss(second.model, second.guide, x)


@every_posterior
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_log_likelihood_against_quadrature(posterior, latent_dim, build, digits):
    vae, x = build(posterior, latent_dim).double(), digits.train[:1].double()
    grid = torch.linspace(-7, 7, 141, dtype=torch.float64)
    z = torch.cartesian_prod(*[grid] * latent_dim).reshape(-1, latent_dim)
    with torch.no_grad():
        log_prior = -z.square().sum(-1) / 2 - latent_dim / 2 * math.log(2 * math.pi)
        log_joint = bernoulli_log_prob(vae.decoder(z), x) + log_prior
    # The trapezoid rule is precise to many digits for a smooth function that vanishes at the edges.
    expected = log_joint.logsumexp(0).item() + latent_dim * math.log(14 / 140)
    assert vae.log_likelihood(x, 10_000).item() == pytest.approx(expected, abs=0.02)


@every_posterior
def test_log_likelihood_bounds(posterior, build, digits):
    """It is above the ELBO, rises with the number of samples, and with one sample is the ELBO in expectation."""
    vae, x = build(posterior), digits.train[:200]
    elbo = -TraceMeanField_ELBO(num_particles=50).loss(vae.model, vae.guide, x) / len(x)
    one = torch.stack([vae.log_likelihood(x, 1).mean() for _ in range(50)]).mean().item()
    ten, many = (vae.log_likelihood(x, n).mean().item() for n in (10, 1000))
    assert one == pytest.approx(elbo, abs=0.05)
    assert one < ten < many


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 64, 4096])
def test_log_likelihood_in_chunks(chunk_size, build, digits, monkeypatch):
    """No more than so many latent vectors are decoded at once, and the number of samples is right: with the prior as
    the posterior and a decoder that ignores z, every weight is the same, and the estimate exact."""
    vae, x = build("diagonal"), digits.train[:5]
    for parameter in [*vae.posterior.parameters(), vae.decoder[0].weight]:
        torch.nn.init.zeros_(parameter)
    decoded = []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: decoded.append(z.shape[:-1].numel()) or decode(z))
    got = vae.log_likelihood(x, 10, chunk_size=chunk_size)
    assert max(decoded) <= chunk_size
    assert sum(decoded) == 10 * len(x)
    torch.testing.assert_close(got, bernoulli_log_prob(vae.decoder(torch.zeros(5, 4)), x).float())


@pytest.mark.parametrize("arguments", [{"num_samples": 0}, {"num_samples": 1, "chunk_size": 0}])
def test_log_likelihood_needs_samples(arguments, build, digits):
    with pytest.raises(ValueError, match="at least 1"):
        build("ar1").log_likelihood(digits.train[:2], **arguments)


def test_sample_is_from_the_prior(build, monkeypatch):
    """The images are the decoder's means at standard normal latent vectors."""
    vae = build("ar1")
    seen = []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: seen.append(z) or decode(z))
    images = vae.sample(20_000)
    (z,) = seen
    torch.testing.assert_close(images, vae.decoder(z).sigmoid())
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=0.03, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.eye(4), atol=0.04, rtol=0)


def test_moves_between_dtypes_and_saves_only_weights(build):
    vae = build("markov").double()
    assert vae.sample(1).dtype == torch.float64
    assert all(name.partition(".")[0] in ("encoder", "posterior", "decoder") for name in vae.state_dict())
