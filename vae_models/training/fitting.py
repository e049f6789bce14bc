"""Training with Lightning."""

import contextlib
import functools
import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.utilities.warnings import PossibleUserWarning

from vae_models.data.loading import Images
from vae_models.data.record import checksum, of_tensors
from vae_models.files import reason
from vae_models.model.vae import VAE
from vae_models.settings.config import Config
from vae_models.training.batches import ImageData
from vae_models.training.callbacks import EpochSeeds, History, ResumableEarlyStopping, SameData
from vae_models.training.module import VAEModule
from vae_models.training.progress import ProgressText, is_watched

__all__ = ["fit", "history_of", "make_trainer", "run_trainer"]


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
            logs what :class:`vae_models.training.module.VAEModule` does.
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


def make_trainer(config: Config, callbacks: Sequence[Callback], **options: Any) -> pl.Trainer:
    """The trainer of :func:`fit`, with a :class:`vae_models.training.callbacks.History` among its callbacks.

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
