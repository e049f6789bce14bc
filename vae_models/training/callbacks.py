"""Callbacks of the training: figures and noise of each epoch, the check of the images, the end."""

import functools
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor

from vae_models.files import is_number
from vae_models.training.seeds import Stream, derived_seed

__all__ = ["EpochSeeds", "History", "ResumableEarlyStopping", "SameData"]


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
        torch.manual_seed(derived_seed(self.seed, Stream.TRAINING_NOISE, trainer.global_rank, trainer.current_epoch))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.manual_seed(derived_seed(self.seed, Stream.VALIDATION_NOISE, trainer.global_rank))


class History(Callback):
    """Figures of every finished epoch. They are part of Lightning's checkpoints.

    Attributes:
        rows (list of dict): by epoch, ``epoch``, counted from 1; what
            :class:`vae_models.training.module.VAEModule` logs; ``learning_rate``, that of the epoch; and ``seconds``,
            the wall time of its training steps, without the validation.
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
