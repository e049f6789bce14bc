import math

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

from vae_models.model.vae import VAE
from vae_models.results import evaluation
from vae_models.settings.config import Config
from vae_models.study.as_published import SAMPLERS, AsPublished, as_sampled, batch_loss, printed_loss
from vae_models.training import runs
from vae_models.training.fitting import fit


def noise(shape, seed=3):
    torch.manual_seed(seed)
    return torch.randn(shape).double().numpy()


def by_hand(vae, x, sampler, eps):
    """The reference's loss, image by image and latent by latent, in NumPy."""
    with torch.no_grad():
        q = vae.encode(x)
        mu, s, rho = (value.double().numpy() for value in (q.loc, q.scale.square(), q.rho))
    batch, d = mu.shape
    z = np.empty_like(mu)
    for i in range(batch):
        deviation = 0.0
        for t in range(d):
            carried = {"walk": 1.0, "rho": rho[i, 0]}[sampler] * deviation
            deviation = carried + math.sqrt(s[i, 0]) * eps[i, t]
            z[i, t] = mu[i, t] + deviation
    with torch.no_grad():
        logits = vae.decoder(torch.tensor(z, dtype=torch.float32)).double().numpy().reshape(batch, -1)
    pixels = x.double().numpy().reshape(batch, -1)
    probability = 1 / (1 + np.exp(-logits))
    reconstruction = -(pixels * np.log(probability) + (1 - pixels) * np.log(1 - probability)).sum()
    squares_of_the_batch = (mu**2).sum()
    per_image = []
    for i in range(batch):
        log_term = math.log(1 - rho[i, 0] ** 2 + {"walk": 0.0, "rho": 1e-7}[sampler])
        rest = -d * math.log(s[i, 0]) - (d - 1) * log_term + d * (s[i, 0] - 1)
        per_image.append(0.5 * (squares_of_the_batch + rest))
    return reconstruction, sum(per_image) / batch


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_is_the_formula(sampler, build, digits):
    vae, x = build("ar1"), digits.test[:7]
    expected = by_hand(vae, x, sampler, noise((7, 4)))
    torch.manual_seed(3)
    reconstruction, rest = batch_loss(vae, x, sampler)
    assert reconstruction.item() == pytest.approx(expected[0], rel=1e-5)
    assert rest.item() == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_differs_from_the_divergence_by_the_weight_of_all_but_the_mean(sampler, build, digits):
    vae, x = build("ar1"), digits.test[:7]
    q = vae.encode(x)
    squares = 0.5 * q.loc.square().sum()
    rest = kl_divergence(q, vae.prior).sum() - squares
    assert rest > 0.1
    torch.testing.assert_close(batch_loss(vae, x, sampler)[1], squares + rest / 7, rtol=1e-4, atol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_as_sampled_is_the_distribution_of_the_sampler(sampler, build, digits):
    vae, x = build("ar1"), digits.test[:2]
    q, meant = as_sampled(vae, sampler).encode(x), vae.encode(x)
    coefficient = torch.ones(2, 1) if sampler == "walk" else meant.rho
    powers = torch.arange(4)[:, None] - torch.arange(4)
    tril = meant.scale.unsqueeze(-1) * (coefficient.unsqueeze(-1) ** powers.clamp(min=0)).tril()
    torch.testing.assert_close(q.covariance_matrix, tril @ tril.mT, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(q.mean, meant.mean)
    if sampler == "walk":
        torch.testing.assert_close(q.variance, meant.scale.square() * torch.arange(1.0, 5.0), rtol=1e-4, atol=0)


def test_unknown_sampler(build, digits):
    with pytest.raises(ValueError, match="unknown sampler 'ar1'; choose from walk, rho"):
        batch_loss(build("ar1"), digits.test, "ar1")


def test_printed_loss_is_of_batches_of_128(build, digits):
    vae = build("ar1")
    torch.manual_seed(5)
    expected = sum(sum(batch_loss(vae, x, "rho")).item() for x in digits.test.split(128)) / len(digits.test)
    torch.manual_seed(5)
    assert printed_loss(vae, digits.test, "rho") == pytest.approx(expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_training_lowers_what_is_printed_and_not_the_bound(sampler, digits):
    """The variance all but vanishes, at a cost that the divergence has and the loss does not."""
    config = Config(epochs=15, latent_dim=10)
    vae = VAE.build((1, 8, 8), latent_dim=10)

    def module(vae, *arguments):
        return AsPublished(vae, *arguments, sampler=sampler, seed=0)

    printed = fit(vae, digits, config, make_module=module).column("validation_negative_elbo")
    assert printed[-1] < printed[0] - 5
    figures = evaluation.evaluate(vae, digits.test, num_samples=20)
    assert printed_loss(vae, digits.test, sampler) < figures["nll"] < figures["negative_elbo"] - 3


def test_can_be_resumed(tmp_path, digits):
    config = Config(epochs=2, latent_dim=3, network_options={"hidden": 8})

    def module(vae, *arguments):
        return AsPublished(vae, *arguments, sampler="rho", seed=7)

    whole = runs.train(config, tmp_path / "whole", make_module=module)

    def stopping(vae, *arguments):
        made = module(vae, *arguments)
        made.on_train_epoch_start = lambda: 1 / (made.current_epoch - 1)
        return made

    with pytest.raises(ZeroDivisionError):
        runs.train(config, tmp_path / "stopped", make_module=stopping)
    resumed = runs.train(config, tmp_path / "stopped", make_module=module, resume=True)
    torch.testing.assert_close(resumed.vae.state_dict(), whole.vae.state_dict(), rtol=0, atol=0)
    assert whole.vae.posterior.atanh_rho.weight.abs().max() > 0.1  # Xavier's, where this package has zeros
