"""Lightning's checkpoints, of which nothing is executed and which are written whole or not at all."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from vae_models.files import FileError, write_whole

__all__ = ["EpochCheckpoint", "WholeCheckpointIO", "check_checkpoint", "read_checkpoint"]

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
        # With the paths of this folder: the run may have been moved, and Lightning would forget the best loss.
        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else ""

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        scores = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath})


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
    return checkpoint["epoch"] + 1


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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileError(f"{path} is damaged or not a checkpoint: {reason}") from error
