"""Lightning's checkpoints, of which nothing is executed and which are written whole or not at all."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from vae_models.files import FileError, first_line, write_whole

__all__ = ["EpochCheckpoint", "WholeCheckpointIO", "check_checkpoint", "check_training_state", "read_checkpoint"]

# What a checkpoint holds under this key, besides what Lightning puts in it, are the settings of the run.
_SETTINGS = "run"


class WholeCheckpointIO(TorchCheckpointIO):
    """How Lightning's Trainer, given this as a plugin, writes and reads checkpoints."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_whole(Path(path), content.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return _load(Path(path), map_location)


class EpochCheckpoint(ModelCheckpoint):
    """A checkpoint at the end of an epoch, with the settings of the run, in one file that the next one replaces.

    Args:
        path (Path): the file, which ends in ``.ckpt``.
        settings (dict): of the run, as :mod:`json` reads them.
        monitor (str): the logged figure whose least value so far is wanted, or None for the last epoch.
    """

    def __init__(self, path: Path, settings: dict[str, Any], monitor: str | None = None) -> None:
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            monitor=monitor,
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self._settings = settings

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_SETTINGS] = self._settings

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The file may come from anywhere, and Lightning deletes what a stored path names: of all that is stored the
        # least loss alone is taken, and the path is this one's, to which the run may have been moved.
        score = state_dict["best_model_score"]
        path = str(Path(str(self.dirpath), f"{self.filename}.ckpt"))
        self.best_model_path = path
        if self.monitor is None or score is None:
            return
        if not isinstance(score, Tensor) or score.shape != () or not score.is_floating_point() or score.isnan():
            raise ValueError("its least loss is not a number")
        self.best_model_score = self.kth_value = score
        self.best_k_models, self.kth_best_model_path = {path: score}, path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint that an :class:`EpochCheckpoint` wrote to a file, on the CPU.

    Raises:
        FileError: if it is missing, damaged or no such checkpoint.
    """
    checkpoint = _load(path, "cpu")
    parts = {"epoch", "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", _SETTINGS}
    whole = isinstance(checkpoint, dict) and parts <= set(checkpoint)
    if not whole or not isinstance(checkpoint["state_dict"], dict) or type(checkpoint["epoch"]) is not int:
        raise FileError(f"{path} is not a checkpoint of a run")
    return checkpoint


def check_checkpoint(path: Path, settings: dict[str, Any], module: torch.nn.Module, prefix: str) -> int:
    """See that a file is a checkpoint of the run with these settings and has the weights of this module.

    Args:
        path (Path): the file.
        settings (dict): of the run, as :mod:`json` reads them.
        module (Module): of which the names and shapes of the weights matter.
        prefix (str): of the names in the checkpoint.

    Returns:
        int: how many epochs were finished.

    Raises:
        FileError: if not.
    """
    checkpoint = read_checkpoint(path)
    shapes = {name: getattr(value, "shape", None) for name, value in checkpoint["state_dict"].items()}
    expected = {prefix + name: value.shape for name, value in module.state_dict().items()}
    if checkpoint[_SETTINGS] != settings or shapes != expected:
        raise FileError(f"{path} belongs to another run")
    if not _counts(checkpoint["loops"]):
        raise FileError(f"{path} is damaged: its counts of epochs and steps are none")
    return checkpoint["epoch"] + 1


def check_training_state(checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """See that what a checkpoint holds of optimisers and schedules is of the kind that the trainer has, by name, type
    and shape; what is loaded is then what such a trainer has written.

    Raises:
        ValueError: if not.
    """
    optimizers, schedules = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    own = [optimizer.state_dict()["param_groups"] for optimizer in trainer.optimizers]
    if not _is_list_of_dicts(optimizers) or not _alike([each.get("param_groups") for each in optimizers], own):
        raise ValueError("its optimiser is another one")
    for optimizer, stored in zip(trainer.optimizers, optimizers, strict=True):
        shapes = dict(enumerate(value.shape for group in optimizer.param_groups for value in group["params"]))
        if not _fits(stored.get("state"), shapes):
            raise ValueError("its optimiser is that of other weights")
    own = [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs]
    if not _is_list_of_dicts(schedules) or not _alike(schedules, own):
        raise ValueError("its schedule of the learning rate is another one")


def _is_list_of_dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _fits(state: Any, shapes: Mapping[int, torch.Size]) -> bool:
    """Whether an optimiser has for each of its weights nothing but tensors of its shape and numbers in tensors."""
    return isinstance(state, dict) and all(
        index in shapes
        and isinstance(each, dict)
        and all(isinstance(value, Tensor) and value.shape in ((), shapes[index]) for value in each.values())
        for index, each in state.items()
    )


def _alike(value: Any, own: Any) -> bool:
    """Whether a value has the names, types and lengths of one's own, in which None may stand for a number."""
    if isinstance(own, dict):
        same = isinstance(value, dict) and value.keys() == own.keys()
        return same and all(_alike(value[name], each) for name, each in own.items())
    if isinstance(own, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(own) and all(map(_alike, value, own))
    if isinstance(own, str):
        return value == own
    return (own is None and value is None) or (isinstance(value, bool | int | float) and value == value)


def _counts(value: Any) -> bool:
    """Whether there is nothing in nested dictionaries but numbers of what was done."""
    if isinstance(value, dict):
        return all(map(_counts, value.values()))
    return isinstance(value, int) and value >= 0


def _load(path: Path, map_location: Any) -> Any:
    """What :func:`torch.save` wrote to a file, of plain types and tensors alone."""
    try:
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as archive:
            if damaged := archive.testzip():  # torch does not look at the checksums
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        content.seek(0)
        return torch.load(content, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise FileError(f"{path} does not exist") from None
    except Exception as error:  # whatever the readers of a damaged or foreign file stumble over
        raise FileError(f"{path} is damaged or not a checkpoint: {first_line(error)}") from error
