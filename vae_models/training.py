"""Training with Lightning."""

import contextlib
import logging
import signal
import time
import warnings
from collections.abc import Iterator, Sequence

import lightning.pytorch as pl
import pyro
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from pyro.infer import TraceMeanField_ELBO
from rich.progress import Progress, TaskID
from torch import Tensor

from vae_models.data import Images, batches
from vae_models.vae import VAE

__all__ = ["History", "ProgressLine", "VAEModule", "fit", "negative_elbo"]


def negative_elbo(vae: VAE, x: Tensor) -> Tensor:
    r"""The negative evidence lower bound in nats, averaged over the images of x, with one sample per image,

    .. math:: \frac1N \sum_n \big( -\log p(x_n \mid z_n) + \operatorname{KL}(q(z \mid x_n) \Vert p(z)) \big),
        \qquad z_n \sim q(z \mid x_n),

    from :class:`pyro.infer.TraceMeanField_ELBO`, in a parameter store of its own: any number of VAEs may be trained
    in one process.
    """
    with pyro.get_param_store().scope():
        return TraceMeanField_ELBO().differentiable_loss(vae.model, vae.guide, x) / len(x)


class VAEModule(pl.LightningModule):
    """Training of a VAE by Adam (arXiv:1412.6980) on its negative ELBO per image.

    Args:
        vae (VAE): what to train, in place.
        learning_rate (float): Adam's.

    Raises:
        FloatingPointError: as soon as a loss is NaN or infinite.
    """

    def __init__(self, vae: VAE, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.vae = vae
        self.learning_rate = learning_rate

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "train_negative_elbo")

    def validation_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "test_negative_elbo")

    def _step(self, batch: tuple[Tensor], name: str) -> Tensor:
        (x,) = batch
        loss = negative_elbo(self.vae, x)
        if not loss.isfinite():
            raise FloatingPointError(
                f"the loss is {loss.item()} in epoch {self.current_epoch + 1}, after {self.global_step} steps"
            )
        self.log(name, loss, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class History(Callback):
    """Figures of every finished epoch.

    Attributes:
        train (list of float): mean negative ELBO of the training images, as the parameters moved through the epoch.
        test (list of float): mean negative ELBO of the test images at its end.
        seconds (list of float): wall time of its training steps, without the test.
    """

    def __init__(self) -> None:
        self.train: list[float] = []
        self.test: list[float] = []
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self._start)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.train.append(trainer.callback_metrics["train_negative_elbo"].item())
        self.test.append(trainer.callback_metrics["test_negative_elbo"].item())


class ProgressLine(ProgressBar):
    """A whole run as one line of a :class:`rich.progress.Progress`, which can so show several runs.

    Args:
        progress (Progress): its columns may show the fields ``epoch`` and ``loss``, which are strings.
        task (TaskID): the line, not started.
    """

    def __init__(self, progress: Progress, task: TaskID) -> None:
        super().__init__()
        self._progress = progress
        self._task = task

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.max_epochs is not None
        self._progress.start_task(self._task)
        self._progress.update(self._task, total=trainer.max_epochs * trainer.num_training_batches)

    def on_train_batch_end(self, *args, **kwargs) -> None:
        self._progress.advance(self._task)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = trainer.callback_metrics["test_negative_elbo"].item()
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._progress.update(self._task, epoch=epoch, loss=f"loss {loss:.2f}")

    def disable(self) -> None:
        self._progress.update(self._task, visible=False)

    def enable(self) -> None:
        self._progress.update(self._task, visible=True)


def fit(
    vae: VAE,
    images: Images,
    *,
    epochs: int,
    seed: int = 0,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Train a VAE, in place, with the settings of the paper's vanilla VAE.

    Args:
        vae (VAE): what to train.
        images (Images): after every epoch the bound is taken on the test images too. Nothing is chosen by it.
        epochs (int): how often to go over the training images.
        seed (int): of the order of the images. The noise comes from torch's global generator.
        batch_size (int): images per step.
        learning_rate (float): Adam's.
        callbacks (sequence of Callback): further Lightning callbacks, such as :class:`ProgressLine`.

    Raises:
        FloatingPointError: as soon as a loss is NaN or infinite.
    """
    history = History()
    with _quiet_lightning():
        trainer = pl.Trainer(
            max_epochs=epochs,
            devices=1,
            callbacks=[history, *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            num_sanity_val_steps=0,
        )
        _fit_interruptibly(
            trainer,
            VAEModule(vae, learning_rate),
            batches(images.train, batch_size, generator=torch.Generator().manual_seed(seed)),
            batches(images.test, 1000),
        )
    return history


def _fit_interruptibly(trainer: pl.Trainer, *args) -> None:
    """``trainer.fit``, but Ctrl-C is a KeyboardInterrupt: Lightning exits with code 1 and ignores further ones."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(*args)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's remarks on hardware and workers, and Pyro's on a loss that is NaN, which is an error here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            warnings.filterwarnings("ignore", module="lightning")  # its use of what torch has deprecated
            warnings.filterwarnings("ignore", message="Encountered (NaN|inf)", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)
