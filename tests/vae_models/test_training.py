import copy
import os
import pickle
import signal
import warnings

import lightning.pytorch as pl
import pyro
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from pyro.infer import TraceMeanField_ELBO
from rich.console import Console
from rich.progress import Progress

from vae_models.data import Images
from vae_models.posteriors import POSTERIORS
from vae_models.training import ProgressLine, VAEModule, fit, negative_elbo
from vae_models.vae import VAE


@pytest.fixture(scope="module")
def few(digits) -> Images:
    return Images(digits.train[:200], digits.test[:50])


def trained(posterior: str, images: Images, **arguments):
    torch.manual_seed(0)
    vae = VAE.build((1, 8, 8), posterior=posterior, latent_dim=4)
    return vae, fit(vae, images, **arguments)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_improves(posterior, few):
    _, history = trained(posterior, few, epochs=15)
    assert history.train[-1] < 0.75 * history.train[0]
    assert history.test[-1] < 0.75 * history.test[0]
    assert len(history.train) == len(history.test) == len(history.seconds) == 15
    assert min(history.seconds) > 0


def test_same_seed_same_metrics(few):
    (vae, history), (again, history_again) = (trained("markov", few, epochs=3, seed=1) for _ in range(2))
    assert history.train == history_again.train
    assert history.test == history_again.test
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters(), strict=True))
    _, other = trained("markov", few, epochs=3, seed=2)
    assert other.train != history.train


def test_is_adam_on_the_elbo_per_image(few):
    """One step, on all images at once, against torch's Adam on a copy."""
    torch.manual_seed(0)
    vae = VAE.build((1, 8, 8), latent_dim=4)
    copied = copy.deepcopy(vae)

    class Seed(Callback):  # DataLoader draws from the global generator too
        def on_train_batch_start(self, *args):
            torch.manual_seed(1)

    fit(vae, few, epochs=1, batch_size=200, callbacks=[Seed()])

    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    x = few.train[order]
    torch.manual_seed(1)
    optimiser = torch.optim.Adam(copied.parameters(), lr=1e-3)
    q = copied.encode(x)
    kl = torch.distributions.kl_divergence(q, copied.prior)
    (kl - copied.decode(q.rsample()).log_prob(x)).mean().backward()
    optimiser.step()
    for got, expected in zip(vae.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


def test_epoch_figures_are_means_over_images_not_batches(few):
    """A decoder that ignores z and a posterior that is the prior make the bound a plain function of the images."""
    vae = VAE.build((1, 8, 8), posterior="diagonal", latent_dim=4)
    for parameter in [*vae.posterior.parameters(), *vae.decoder.parameters()]:
        torch.nn.init.zeros_(parameter)
    torch.nn.init.normal_(vae.decoder[2].bias)
    history = fit(vae, few, epochs=1, batch_size=128, learning_rate=0.0)
    for got, images in ((history.train, few.train), (history.test, few.test)):
        expected = -vae.decode(torch.zeros(4)).log_prob(images).mean()
        assert got == [pytest.approx(expected.item(), rel=1e-5)]


def test_negative_elbo_leaves_the_parameter_store_alone(few):
    first, second = (VAE.build((1, 8, 8)) for _ in range(2))
    pyro.param("mine", torch.ones(1))
    for vae in (first, second):
        torch.manual_seed(2)
        got = negative_elbo(vae, few.test)
        assert list(pyro.get_param_store()) == ["mine"]
        torch.manual_seed(2)
        with pyro.get_param_store().scope():
            expected = TraceMeanField_ELBO().loss(vae.model, vae.guide, few.test) / len(few.test)
        assert got.item() == pytest.approx(expected, rel=1e-6)


def test_two_vaes_in_one_process_train_apart(few):
    """The second is not given the first one's parameters, and is the same as if it were the only one."""
    alone, _ = trained("ar1", few, epochs=2)
    trained("ar1", few, epochs=5)
    second, _ = trained("ar1", few, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), second.parameters(), strict=True))


def test_trained_vae_can_be_copied_and_pickled(few):
    vae, _ = trained("ar1", few, epochs=1)
    copied = copy.deepcopy(vae)
    assert torch.equal(copied.reconstruct(few.test), vae.reconstruct(few.test))
    assert len(pickle.dumps(vae)) > 4 * sum(parameter.numel() for parameter in vae.parameters())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_loss_that_is_not_finite_stops(posterior, value, few):
    torch.manual_seed(0)
    vae = VAE.build((1, 8, 8), posterior=posterior)

    class Break(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 3:
                vae.posterior.log_variance.bias.data.fill_(value)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch 2, after 3 steps"):
            fit(vae, few, epochs=5, callbacks=[Break()])


def test_quiet_and_leaves_no_files(few, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained("ar1", few, epochs=1)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")  # Lightning's own remarks
def test_module_trains_with_the_users_own_trainer(few, tmp_path):
    vae = VAE.build((1, 8, 8), latent_dim=4)
    before = negative_elbo(vae, few.train).item()
    trainer = pl.Trainer(
        max_epochs=30, logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(few.train), batch_size=50)
    trainer.fit(VAEModule(vae), loader)
    assert negative_elbo(vae, few.train).item() < 0.75 * before


def test_progress_line(few):
    console = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    with Progress(console=console) as progress:
        task = progress.add_task("ar1", start=False, epoch="", loss="")
        _, history = trained("ar1", few, epochs=3, callbacks=[ProgressLine(progress, task)])
    (line,) = progress.tasks
    assert line.finished
    assert line.completed == 3 * 2
    assert line.fields == {"epoch": "epoch 3/3", "loss": f"loss {history.test[-1]:.2f}"}


def test_ctrl_c_is_a_keyboard_interrupt(few):
    handler = signal.getsignal(signal.SIGINT)

    class Interrupt(Callback):
        def on_train_batch_end(self, *args):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trained("ar1", few, epochs=3, callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) is handler
