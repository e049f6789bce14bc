"""Training with Lightning."""

import contextlib
import functools
import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pyro
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ProgressBar
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Sampler, TensorDataset

from vae_models.data.loading import Images
from vae_models.data.record import checksum, of_tensors
from vae_models.files import is_number, reason
from vae_models.model.vae import VAE
from vae_models.settings.config import Config
from vae_models.training.progress import ProgressText, is_watched

__all__ = [
    "History",
    "ImageData",
    "SameData",
    "ShardedBatches",
    "VAEModule",
    "check_batches",
    "fit",
    "loss_per_image",
]

# Validation images per step, over all devices together.
_VALIDATION_BATCH = 500


def loss_per_image(vae: VAE, x: Tensor) -> Tensor:
    """The VAE's objective in nats, to be minimised, averaged over the images of x, with one latent vector for each.

    It is the loss of :class:`pyro.infer.TraceMeanField_ELBO`, in a parameter store of its own: any number of VAEs may
    be trained in one process. The posterior must have a divergence from the prior in closed form. Pyro's checks of
    model and guide, which take time in every step, are off.

    Example:

        >>> loss = loss_per_image(VAE.build((1, 8, 8)), torch.rand(16, 1, 8, 8))
        >>> loss.backward()

    Args:
        vae (VAE): with the objective and the current weight of its KL divergence, ``vae.beta``.
        x (Tensor): images, of shape ``(N, C, H, W)``. Their values are not checked, as
            :meth:`vae_models.model.vae.VAE.check_images` does.

    Returns:
        Tensor: a scalar.

    Raises:
        ValueError: if the images are not floating point and of the VAE's shape.
    """
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        return _ClosedFormELBO().differentiable_loss(vae.model, vae.guide, x) / len(x)


class _ClosedFormELBO(TraceMeanField_ELBO):
    """Without the densities of the latent vectors, which Pyro computes and, beside a closed form, does not use."""

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        guide_trace, model_trace = prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)
        model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        return model_trace, guide_trace


