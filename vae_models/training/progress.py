"""Progress of a training, a line for a whole run: its epochs can be too short to see a bar for each."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import Progress, TaskID
from tqdm import tqdm

__all__ = ["ProgressLine", "ProgressText", "is_watched"]


def is_watched() -> bool:
    """Whether standard error is a terminal, or is shown below a notebook's cell."""
    console = Console(stderr=True)
    return console.is_terminal or console.is_jupyter


class ProgressText(ProgressBar):
    """A run as a line of plain text on standard error, which needs no widgets in a notebook. It is what
    :func:`vae_models.training.fitting.fit` shows if :func:`is_watched` and no other progress bar is given."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = True
        self._bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.max_epochs is not None
        batches = int(trainer.num_training_batches)
        self._bar = tqdm(
            total=trainer.max_epochs * batches,
            initial=trainer.current_epoch * batches,
            desc=f"epoch {trainer.current_epoch}/{trainer.max_epochs}",
            bar_format="{desc} {bar:24} {elapsed}<{remaining}{postfix}",
            disable=not self._shown,
        )

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._bar.update()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = trainer.callback_metrics["validation_negative_elbo"].item()
        self._bar.set_description_str(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False)
        self._bar.set_postfix_str(f"loss {loss:.2f}", refresh=False)

    def on_train_end(self, *args: Any) -> None:
        self._bar.close()

    def on_exception(self, *args: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def disable(self) -> None:
        self._shown = False

    def enable(self) -> None:
        self._shown = True


class ProgressLine(ProgressBar):
    """A whole run as one line of a :class:`rich.progress.Progress`, which can so show several runs.

    Args:
        progress (Progress): its columns may show the fields ``epoch`` and ``loss``, which are strings. It is started
            with the training if it is not yet, so that nothing is shown of a run that fails before.
        task (TaskID): the line, not started.
    """

    def __init__(self, progress: Progress, task: TaskID) -> None:
        super().__init__()
        self._progress = progress
        self._task = task

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.max_epochs is not None
        batches = int(trainer.num_training_batches)
        self._progress.start()
        self._progress.start_task(self._task)
        self._progress.update(self._task, total=trainer.max_epochs * batches, completed=trainer.current_epoch * batches)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._progress.advance(self._task)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = trainer.callback_metrics["validation_negative_elbo"].item()
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._progress.update(self._task, epoch=epoch, loss=f"loss {loss:.2f}")

    def evaluating(self) -> None:
        """Say that the VAE is evaluated, whether it was trained before or not."""
        self._progress.start()
        self._progress.update(self._task, epoch="evaluating")

    def disable(self) -> None:
        self._progress.update(self._task, visible=False)

    def enable(self) -> None:
        self._progress.update(self._task, visible=True)
