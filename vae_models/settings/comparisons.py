"""What the folder of a comparison holds beside its runs: a ``config.json`` with the settings of each, by its label, the
posterior with what was said of its options. The names of the folders are made of the labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vae_models.files import FileError, read_json, reason
from vae_models.settings.choices import Choice
from vae_models.settings.config import Config
from vae_models.settings.config_file import read_config_file, write_config_file

__all__ = [
    "check_no_comparison",
    "holds_comparison",
    "is_comparison",
    "read_comparison",
    "read_runs",
    "run_folder",
    "write_comparison",
]

_COMPARISON = "comparison"


def run_folder(folder: Path, label: str) -> Path:
    """The folder of the run of that label in a comparison."""
    return folder / Choice.parse(label).folder


def is_comparison(folder: Path) -> bool:
    """Whether a folder is that of a comparison, and not of a run; of a damaged one nobody knows, and it is not."""
    try:
        return holds_comparison(read_json(folder / "config.json"))
    except FileError:
        return False


def holds_comparison(value: Any) -> bool:
    """Whether the content of a JSON file is that of the ``config.json`` of a comparison."""
    return isinstance(value, dict) and _COMPARISON in value


def check_no_comparison(folder: Path) -> None:
    """See that a folder, where a run is wanted, is not that of a comparison.

    Raises:
        FileError: if it is. The message names the runs in it.
    """
    if is_comparison(folder):
        labels = list(read_comparison(folder))
        raise FileError(
            f"{folder} holds a comparison of the runs {', '.join(labels)}, not a run: name one of them, such as "
            f"{run_folder(folder, labels[0])}"
        )


def write_comparison(folder: Path, configs: Mapping[str, Config]) -> None:
    """Write which runs are compared in a folder, by their labels."""
    settings = {label: config.to_json() for label, config in configs.items()}
    write_config_file(folder / "config.json", {_COMPARISON: settings})


def read_comparison(folder: Path) -> dict[str, Config]:
    """What :func:`write_comparison` wrote to a folder.

    Raises:
        FileError: if it is missing, damaged or something else.
    """
    return read_runs(folder / "config.json")


def read_runs(path: Path) -> dict[str, Config]:
    """The settings of the runs, by their labels, in the ``config.json`` of a comparison.

    Raises:
        FileError: if it is missing, damaged or something else.
    """
    value = read_config_file(path)
    stored = value.get(_COMPARISON) if isinstance(value, dict) else None
    if not isinstance(stored, dict) or not stored or not all(isinstance(each, dict) for each in stored.values()):
        raise FileError(f"{path} does not hold a comparison")
    try:
        configs = {label: Config.from_json(each) for label, each in stored.items()}
    except (TypeError, ValueError) as error:
        raise FileError(f"{path} does not hold a comparison: {reason(error)}") from error
    if not all(_is_label(label, config) for label, config in configs.items()):
        raise FileError(f"{path} does not hold a comparison of posteriors")
    return configs


def _is_label(label: str, config: Config) -> bool:
    """Whether a label that was read, of which the name of a folder is made, is one of these settings."""
    try:
        choice = Choice.parse(label)
    except ValueError:
        return False
    said = {name: config.posterior_options.get(name) for name in choice.options}
    return (choice.label, choice.posterior, choice.options) == (label, config.posterior, said)
