"""Training in a folder, which can be killed at any moment and resumed.

The folder of a run holds

- ``config.json``: its format, the settings, under ``"run"``, and what the VAE is made of, under ``"vae"``;
- ``data.json``: which images it was trained on, as :mod:`vae_models.data.record` describes them, so that it does not go
  on with others;
- ``metrics.csv``: a row per epoch, with the columns of :class:`vae_models.training.callbacks.History`;
- ``best.ckpt`` and ``last.ckpt``: Lightning's checkpoints of the epoch of least validation loss and of the last one;
- ``model.safetensors``: the weights of the best epoch, once training has ended;
- ``metrics.json``: the final figures, written last by whoever evaluates the VAE; they make the run finished.

Nothing is written before the training starts, so that what is refused leaves the folder as it was. Every file is
written whole or not at all. An epoch is finished when ``last.ckpt`` holds it. ``metrics.csv`` and
``best.ckpt`` are written before that; if the run is killed in between, the epoch is trained again to the same effect,
because its order and its noise depend on the seed and the epoch alone.
"""

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from vae_models.data import loading
from vae_models.data import record as data_record
from vae_models.data.loading import Images
from vae_models.data.record import Record
from vae_models.files import DataError, FileError, read_csv, reason, write_csv, write_json
from vae_models.model.vae import VAE
from vae_models.settings.comparisons import check_no_comparison
from vae_models.settings.config import Config
from vae_models.settings.config_file import read_config_file, write_config_file
from vae_models.training.batches import ShardedBatches
from vae_models.training.callbacks import History
from vae_models.training.checkpoints import (
    EpochCheckpoint,
    WholeCheckpointIO,
    check_checkpoint,
    check_training_state,
    read_checkpoint,
)
from vae_models.training.fitting import history_of, make_trainer, run_trainer
from vae_models.training.locks import locked
from vae_models.training.module import VAEModule

__all__ = [
    "Run",
    "best_epoch",
    "is_main_process",
    "is_run",
    "load_images",
    "load_other_images",
    "output",
    "read_config",
    "read_metrics",
    "train",
]

# In the order in which they are deleted: without metrics.json a run is not finished, without config.json it is none.
_FILES = ("metrics.json", "model.safetensors", "last.ckpt", "best.ckpt", "metrics.csv", "data.json", "config.json")
_FINAL = ("metrics.json", "model.safetensors")
_TENSORBOARD = "tensorboard"
_PREFIX = "vae."  # of the VAE's weights in a checkpoint of VAEModule


@dataclass(frozen=True)
class Run:
    """A run whose training has ended.

    Attributes:
        folder (Path): where it is.
        vae (VAE): with the weights of the best epoch, in evaluation mode.
        images (Images): its data, or None if the run is finished.
    """

    folder: Path
    vae: VAE
    images: Images | None

    @property
    def finished(self) -> bool:
        """Whether there are final figures."""
        return (self.folder / "metrics.json").exists()


