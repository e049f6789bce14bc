import copy
import os
import pickle
import signal
import subprocess
import sys
import warnings

import lightning.pytorch as pl
import numpy as np
import pyro
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

from vae_models.data.loading import Images, load
from vae_models.model.posteriors import POSTERIORS
from vae_models.model.vae import VAE
from vae_models.settings.config import PRESETS, Config
from vae_models.settings.objectives import Objective
from vae_models.training.batches import ImageData, ShardedBatches, check_batches
from vae_models.training.callbacks import History
from vae_models.training.checkpoints import EpochCheckpoint
from vae_models.training.fitting import fit
from vae_models.training.module import VAEModule, loss_per_image
from vae_models.training.runs import read_metrics

every_posterior = pytest.mark.parametrize("posterior", POSTERIORS)


@pytest.fixture(scope="module")
def few(digits) -> Images:
    return Images(digits.train[:200], digits.validation[:50], digits.test[:50])


def build(config: Config) -> VAE:
    torch.manual_seed(0)
    return VAE.build((1, 8, 8), **config.vae_arguments())


def trained(images: Images, callbacks=(), **settings) -> tuple[VAE, History]:
    config = Config(**{"latent_dim": 4, "epochs": 3} | settings)
    vae = build(config)
    return vae, fit(vae, images, config, callbacks=callbacks)


def same_weights(a: VAE, b: VAE) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture(scope="module")
def small_digits() -> Images:
    return Images(*(images[:200] for images in load("digits", image_size=16)))


@every_posterior
def test_improves(posterior, few):
    vae, history = trained(few, posterior=posterior, epochs=15)
    for name in ("train_loss", "validation_negative_elbo"):
        assert history.column(name)[-1] < 0.8 * history.column(name)[0]
    assert history.column("epoch") == list(range(1, 16))
    assert min(history.column("seconds")) > 0
    for row in history.rows:
        assert tuple(row) == History.COLUMNS
        assert row["validation_negative_elbo"] == pytest.approx(row["validation_reconstruction"] + row["validation_kl"])
    assert not vae.training


SMALL = {
    "vanilla": {"hidden": 40},
    "beta": {"channels": (8, 8, 8, 8), "hidden": 20},
    "cnn": {"channels": (8, 8), "hidden": 20},
    "info": {"channels": (8, 8), "hidden": 20},
}


@every_posterior
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_improves_with_every_posterior(preset, posterior, small_digits):
    small = {"latent_dim": 4, "network_options": SMALL[preset], "epochs": 8, "batch_size": 50, "learning_rate": 5e-3}
    config = Config.from_preset(preset, posterior=posterior, **small)
    torch.manual_seed(0)
    losses = fit(VAE.build((1, 16, 16), **config.vae_arguments()), small_digits, config).column("train_loss")
    assert losses[-1] < 0.95 * losses[0]


@every_posterior
@pytest.mark.parametrize("objective", [Objective(), Objective.beta_vae(4.0), Objective.info_vae(0.5, 10.0)])
def test_loss_is_that_of_pyro(posterior, objective, few):
    vae = VAE.build((1, 8, 8), posterior=posterior, objective=objective)
    for beta in (objective.beta, 0.0):
        vae.beta = beta
        torch.manual_seed(2)
        got = loss_per_image(vae, few.test)
        torch.manual_seed(2)
        with pyro.get_param_store().scope():
            expected = TraceMeanField_ELBO().differentiable_loss(vae.model, vae.guide, few.test) / len(few.test)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
        gradients = [
            torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True, materialize_grads=True)
            for loss in (got, expected)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_loss_leaves_pyro_as_it_was(few):
    pyro.param("mine", torch.ones(1))
    for validation in (True, False):
        with pyro.validation_enabled(validation):
            for _ in range(2):
                loss_per_image(VAE.build((1, 8, 8)), few.test)
                assert list(pyro.get_param_store()) == ["mine"]
                assert pyro.infer.util.is_validation_enabled() == validation
                assert pyro.distributions.is_validation_enabled() == validation