class VAEModule(pl.LightningModule):
    """Training of a VAE by Adam (arXiv:1412.6980) on its objective per image.

    It logs per epoch, in nats per image, ``train_loss``, the objective as the parameters moved through the epoch, and
    of the validation images ``validation_negative_elbo``, ``validation_reconstruction`` and ``validation_kl``, whatever
    the objective.

    Example:

        >>> from vae_models.data.loading import load
        >>> module = VAEModule(VAE.build((1, 8, 8)))
        >>> trainer = pl.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False)
        >>> trainer.fit(module, ImageData(load("digits"), batch_size=128))

    Args:
        vae (VAE): what to train, in place. Its ``beta`` follows the objective's warm-up.
        learning_rate (float): Adam's, at first.
        plateau_patience (int): epochs without a better validation loss after which the learning rate is divided by 10,
            or None for a constant one.

    Raises:
        FloatingPointError: as soon as a loss is NaN or infinite, or a posterior can't be factorised because of NaN.
        ValueError: if images are not such as the VAE takes: of an :class:`ImageData` any, before the first step; of
            other data those of an epoch's first batch.
    """

    def __init__(self, vae: VAE, learning_rate: float = 1e-3, plateau_patience: int | None = None) -> None:
        super().__init__()
        self.vae = vae
        self.learning_rate = learning_rate
        self.plateau_patience = plateau_patience

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        if batch_idx == 0:
            self.vae.check_images(x)
        self.vae.beta = self.vae.objective.beta_at(self.current_epoch + batch_idx / self.trainer.num_training_batches)
        with self._finite("training") as losses:
            losses.append(self.training_loss(x))
        # The epoch's mean, summed here: to log every step takes a fiftieth of the smallest network's time.
        if batch_idx == 0:
            self._total, self._count = torch.zeros((), device=x.device), 0
        self._total.add_(losses[0].detach(), alpha=len(x))
        self._count += len(x)
        if self.trainer.is_last_batch:
            self._log_mean("train_loss", self._total / self._count, self._count)
        return losses[0]

    def training_loss(self, x: Tensor) -> Tensor:
        """What a step on the images x minimises, per image."""
        return loss_per_image(self.vae, x)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        (x,) = batch
        with self._finite("validation") as losses:
            q = self.vae.encode(x)
            reconstruction = -self.vae.decode(q.rsample()).log_prob(x).mean()
            kl = kl_divergence(q, self.vae.prior).mean()
            losses.append(reconstruction + kl)
        self._log_mean("validation_negative_elbo", losses[0], len(x))
        self._log_mean("validation_reconstruction", reconstruction, len(x))
        self._log_mean("validation_kl", kl, len(x))

    @contextlib.contextmanager
    def _finite(self, kind: str) -> Iterator[list[Tensor]]:
        """See that the loss that is put on the list is finite, on every device: they stop together or not at all."""
        losses: list[Tensor] = []
        try:
            yield losses
            problem = "" if losses[0].isfinite() else f"is {losses[0].item()}"
        except torch.linalg.LinAlgError as error:
            problem = f"can't be computed: {str(error).splitlines()[0]}"
        if not self.trainer.strategy.reduce_boolean_decision(not problem):
            problem = problem or "of another process is not finite"
            where = f"in epoch {self.current_epoch + 1}, after {self.global_step} steps"
            raise FloatingPointError(f"the {kind} loss {problem}, {where}")

    def _log_mean(self, name: str, value: Tensor, count: int) -> None:
        # The weight is a float because Lightning averages the counts of several processes in integers, if they are.
        weight: Any = float(count)
        self.log(name, value.float(), on_step=False, on_epoch=True, sync_dist=True, batch_size=weight)

    def on_train_epoch_end(self) -> None:
        scheduler, loss = self.lr_schedulers(), self.trainer.callback_metrics.get("validation_negative_elbo")
        if isinstance(scheduler, ReduceLROnPlateau) and loss is not None:
            scheduler.step(loss)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Nothing. Lightning calls this after it wrote the epoch's checkpoint, so that a resumed run would miss a
        step; :meth:`on_train_epoch_end` comes before."""

    def on_train_end(self) -> None:
        self.vae.beta = self.vae.objective.beta

    def configure_optimizers(self) -> Any:
        # One operation for all parameters. Lightning can't clip the gradient of a fused optimiser in mixed precision.
        fused = self.device.type in ("cpu", "cuda", "mps") and self.trainer.gradient_clip_val is None
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=fused)
        if self.plateau_patience is None:
            return optimizer
        scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=self.plateau_patience)
        monitor = {"scheduler": scheduler, "monitor": "validation_negative_elbo", "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": monitor}


class ShardedBatches(Sampler[Tensor]):
    """Indices of batches, each shared out between the processes of a distributed run.

    Every index is in exactly one batch of one process. The sizes of the batches differ by 1 at most, and so do a
    batch's shares: no step is taken on a few left-over images, all processes take equally many steps, and the images of
    a step are the same for any number of processes.

    Example:

        >>> [index.tolist() for index in ShardedBatches(7, 3)]
        [[0, 1, 2], [3, 4], [5, 6]]
        >>> [index.tolist() for index in ShardedBatches(7, 3, rank=1, world_size=2)]
        [[2], [4], [6]]

    Args:
        size (int): number of images.
        batch_size (int): greatest number of images per step, over all processes together.
        seed (int): of the order, which is another one in every epoch, or None for the natural order.
        rank (int): which process.
        world_size (int): number of processes.

    Raises:
        ValueError: if there are fewer images in a batch than processes.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size = size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_batches = math.ceil(size / batch_size)
        self.epoch = 0
        if size // max(self.num_batches, 1) < world_size:
            raise ValueError(f"{size} images in batches of {batch_size} can't be shared by {world_size} processes")

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Tensor]:
        if self.seed is None:
            order = torch.arange(self.size)
        else:
            generator = torch.Generator().manual_seed(_derived_seed(self.seed, _Stream.ORDER, self.epoch))
            order = torch.randperm(self.size, generator=generator)
        for batch in order.tensor_split(self.num_batches):
            yield batch.tensor_split(self.world_size)[self.rank]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order. Lightning calls this."""
        self.epoch = epoch


def check_batches(vae: VAE, size: int, batch_size: int, world_size: int = 1) -> None:
    """See that a network with batch normalisation gets two images or more at a time, since one has no variance.

    Args:
        vae (VAE): with the network.
        size, batch_size, world_size (int): as of :class:`ShardedBatches`.

    Raises:
        ValueError: if not.
    """
    least = size // math.ceil(size / batch_size) // world_size
    if least == 1 and any(isinstance(module, torch.nn.BatchNorm1d) for module in vae.modules()):
        shared = f" shared by {world_size} processes" if world_size > 1 else ""
        raise ValueError(
            f"batch normalisation needs two images or more at a time, and {size} training images in batches of "
            f"{batch_size}{shared} leave one alone; choose another batch size or network"
        )


class ImageData(pl.LightningDataModule):
    """Images in memory, shuffled anew every epoch and shared out between the processes by :class:`ShardedBatches`.

    Args:
        images (Images): whose training and validation images are used.
        batch_size (int): greatest number of training images per step, over all processes together.
        seed (int): of the order of the training images.
        binarize (bool): draw every training image anew from its grey values whenever it is used.

    Note:
        A trainer of one's own needs ``use_distributed_sampler=False``.
    """

    def __init__(self, images: Images, batch_size: int = 128, *, seed: int = 0, binarize: bool = False) -> None:
        super().__init__()
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.binarize = binarize

    def setup(self, stage: str) -> None:
        """See that the images are such as the module's VAE takes, and give them its floating-point type."""
        assert self.trainer is not None
        vae = getattr(self.trainer.lightning_module, "vae", None)
        if isinstance(vae, VAE):
            for name in ("train", "validation"):
                vae.check_images(getattr(self.images, name), f"images.{name}")
            check_batches(vae, len(self.images.train), self.batch_size, self.trainer.world_size)
            self.images = Images(*(images.to(vae.prior_loc.dtype) for images in self.images))

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.images.train, self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.images.validation, _VALIDATION_BATCH, None)

    def _loader(self, images: Tensor, batch_size: int, seed: int | None) -> DataLoader:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        batches = ShardedBatches(len(images), batch_size, seed=seed, rank=rank, world_size=world_size)
        # A batch is one indexing of the tensor. The loader draws a seed for workers, which it has none of, and gets
        # a generator for that: the noise must not depend on how often Lightning makes an iterator.
        return DataLoader(TensorDataset(images), sampler=batches, batch_size=None, generator=torch.Generator())

    def on_after_batch_transfer(self, batch: Sequence[Tensor], dataloader_idx: int) -> Sequence[Tensor]:
        assert self.trainer is not None
        return [torch.bernoulli(x) for x in batch] if self.binarize and self.trainer.training else batch


