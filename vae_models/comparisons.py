"""What the folder of a comparison holds beside its runs: a ``config.json`` with the settings of each, by the names of
their folders, which are those of the posteriors."""

from collections.abc import Mapping
from pathlib import Path

from vae_models.config import Config
from vae_models.files import FileError, read_json, reason, write_json
from vae_models.posteriors import POSTERIORS

__all__ = ["check_no_comparison", "is_comparison", "read_comparison", "write_comparison"]

_COMPARISON = "comparison"


def is_comparison(folder: Path) -> bool:
    """Whether a folder is that of a comparison, and not of a run; of a damaged one nobody knows, and it is not."""
    try:
        value = read_json(folder / "config.json")
    except FileError:
        return False
    return isinstance(value, dict) and _COMPARISON in value


def check_no_comparison(folder: Path) -> None:
    """See that a folder, where a run is wanted, is not that of a comparison.

    Raises:
        FileError: if it is. The message names the runs in it.
    """
    if is_comparison(folder):
        names = list(read_comparison(folder))
        raise FileError(
            f"{folder} holds a comparison of the runs {', '.join(names)}, not a run: name one of them, such as "
            f"{folder / names[0]}"
        )


def write_comparison(folder: Path, configs: Mapping[str, Config]) -> None:
    """Write which runs are compared in a folder, by the names of their own folders in it."""
    write_json(folder / "config.json", {_COMPARISON: {name: config.to_json() for name, config in configs.items()}})


def read_comparison(folder: Path) -> dict[str, Config]:
    """What :func:`write_comparison` wrote.

    Raises:
        FileError: if it is missing, damaged or something else.
    """
    path = folder / "config.json"
    value = read_json(path)
    stored = value.get(_COMPARISON) if isinstance(value, dict) else None
    if not isinstance(stored, dict) or not stored or not all(isinstance(each, dict) for each in stored.values()):
        raise FileError(f"{path} does not hold a comparison")
    try:
        configs = {name: Config.from_json(each) for name, each in stored.items()}
    except (TypeError, ValueError) as error:
        raise FileError(f"{path} does not hold a comparison: {reason(error)}") from error
    if not all(name in POSTERIORS and config.posterior == name for name, config in configs.items()):
        raise FileError(f"{path} does not hold a comparison of posteriors")
    return configs