def test_same_seed_same_metrics_whatever_the_global_generator(few):
    def figures(history):
        return [{**row, "seconds": 0} for row in history.rows]

    config = Config(posterior="markov", latent_dim=4, epochs=3, seed=1)
    runs = []
    for state in (1, 2):
        vae = build(config)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        runs.append((vae, fit(vae, few, config)))
        assert torch.equal(torch.get_rng_state(), before)
    (vae, history), (again, history_again) = runs
    assert figures(history) == figures(history_again)
    assert same_weights(vae, again)
    _, other = trained(few, posterior="markov", seed=2)
    assert other.column("train_loss") != history.column("train_loss")


def test_epochs_have_their_own_order_and_noise(few):
    """At learning rate zero the losses of the epochs differ by the noise alone; the validation's noise is one."""
    _, history = trained(few, learning_rate=0.0)
    assert len(set(history.column("train_loss"))) == 3
    assert len(set(history.column("validation_negative_elbo"))) == 1
    batches = ShardedBatches(1000, 1000, seed=0)
    orders = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        (order,) = batches
        orders.append(order)
        assert torch.equal(next(iter(batches)), order)
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert all((a == b).sum() < 10 for a, b in zip(orders, orders[1:], strict=False))


def test_is_adam_on_the_elbo_per_image(few):
    """One step, on all images at once, against torch's Adam on a copy."""
    config = Config(epochs=1, batch_size=200, latent_dim=4)
    vae = build(config)
    copied = copy.deepcopy(vae)

    class Seed(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.x = batch[0]
            torch.manual_seed(1)

    seed = Seed()
    fit(vae, few, config, callbacks=[seed])

    assert torch.equal(seed.x.sort(0).values, few.train.sort(0).values)
    torch.manual_seed(1)
    optimiser = torch.optim.Adam(copied.parameters(), lr=1e-3)
    q = copied.encode(seed.x)
    (kl_divergence(q, copied.prior) - copied.decode(q.rsample()).log_prob(seed.x)).mean().backward()
    optimiser.step()
    for got, expected in zip(vae.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("objective", [Objective(), Objective.beta_vae(4.0)])
def test_epoch_figures_are_means_over_images_not_batches(objective, few):
    """A decoder that ignores z and one posterior for all make them plain functions of the images."""
    config = Config(posterior="diagonal", latent_dim=4, epochs=1, learning_rate=0.0, objective=objective)
    vae = build(config)
    for parameter in [*vae.posterior.parameters(), *vae.decoder.parameters()]:
        torch.nn.init.zeros_(parameter)
    torch.nn.init.normal_(vae.decoder[2].bias)
    torch.nn.init.constant_(vae.posterior.loc.bias, 0.5)
    kl = 4 * 0.5**2 / 2
    history = fit(vae, few, config)
    reconstruction = {
        name: -vae.decode(torch.zeros(4)).log_prob(getattr(few, name)).mean().item() for name in ("train", "validation")
    }
    expected = {
        "train_loss": reconstruction["train"] + objective.beta * kl,
        "validation_negative_elbo": reconstruction["validation"] + kl,
        "validation_reconstruction": reconstruction["validation"],
        "validation_kl": kl,
    }
    (row,) = history.rows
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_warmup_of_beta(few):
    class Betas(Callback):
        values: list[float] = []

        def on_train_batch_end(self, *args):
            self.values.append(vae.beta)

    config = Config(epochs=3, batch_size=50, objective=Objective.beta_vae(4.0, warmup_epochs=2))
    vae = build(config)
    fit(vae, few, config, callbacks=[Betas()])
    assert Betas.values == [4.0 * step / 8 for step in range(8)] + [4.0] * 4
    config = Config(epochs=1, objective=Objective.beta_vae(4.0, warmup_epochs=2))
    vae = build(config)
    fit(vae, few, config)
    assert vae.beta == 4.0


def test_learning_rate_falls_on_a_plateau(few):
    """At learning rate zero nothing improves; the validation loss of the first epoch counts as a better one."""
    _, history = trained(few, learning_rate=1e-30, plateau_patience=1, epochs=6)
    assert history.column("learning_rate") == pytest.approx([1e-30] * 3 + [1e-31] * 2 + [1e-32], rel=1e-6)


def test_early_stopping(few):
    _, history = trained(few, learning_rate=1e-30, early_stopping=2, epochs=9)
    assert len(history.rows) == 3


def test_gradient_clip(few):
    """Adam's first step is as long as the learning rate for any gradient but a tiny one, next to its epsilon."""
    plain, _ = trained(few, epochs=1, batch_size=200)
    clipped, _ = trained(few, epochs=1, batch_size=200, gradient_clip=1e-12)
    start = build(Config(latent_dim=4))
    moved = [
        max((a - b).abs().max().item() for a, b in zip(vae.parameters(), start.parameters(), strict=True))
        for vae in (plain, clipped)
    ]
    assert moved[0] > 9e-4
    assert moved[1] < 1e-6


def test_dynamic_binarisation(few):
    """Training images are drawn anew whenever they are used; validation images are left as they are."""

    class Batches(Callback):
        def __init__(self):
            self.train, self.validation = [], []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.train.append(batch[0])

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.validation.append(batch[0])

    batches = Batches()
    grey = Images(torch.full((400, 1, 8, 8), 0.3), few.validation, few.test)
    trained(grey, callbacks=[batches], binarize="dynamic", batch_size=400, epochs=2)
    first, second = batches.train
    for x in (first, second):
        assert set(x.unique().tolist()) == {0.0, 1.0}
        assert x.mean().item() == pytest.approx(0.3, abs=0.02)
    assert not torch.equal(first, second)
    assert all(torch.equal(x, few.validation) for x in batches.validation)


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x: x.squeeze(1), r"must be a floating-point tensor of shape \(N, 1, 8, 8\)"),
        (lambda x: (255 * x).byte(), r"must be a floating-point tensor .* got torch.uint8"),
        (lambda x: x[:0], r"must be .*N > 0, got torch.float32 of shape \(0, 1, 8, 8\)"),
        (lambda x: 255 * x, r"must be finite and within Interval\(lower_bound=0.0, upper_bound=1.0\), got \d+"),
        (lambda x: x / 0, r"must be finite and within Interval\(.*\), got (nan|inf)"),
    ],
)
def test_images_of_the_wrong_meaning(part, wrong, said, few):
    """Before anything is trained or written."""
    images = few._replace(**{part: wrong(getattr(few, part))})
    with pytest.raises(ValueError, match=rf"^images.{part} {said}"):
        trained(images, callbacks=[StartsNot()])


