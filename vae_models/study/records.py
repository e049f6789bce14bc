"""The study's rows: ``runs.csv``, one for every finished run, and ``epochs.csv``, one for every epoch of them.

The bounds and divergences are in nats per image. Of a run of the reference's objective (``walk`` or ``rho``) the
losses of ``epochs.csv`` are those that it prints, and ``validation_kl`` is what it takes for the divergence.

Both files are replaced whole. A run is finished when ``runs.csv`` has its row; its epochs are written before that.
Several processes may write to one folder: each waits for its lock.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vae_models.files import read_csv, write_csv
from vae_models.training import locks

__all__ = ["EPOCH_COLUMNS", "RUN_COLUMNS", "append", "finished", "locked", "read_epochs", "read_runs"]

# What a run is.
_IDENTITY = (
    "run",
    "part",
    "preset",
    "dataset",
    "binarize",
    "likelihood",
    "posterior",
    "rank",
    "order",
    "change",
    "latent_dim",
    "seed",
    "epochs",
)
_TEXT = {"run", "part", "preset", "dataset", "binarize", "likelihood", "posterior", "change", "torch"}
_WHOLE = {"rank", "order", "latent_dim", "seed", "epochs", "epoch", "epochs_trained", "best_epoch", "active_units"}
_WHOLE |= {"num_images", "num_samples", "head_parameters"}

RUN_COLUMNS = (
    *_IDENTITY,
    "epochs_trained",
    "best_epoch",
    "printed_loss",
    "negative_elbo",
    "reconstruction",
    "kl",
    "nll",
    "effective_sample_size",
    "gap",
    "total_correlation",
    "mean_abs_rho",
    "active_units",
    "num_images",
    "num_samples",
    "head_parameters",
    "seconds",
    "seconds_per_epoch",
    "torch",
)
EPOCH_COLUMNS = (
    "run",
    "epoch",
    "train_loss",
    "validation_loss",
    "validation_reconstruction",
    "validation_kl",
    "learning_rate",
    "seconds",
)


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``runs.csv``, in the order in which they were written; none if there is no such file. An empty cell
    is None.

    Raises:
        FileError: if it is damaged.
    """
    return _read(folder / "runs.csv", RUN_COLUMNS)


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``epochs.csv``, as :func:`read_runs` gives those of the other."""
    return _read(folder / "epochs.csv", EPOCH_COLUMNS)


def finished(folder: Path) -> set[str]:
    """The names of the runs that have a row."""
    return {row["run"] for row in read_runs(folder)}


def append(folder: Path, row: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]) -> None:
    """Add a finished run and its epochs; nothing, if it has a row.

    Raises:
        FileError: if a file is damaged or can't be written.
    """
    with locked(folder):
        runs = read_runs(folder)
        if row["run"] in {each["run"] for each in runs}:
            return
        others = [each for each in read_epochs(folder) if each["run"] != row["run"]]  # a kill in between leaves them
        write_csv(folder / "epochs.csv", EPOCH_COLUMNS, [*others, *({**each, "run": row["run"]} for each in epochs)])
        write_csv(folder / "runs.csv", RUN_COLUMNS, [*runs, row])


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Within it no other process has the folder's lock. Without ``wait``, False if another one has it.

    Raises:
        FileError: if the folder can't be written to.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.locked(folder, wait=wait))
            mine = True
        except locks.InUseError:
            mine = False
        yield mine


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    return read_csv(path, columns, _value) if path.exists() else []


def _value(name: str, cell: str) -> Any:
    if name in _TEXT:
        return cell
    if not cell:
        return None
    return int(cell) if name in _WHOLE else float(cell)