def train(
    config: Config,
    folder: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    make_module: Callable[[VAE, float, int], VAEModule] = VAEModule,
    **trainer_options: Any,
) -> Run:
    """Train a VAE in a folder, or go on with that.

    Example:

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = train(Config(epochs=1), folder, accelerator="cpu")
        ...     len(read_metrics(folder)), read_config(folder) == Config(epochs=1), run.finished
        (1, True, False)

    Args:
        config (Config): the settings.
        folder (Path): of the run. It is made if it is not there.
        resume (bool): go on from the last finished epoch of the run in the folder; start one if there is none. Given
            more epochs than it had, a run goes on to those, finished or not, and is as one that had them from the
            beginning: neither the learning rate nor early stopping nor a warm-up depends on how many are to come.
        overwrite (bool): delete the run in the folder, but no other file, and start anew.
        callbacks (sequence of Callback): further Lightning callbacks, such as
            :class:`vae_models.training.progress.ProgressLine`.
        make_module (callable): as in :func:`vae_models.training.fitting.fit`. It is not one of the settings: a run that
            is resumed is to be given the same.
        trainer_options: further arguments of Lightning's Trainer: ``accelerator``, ``devices``, ``num_nodes``,
            ``strategy``, ``precision``, ... They are not settings of the run, which may be resumed with others.

    Returns:
        Run: unless it is ``finished``, the caller is to evaluate the VAE and to write ``metrics.json``, as
        :func:`vae_models.results.writing.finish` does. A finished run is not changed, but for more epochs.

    Raises:
        FileError: if the folder holds a run and neither ``resume`` nor ``overwrite`` is given, if the run to resume has
            other settings, other images, more epochs behind it or a damaged file, or if a file can't be written. The
            message names the folder or file.
        InUseError: if another process is at the run.
        FloatingPointError: as soon as a loss is NaN or infinite. The message names the last good checkpoint.
        KeyboardInterrupt: on Ctrl-C. The run can be resumed.
        ValueError: if ``resume`` and ``overwrite`` are both given, the settings don't make a VAE, there are too few
            images, or an option of the trainer is refused.

    Note:
        Of several processes only the first one writes to the folder. All return, but for spawned ones; what follows is
        for the one that :func:`is_main_process`.
    """
    folder, settings = Path(folder), _settings(config)
    if resume and overwrite:
        raise ValueError("a run is either resumed or overwritten")
    _stored(folder, settings, resume, overwrite)  # what is refused is so before anything is written
    with locked(folder) if is_main_process() else nullcontext():
        stored = _stored(folder, settings, resume, overwrite)
        if is_main_process():
            _tidy(folder)
        trained = stored is not None and (folder / "model.safetensors").exists()
        if stored is not None and trained and stored["epochs"] == config.epochs:
            vae = VAE.from_pretrained(folder)
            return Run(folder, vae, None if (folder / "metrics.json").exists() else load_images(config, folder))
        files = _Files(folder, settings, overwrite)
        return _train(config, folder, files, resume, trained, callbacks, make_module, trainer_options)


def _train(
    config: Config,
    folder: Path,
    files: "_Files",
    resume: bool,
    trained: bool,
    callbacks: Sequence[Callback],
    make_module: Callable[[VAE, float, int], VAEModule],
    trainer_options: dict[str, Any],
) -> Run:
    identity = _identity(files.settings)
    best, last = folder / "best.ckpt", folder / "last.ckpt"
    writers = [  # in this order: the last checkpoint holds what the best one has found
        files,
        EpochCheckpoint(best, identity, monitor="validation_negative_elbo"),
        EpochCheckpoint(last, identity),
    ]
    trainer = make_trainer(config, [*writers, *callbacks], **_trainer_options(folder, trainer_options))
    # What was trained on was there, and a settings file is no reason to write to the folder that it names.
    images, files.record = _load(config, download=not (resume and (folder / "data.json").exists()))
    if resume and is_main_process() and any((folder / name).exists() for name in ("data.json", "last.ckpt")):
        _check_data(config, folder, files.record)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        channels, height, width = images.train.shape[1:]
        vae = VAE.build((channels, height, width), **config.vae_arguments())
    ShardedBatches(len(images.train), config.batch_size, world_size=trainer.world_size)  # an error if they can't be
    checkpoint = last if trained or (resume and last.exists()) else None
    if trained and not last.exists():
        raise FileError(f"{last} does not exist, without which the run can't be trained for another number of epochs")
    if checkpoint:
        check_checkpoint(best, identity, vae, _PREFIX)
        epochs = check_checkpoint(last, identity, vae, _PREFIX)
        if epochs > config.epochs:
            raise FileError(f"{folder} has been trained for {epochs} epochs, more than {config.epochs}")
    tensorboard = folder / _TENSORBOARD
    if files.overwrite and is_main_process() and tensorboard.exists():
        shutil.rmtree(tensorboard)  # before the logger writes to it
    new = not tensorboard.exists()
    try:
        run_trainer(trainer, vae, images, config, checkpoint, make_module)
        if not files.begun:  # because nothing was left to train
            files.begin(trainer, vae)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if checkpoint and not files.begun and not isinstance(error, FileError):
            raise FileError(f"{checkpoint} can't be resumed: {reason(error)}") from error
        raise
    except FloatingPointError as error:
        good = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint of an epoch before"
        raise FloatingPointError(f"{error}; {good}") from error
    finally:
        if new and not files.begun and is_main_process():
            shutil.rmtree(tensorboard, ignore_errors=True)

    weights = read_checkpoint(best)["state_dict"]
    vae.float()  # as it is saved and read, whatever it was trained in
    vae.load_state_dict({name.removeprefix(_PREFIX): value for name, value in weights.items()})
    if is_main_process():
        vae.save_pretrained(folder)
    return Run(folder, vae, images)