class StartsNot(Callback):
    def on_fit_start(self, *args):
        pytest.fail("started")


def test_images_of_another_precision(few):
    """Doubles, as NumPy gives them, train what floats do."""
    doubles = Images(*(images.double() for images in few))
    assert trained(doubles)[1].column("train_loss") == trained(few)[1].column("train_loss")
    config = Config(latent_dim=4, epochs=2)
    for precision in ("64-true", "bf16-true"):
        assert len(fit(build(config), few, config, precision=precision).rows) == 2


@pytest.mark.parametrize("size", [1, 2, 7, 64, 65, 129, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sharded_batches(size, world_size):
    """Against the definition: every index once, equally many steps, even sizes, the same steps for any world size."""
    if size < world_size:
        with pytest.raises(ValueError, match=f"{size} images .* {world_size} processes"):
            ShardedBatches(size, 64, world_size=world_size)
        return
    ranks = [list(ShardedBatches(size, 64, seed=3, rank=rank, world_size=world_size)) for rank in range(world_size)]
    alone = list(ShardedBatches(size, 64, seed=3))
    assert {len(batches) for batches in ranks} == {len(alone), -(-size // 64)}
    for *shares, batch in zip(*ranks, alone, strict=True):
        assert torch.equal(torch.cat(shares), batch)
        assert np.ptp([len(share) for share in shares]) <= 1
        assert all(len(share) > 0 for share in shares)
    assert np.ptp([len(batch) for batch in alone]) <= 1
    assert torch.equal(torch.cat(alone).sort().values, torch.arange(size))


def test_batch_normalisation_with_a_last_batch_of_one(digits):
    """In batches of 128 the last one of 129 images would be a single image."""
    images = Images(digits.train[:129], digits.validation[:20], digits.test[:20])
    _, history = trained(images, network="dcgan", network_options={"channels": (4, 8), "hidden": 16}, epochs=1)
    assert history.rows[0]["train_loss"] > 0


SMALL_DCGAN = {"network": "dcgan", "network_options": {"channels": (4, 8), "hidden": 16}}


@pytest.mark.parametrize(("size", "batch_size", "processes"), [(1, 128, 1), (3, 2, 1), (4, 1, 1), (5, 5, 3)])
def test_batch_of_one_image_and_batch_normalisation_are_refused_before_the_training(
    size, batch_size, processes, digits, monkeypatch
):
    images = Images(digits.train[:size], digits.validation[:5], digits.test[:5])
    vae = build(Config(latent_dim=4, **SMALL_DCGAN))
    with pytest.raises(
        ValueError, match=f"^batch normalisation needs two images.* and {size} training images .* {batch_size}"
    ):
        check_batches(vae, size, batch_size, processes)
    check_batches(build(Config(latent_dim=4)), size, batch_size, processes)
    if processes == 1:
        monkeypatch.setattr(VAEModule, "training_step", lambda *_: pytest.fail("trained"))
        with pytest.raises(ValueError, match="^batch normalisation needs two images"):
            trained(images, batch_size=batch_size, **SMALL_DCGAN)


@pytest.mark.parametrize(("size", "batch_size"), [(2, 128), (4, 3), (4, 2), (5, 4), (5, 3)])
def test_few_images_and_batch_normalisation(size, batch_size, digits):
    images = Images(digits.train[:size], digits.validation[:1], digits.test[:5])
    _, history = trained(images, batch_size=batch_size, epochs=1, **SMALL_DCGAN)
    assert history.rows[0]["train_loss"] > 0


def test_one_image_to_train_on_and_one_to_validate_with(digits):
    _, history = trained(Images(digits.train[:1], digits.validation[:1], digits.test[:0]), epochs=2)
    assert len(history.rows) == 2


def test_goes_on_from_a_checkpoint_of_the_same_images_alone(few, tmp_path):
    trained(few, [EpochCheckpoint(tmp_path / "last.ckpt", {})], epochs=1)
    config = Config(latent_dim=4, epochs=2)
    history = fit(build(config), few._replace(test=few.test.clone()), config, checkpoint=tmp_path / "last.ckpt")
    assert history.column("epoch") == [1, 2]
    for name in ("train", "validation", "test"):
        images = few._replace(**{name: getattr(few, name).flip(0)})
        with pytest.raises(ValueError, match="^the checkpoint is one of training on other images"):
            fit(build(config), images, config, checkpoint=tmp_path / "last.ckpt")


def test_two_vaes_in_one_process_train_apart(few):
    """The second is not given the first one's parameters, and is the same as if it were the only one."""
    alone, _ = trained(few, epochs=2)
    trained(few, epochs=5)
    second, _ = trained(few, epochs=2)
    assert same_weights(alone, second)


def test_trained_vae_can_be_copied_and_pickled(few):
    vae, _ = trained(few, epochs=1)
    copied = copy.deepcopy(vae)
    assert torch.equal(copied.reconstruct(few.test), vae.reconstruct(few.test))
    assert len(pickle.dumps(vae)) > 4 * sum(parameter.numel() for parameter in vae.parameters())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@every_posterior
def test_loss_that_is_not_finite_stops(posterior, value, few):
    config = Config(posterior=posterior, epochs=5)
    vae = build(config)

    class Break(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 3:
                vae.posterior.log_variance.bias.data.fill_(value)

    message = r"^the training loss (is (nan|inf)|can't be computed: .+), in epoch 2, after 3 steps$"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FloatingPointError, match=message):
            fit(vae, few, config, callbacks=[Break()])


def test_validation_loss_that_is_not_finite_stops(few):
    """So that weights that the last step of an epoch has spoilt don't reach a checkpoint."""
    config = Config(epochs=5)
    vae = build(config)

    class Break(Callback):
        def on_validation_start(self, *args):
            vae.posterior.log_variance.bias.data.fill_(torch.nan)

    with pytest.raises(FloatingPointError, match=r"the validation loss is nan, in epoch 1, after 2 steps"):
        fit(vae, few, config, callbacks=[Break()])


def test_quiet_and_leaves_no_files(few, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(few, epochs=1)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")  # Lightning's own remarks
def test_module_trains_with_the_users_own_trainer(few, tmp_path):
    vae = VAE.build((1, 8, 8), latent_dim=4)
    before = loss_per_image(vae, few.train).item()
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=30, default_root_dir=tmp_path, **plain)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(few.train), batch_size=50)
    trainer.fit(VAEModule(vae, plateau_patience=3), loader)
    assert loss_per_image(vae, few.train).item() < 0.75 * before
    bytes_loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(255 * few.train), batch_size=50)
    with pytest.raises(ValueError, match="images must be finite and within Interval"):
        pl.Trainer(max_epochs=1, default_root_dir=tmp_path, **plain).fit(VAEModule(vae), bytes_loader)


@pytest.mark.parametrize(
    "option",
    [
        *({name: 1} for name in ("max_epochs", "min_epochs", "max_steps", "min_steps", "gradient_clip_val")),
        *({name: 2} for name in ("check_val_every_n_epoch", "val_check_interval", "overfit_batches")),
        *({name: True} for name in ("fast_dev_run", "barebones", "use_distributed_sampler")),
        *({name: 0} for name in ("limit_val_batches", "limit_train_batches")),
        {"max_time": "00:00:01:00"},
    ],
    ids=str,
)
def test_options_of_lightning_that_are_refused_by_name(option, few):
    (name,) = option
    with pytest.raises(ValueError, match=f"^Lightning's option {name} (is not taken: the training has|must leave)"):
        fit(build(Config()), few, Config(), **option)


@pytest.mark.parametrize(
    "options",
    [
        {"limit_train_batches": 2},
        {"limit_train_batches": 0.5},
        {"limit_val_batches": 1},
        {"num_sanity_val_steps": 1},
        {"accumulate_grad_batches": 3},
        {"reload_dataloaders_every_n_epochs": 1},
        {"logger": True, "enable_checkpointing": True},
        {"deterministic": True, "inference_mode": False, "enable_model_summary": True, "enable_progress_bar": True},
    ],
    ids=str,
)
def test_options_of_lightning_that_work(options, few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(latent_dim=4, epochs=3, batch_size=50)
    vae = build(config)
    history = fit(vae, few, config, **options)
    assert history.column("epoch") == [1, 2, 3]
    for name in ("train_loss", "validation_negative_elbo"):
        assert history.column(name)[2] < history.column(name)[0]
    assert min(history.column("seconds")) > 0


def test_history_prints_its_outcome():
    history = History()
    assert repr(history) == "History(0 epochs)"
    history.rows = [{"epoch": i + 1, "validation_negative_elbo": loss} for i, loss in enumerate([3.0, 1.25, 2.0])]
    assert repr(history) == "History(3 epochs, least validation_negative_elbo: 1.25 in epoch 2)"


def test_ctrl_c_is_a_keyboard_interrupt(few):
    handler = signal.getsignal(signal.SIGINT)

    class Interrupt(Callback):
        def on_train_batch_end(self, *args):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trained(few, callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) is handler


def test_mixed_precision(few):
    config = Config(latent_dim=4, epochs=5)
    vae = build(config)
    history = fit(vae, few, config, precision="bf16-mixed")
    assert history.column("validation_negative_elbo")[-1] < 0.95 * history.column("validation_negative_elbo")[0]
    assert all(parameter.dtype == torch.float32 for parameter in vae.parameters())


TWO_PROCESSES = """
import sys
import torch
from lightning.pytorch.callbacks import Callback
from vae_models.data import loading
from vae_models.training import runs
from vae_models.settings.config import PRESETS, Config
from vae_models.data.record import of_tensors

torch.set_num_threads(1)


class Watch(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(batch[0])

    def on_validation_start(self, trainer, pl_module):
        self.random = torch.rand(())  # of the training noise
        self.weights = {name: value.clone() for name, value in pl_module.vae.state_dict().items()}

    def on_train_epoch_end(self, trainer, pl_module):
        figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
        seen = [len(x) for x in self.seen], torch.cat(self.seen)
        torch.save((self.weights, figures, seen, self.random), f"{sys.argv[1]}/{trainer.global_rank}.pt")
        self.seen = []


digits = loading.load("digits")
few = loading.Images(digits.train[:203], digits.validation[:91], digits.test[:5])
loading.load_with_record = lambda *_, **__: (few, of_tensors(few))
network_options = {"channels": (4, 8), "hidden": 16}
config = Config(epochs=2, batch_size=64, latent_dim=4, network="dcgan", network_options=network_options)
run = runs.train(config, f"{sys.argv[1]}/run", callbacks=[Watch()], accelerator="cpu", devices=2, strategy="ddp")
torch.save(run.vae.state_dict(), f"{sys.argv[1]}/main.pt" if runs.is_main_process() else f"{sys.argv[1]}/other.pt")
"""


@pytest.mark.slow
def test_two_processes(tmp_path, digits):
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    (weights, figures, (sizes, x), noise), (other, other_figures, (other_sizes, y), other_noise) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)
    )

    vae = VAE.build((1, 8, 8), latent_dim=4, network="dcgan", network_options={"channels": (4, 8), "hidden": 16})
    assert all(torch.equal(weights[name], other[name]) for name, _ in vae.named_parameters())
    assert figures == other_figures
    assert noise != other_noise

    # 203 images in four steps of 51, 51, 51 and 50, shared out; no two digits are the same image.
    train, validation = digits.train[:203], digits.validation[:91]
    assert len(train.flatten(1).unique(dim=0)) == 203
    assert (sizes, other_sizes) == ([26, 26, 26, 25], [25, 25, 25, 25])
    both = torch.cat([x, y]).flatten(1)
    assert len(both) == 203
    assert torch.equal(both.unique(dim=0), train.flatten(1).unique(dim=0))

    # The validation over all 91 images, with the noise that each process draws for its 46 and 45.
    vae.load_state_dict(weights)
    vae.eval()
    reconstruction, kl = [], []
    with torch.no_grad():
        for rank, share in enumerate(validation.tensor_split(2)):
            torch.manual_seed(int(np.random.SeedSequence((0, 2, rank)).generate_state(1, np.uint64)[0]))
            q = vae.encode(share)
            reconstruction.append(-vae.decode(q.rsample()).log_prob(share))
            kl.append(kl_divergence(q, vae.prior))
    expected = {"reconstruction": torch.cat(reconstruction).mean().item(), "kl": torch.cat(kl).mean().item()}
    expected["negative_elbo"] = sum(expected.values())
    assert {name: figures[f"validation_{name}"] for name in expected} == pytest.approx(expected, rel=1e-5)

    # The folder, to which the first process alone writes, is as after training by one.
    row = read_metrics(tmp_path / "run")[-1]
    assert {name: row[name] for name in figures} == figures
    final = VAE.from_pretrained(tmp_path / "run").state_dict()
    for name in ("main.pt", "other.pt"):
        torch.testing.assert_close(torch.load(tmp_path / name, weights_only=True), final, rtol=0, atol=0)
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_file()} == {
        *(".lock", "config.json", "data.json", "metrics.csv", "best.ckpt", "last.ckpt", "model.safetensors")
    }


def test_image_data_is_what_a_trainer_of_ones_own_can_use(few, tmp_path):
    vae = VAE.build((1, 8, 8), latent_dim=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own remarks
        trainer = pl.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path
        )
        trainer.fit(VAEModule(vae), datamodule=ImageData(few, batch_size=50))
    assert trainer.global_step == 4
    assert trainer.callback_metrics["validation_negative_elbo"] > 0