class _Stream(IntEnum):
    """What a seed is derived for."""

    ORDER = 0
    TRAINING_NOISE = 1
    VALIDATION_NOISE = 2


def _derived_seed(seed: int, stream: _Stream, *numbers: int) -> int:
    """A seed for one use of many. Unlike sums of numbers, hashes don't collide."""
    return int(np.random.SeedSequence((seed, stream, *numbers)).generate_state(1, np.uint64)[0])


class EpochSeeds(Callback):
    """Noise that depends on the seed, the epoch and the process alone, and not on what went before: a run that is
    resumed after an epoch draws what a run that was never stopped draws. The noise of the validation is the same in all
    epochs, so that epochs compare.

    Args:
        seed (int): of the noise, which comes from torch's global generators.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.manual_seed(_derived_seed(self.seed, _Stream.TRAINING_NOISE, trainer.global_rank, trainer.current_epoch))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.manual_seed(_derived_seed(self.seed, _Stream.VALIDATION_NOISE, trainer.global_rank))


class History(Callback):
    """Figures of every finished epoch. They are part of Lightning's checkpoints.

    Attributes:
        rows (list of dict): by epoch, ``epoch``, counted from 1; what :class:`VAEModule` logs; ``learning_rate``, that
            of the epoch; and ``seconds``, the wall time of its training steps, without the validation.
    """

    COLUMNS = (
        "epoch",
        "train_loss",
        "validation_negative_elbo",
        "validation_reconstruction",
        "validation_kl",
        "learning_rate",
        "seconds",
    )

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._start = self._seconds = 0.0  # of the epoch

    def __repr__(self) -> str:
        if not self.rows:
            return "History(0 epochs)"
        best = min(self.rows, key=lambda row: row["validation_negative_elbo"])
        least = f"least validation_negative_elbo: {best['validation_negative_elbo']:.2f} in epoch {best['epoch']}"
        return f"History({len(self.rows)} epochs, {least})"

    def column(self, name: str) -> list[float]:
        """One of :data:`COLUMNS`, by epoch."""
        return [row[name] for row in self.rows]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        figures = {name: trainer.callback_metrics[name].item() for name in self.COLUMNS[1:-2]}
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])  # the module reduces it after this
        epoch = trainer.current_epoch + 1
        self.rows.append({"epoch": epoch, **figures, "learning_rate": rate, "seconds": self._seconds})

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rows = list(state_dict["rows"])
        for i, row in enumerate(rows):
            if tuple(row) != self.COLUMNS or row["epoch"] != i + 1 or not all(map(is_number, row.values())):
                raise ValueError("it has another history of epochs")
        self.rows = rows


class SameData(Callback):
    """Keeps the checksum of the images in the checkpoints, and refuses to go on from one of other images.

    Args:
        checksum (callable): which computes it, if it comes to writing or reading a checkpoint.
    """

    def __init__(self, checksum: Callable[[], str]) -> None:
        self._compute = checksum

    @functools.cached_property
    def checksum(self) -> str:
        """That of the images, which takes a moment."""
        return self._compute()

    def state_dict(self) -> dict[str, Any]:
        return {"checksum": self.checksum}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["checksum"] != self.checksum:
            raise ValueError("the checkpoint is one of training on other images: go on with those, or start anew")


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's, but a run that is resumed from the checkpoint of the epoch in which it was to stop does stop."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        waited, best = state_dict["wait_count"], state_dict["best_score"]
        if type(waited) is not int or not isinstance(best, Tensor) or best.shape != () or not best.is_floating_point():
            raise ValueError("it does not say how long there was no improvement")
        self.wait_count, self.best_score = waited, best  # the patience is the settings'


def fit(
    vae: VAE,
    images: Images,
    config: Config,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
    make_module: Callable[[VAE, float, int], VAEModule] = VAEModule,
    **trainer_options: Any,
) -> History:
    """Train a VAE, in place, for its objective. Nothing is written but by the callbacks.

    Example:

        >>> from vae_models.data.loading import load
        >>> config = Config(epochs=2, posterior="markov")
        >>> vae = VAE.build((1, 8, 8), **config.vae_arguments())
        >>> history = fit(vae, load("digits"), config)
        >>> history.column("epoch")
        [1, 2]

    Args:
        vae (VAE): what to train. Afterwards it is in evaluation mode.
        images (Images): the training images are trained on. After every epoch the bound is taken on the validation
            images, on which the learning rate and early stopping depend.
        config (Config): ``epochs``, ``batch_size``, ``learning_rate``, ``plateau_patience``, ``early_stopping``,
            ``gradient_clip``, ``binarize`` and ``seed`` are used. The seed is that of the order of the images and the
            noise. Torch's global generator on the CPU is left as it was.
        callbacks (sequence of Callback): further Lightning callbacks, such as
            :class:`vae_models.training.progress.ProgressLine`.
        checkpoint (Path): a checkpoint of Lightning's to go on from, written in training on the same images.
        make_module (callable): from VAE, learning rate and ``plateau_patience`` to the module that trains; one that
            logs what :class:`VAEModule` does.
        trainer_options: further arguments of Lightning's Trainer: ``accelerator``, ``devices`` (1 by default),
            ``num_nodes``, ``strategy``, ``precision``, ``plugins``, ``logger``, ``limit_train_batches``, ... But those
            that would end the training elsewhere or skip the validation after an epoch are refused.
            ``enable_progress_bar`` shows a line of progress, and does by default on a terminal and in a notebook.

    Raises:
        FloatingPointError: as soon as a loss is NaN or infinite.
        KeyboardInterrupt: on Ctrl-C.
        ValueError: if an option is refused, there are too few images, they are not such as
            :meth:`vae_models.model.vae.VAE.check_images` takes, or the checkpoint is of training on others.
    """
    callbacks = [*callbacks, SameData(functools.partial(_checksum, images))]
    trainer = make_trainer(config, callbacks, **trainer_options)
    return run_trainer(trainer, vae, images, config, checkpoint, make_module)


# Options of Lightning's Trainer that can't be given, and why.
_REFUSED = {
    **dict.fromkeys(["max_epochs", "min_epochs"], "the settings' epochs"),
    **dict.fromkeys(["max_steps", "min_steps", "max_time"], "whole epochs, as many as the settings' epochs"),
    "gradient_clip_val": "the settings' gradient_clip",
    **dict.fromkeys(
        ["check_val_every_n_epoch", "val_check_interval", "fast_dev_run", "overfit_batches", "barebones"],
        "a validation after every epoch, which decides on the best one and on the learning rate",
    ),
    "use_distributed_sampler": "the batches of ShardedBatches",
}


def make_trainer(config: Config, callbacks: Sequence[Callback], **options: Any) -> pl.Trainer:
    """The trainer of :func:`fit`, with a :class:`History` among its callbacks.

    Raises:
        ValueError: if an option is refused, or needs a library that is not there.
        MisconfigurationException: Lightning's, if the machine lacks what an option needs.
    """
    for name in options:
        if name in _REFUSED:
            raise ValueError(f"Lightning's option {name} is not taken: the training has {_REFUSED[name]}")
        if name in ("limit_train_batches", "limit_val_batches") and options[name] == 0:
            raise ValueError(f"Lightning's option {name} must leave some batches, got 0")
    all_callbacks = [History(), EpochSeeds(config.seed), *callbacks]
    has_bar = any(isinstance(each, ProgressBar) for each in callbacks)
    if not has_bar and options.get("enable_progress_bar", is_watched()):
        all_callbacks.append(ProgressText())
        has_bar = True
    if config.early_stopping is not None:
        all_callbacks.append(ResumableEarlyStopping("validation_negative_elbo", patience=config.early_stopping))
    defaults = {
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(each, pl.callbacks.Checkpoint) for each in callbacks),
        "enable_model_summary": False,
        "enable_progress_bar": has_bar,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # ImageData shares the images out
        "gradient_clip_val": config.gradient_clip,
        "max_epochs": config.epochs,
        "callbacks": all_callbacks,
    }
    with _quiet():
        try:
            return pl.Trainer(**(defaults | options))
        except ImportError as error:
            raise ValueError(f"an option needs a library that is not there: {reason(error)}") from error


def run_trainer(
    trainer: pl.Trainer,
    vae: VAE,
    images: Images,
    config: Config,
    checkpoint: Path | None = None,
    make_module: Callable[[VAE, float, int], VAEModule] = VAEModule,
) -> History:
    """What :func:`fit` does, by a trainer that :func:`make_trainer` made for the same settings."""
    data = ImageData(images, config.batch_size, seed=config.seed, binarize=config.binarize == "dynamic")
    with _quiet(), torch.random.fork_rng(devices=[]):
        module = make_module(vae.train(), config.learning_rate, config.plateau_patience)
        _fit_interruptibly(trainer, module, datamodule=data, ckpt_path=checkpoint)
    vae.eval()
    return history_of(trainer)


def history_of(trainer: pl.Trainer) -> History:
    """The history of a trainer that :func:`make_trainer` made."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    (history,) = (callback for callback in callbacks if isinstance(callback, History))
    return history


def _checksum(images: Images) -> str:
    return checksum(of_tensors(images))


def _fit_interruptibly(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
    """``trainer.fit``, but Ctrl-C is a KeyboardInterrupt: Lightning exits with code 1 and ignores further ones."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(*args, **kwargs)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks on hardware and workers, and Pyro's on a loss that is NaN, which is an error here."""
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            warnings.filterwarnings("ignore", module="lightning")  # its use of what torch has deprecated
            warnings.filterwarnings("ignore", message="Encountered NaN", category=UserWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