def is_main_process() -> bool:
    """Whether this is the first of the processes that Lightning or a cluster started, or the only one."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def read_metrics(folder: Path | str) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.csv``.

    Raises:
        FileError: if it is missing or damaged.
    """
    path = Path(folder) / "metrics.csv"
    return read_csv(path, History.COLUMNS, lambda name, cell: int(cell) if name == "epoch" else float(cell))


def is_run(folder: Path) -> bool:
    """Whether a folder holds a file of a run."""
    return any((folder / name).exists() for name in _FILES)


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """The number of the epoch whose weights are kept: the first of those with the least validation loss.

    Args:
        history (sequence of mapping): the rows of :func:`read_metrics`.
    """
    return int(min(history, key=lambda row: row["validation_negative_elbo"])["epoch"])


def read_config(folder: Path | str) -> Config:
    """The settings of the run in a folder.

    Raises:
        FileError: if its ``config.json`` is missing, damaged or not a run's. It names the runs of a comparison.
    """
    check_no_comparison(Path(folder))
    path = Path(folder) / "config.json"
    try:
        return Config.from_json(_stored_settings(path))
    except FileError:
        raise
    except (TypeError, ValueError) as error:
        raise FileError(f"{path} does not hold the settings of a run: {reason(error)}") from error


class _Files(Callback):
    """Makes a folder that of a run with these settings when the training starts, and from then on keeps ``metrics.csv``
    equal to the history, which is the checkpoint's when a run is resumed."""

    def __init__(self, folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
        self.settings = settings
        self._folder = folder
        self.overwrite = overwrite
        self.begun = False
        self.record: Record = {}  # of the images, once they are loaded

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is not None:  # what it holds of optimisers and loops is loaded next
            check_training_state(read_checkpoint(Path(trainer.ckpt_path)), trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VAEModule)
        self.begin(trainer, pl_module.vae)

    def begin(self, trainer: Trainer, vae: VAE) -> None:
        """Delete the run that is overwritten, or the final figures of the one that goes on, and write the settings."""
        if trainer.current_epoch != len(history_of(trainer).rows):
            raise ValueError(f"it counts {trainer.current_epoch} epochs and has figures of another number")
        self.begun = True
        if trainer.is_global_zero:
            _delete(self._folder, _FILES if self.overwrite else _FINAL)
            write_config_file(self._folder / "config.json", {"run": self.settings, "vae": vae.config})
            write_json(self._folder / "data.json", self.record)
            self._write_metrics(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._write_metrics(trainer)

    def _write_metrics(self, trainer: Trainer) -> None:
        write_csv(self._folder / "metrics.csv", History.COLUMNS, history_of(trainer).rows)


def _trainer_options(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """With checkpoints written whole, and TensorBoard's files where it is installed."""
    plugins = options.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    options = {"default_root_dir": folder, **options, "plugins": [WholeCheckpointIO(), *plugins]}
    if importlib.util.find_spec(_TENSORBOARD):
        options.setdefault("logger", TensorBoardLogger(folder, name="", version=_TENSORBOARD))
    return options


def _stored(folder: Path, settings: dict[str, Any], resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """The settings of the run in the folder, if there is one to go on with; an error if it may not be touched."""
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder} is not a folder")
    if (folder / _TENSORBOARD).is_symlink():
        raise FileError(f"{folder / _TENSORBOARD} is a link, to which nothing is written")
    check_no_comparison(folder)
    present = [name for name in reversed(_FILES) if (folder / name).exists()]
    if present and not (resume or overwrite):
        raise FileError(
            f"{folder} already holds a run ({', '.join(present)}): resume or overwrite it (--resume, --overwrite)"
        )
    return _check_settings(folder / "config.json", settings) if present and resume else None


def _check_settings(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """See that the run that this ``config.json`` belongs to has these settings, and give its own."""
    own = _stored_settings(path)
    stored, settings = _identity(own), _identity(settings)
    for name in {**settings, **stored}:
        if name not in stored or name not in settings:
            raise FileError(
                f"{path} is of another version: the setting {name} is {'' if name in stored else 'not '}in it"
            )
        if stored[name] != settings[name]:
            raise FileError(
                f"{path} has {name} = {stored[name]!r}, not {settings[name]!r}: "
                "a run is resumed with its own settings, or overwritten (--overwrite)"
            )
    return own


def _identity(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that may change when a run is resumed: the number of epochs, and the place of the data
    set, which ``data.json`` tells to be the same."""
    return {name: value for name, value in settings.items() if name not in ("epochs", "data_root")}


def _stored_settings(path: Path) -> dict[str, Any]:
    value = read_config_file(path)
    stored = value.get("run") if isinstance(value, dict) else None
    if not isinstance(stored, dict):
        raise FileError(f"{path} does not hold the settings of a run")
    return stored


def _tidy(folder: Path) -> None:
    """Delete what a kill during a write has left."""
    try:
        for name in _FILES:
            for temporary in folder.glob(f".{name}.*"):
                temporary.unlink()
    except OSError as error:
        raise FileError(f"cannot write to the folder {folder}: {reason(error)}") from error


def _delete(folder: Path, names: Sequence[str]) -> None:
    """Delete files of a run, which is not finished as soon as the first one is gone."""
    try:
        for name in names:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"cannot delete the run in {folder}: {reason(error)}") from error


def output(path: Path, folder: Path, config: Config, suffix: str) -> Path:
    """The path, to which what is made of a run is written.

    Args:
        path (Path): where.
        folder (Path): the run's.
        config (Config): its settings.
        suffix (str): ``.json`` or ``.png``, by what is written.

    Raises:
        FileError: if that would replace a file of the run or one of its data, or the name says that it is another
            kind of file.
    """
    place = path.parent.resolve() / path.name
    if folder.resolve() == place.parent and (place.name in _FILES or place.exists()):
        raise FileError(f"{path} is a file of the run: name another one")
    if place.exists() and Path(config.data_root).resolve() in place.resolve().parents:
        raise FileError(f"{path} is there, in the folder of the data: name another one")
    if path.suffix.lower() not in ("", suffix):
        raise FileError(f"{path} is to end in {suffix}: a {suffix[1:].upper()} file is written")
    return path


def load_images(config: Config, *folders: Path) -> Images:
    """The images of the settings' data set, as :func:`vae_models.data.loading.load` gives them.

    Args:
        config (Config): the settings.
        folders (Path): of runs, which are to have been trained on them.

    Raises:
        DataError: if they can't be loaded, or a run was trained on others.
    """
    images, record = _load(config, download=not folders)
    for folder in folders:
        _check_data(config, folder, record)
    return images


def load_other_images(config: Config, vae: VAE, folder: Path, images: Path) -> tuple[Tensor, int | None]:
    """All the images in a folder, read as those of a run are, to evaluate the run on.

    Args:
        config (Config): the run's settings.
        vae (VAE): the run's model.
        folder (Path): the run's.
        images (Path): the folder of the images.

    Returns:
        tuple: the images, of shape ``(N, C, H, W)``, and how many of them the run saw in its training; None if it was
        not trained on a folder of images.

    Raises:
        DataError: if they can't be read or are not of the shape that the model takes.
    """
    values, files = loading.load_folder(
        images, image_size=config.image_size, color=config.color, binarize=config.binarize, seed=config.seed
    )
    expected = tuple(vae.config["image_shape"]) if vae.config else tuple(values.shape[1:])
    if tuple(values.shape[1:]) != expected:
        raise DataError(
            f"the images in {images} are of shape {tuple(values.shape[1:])}, and the model takes {expected}"
        )
    return values, data_record.seen_in_training(data_record.read(folder / "data.json"), files)


def _check_data(config: Config, folder: Path, record: Record) -> None:
    """See that the run in the folder was trained on these images."""
    if fault := data_record.difference(data_record.read(folder / "data.json"), record):
        place = f" in {config.data_root}" if config.dataset == "folder" else ""
        raise DataError(
            f"the images{place} are not those that the run {folder} was trained on: {fault}. Put those back, or train "
            "anew with --overwrite; evaluate takes other images by --images"
        )


def _load(config: Config, download: bool) -> tuple[Images, Record]:
    return loading.load_with_record(
        config.dataset,
        Path(config.data_root),
        image_size=config.image_size,
        color=config.color,
        binarize=config.binarize,
        seed=config.seed,
        download=download,
    )


def _settings(config: Config) -> dict[str, Any]:
    """The settings as they are read from a file: with lists for tuples."""
    return json.loads(json.dumps(config.to_json()))
