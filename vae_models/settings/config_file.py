"""The file ``config.json`` of a run, of a comparison and of a saved VAE: an object that says in which format it is."""

from pathlib import Path
from typing import Any

from vae_models.files import FileError, read_json, write_json

__all__ = ["FORMAT", "read_config_file", "write_config_file"]

FORMAT = 2
"""What the settings and weights mean. In format 1, which was without a number, the factors of ``low_rank`` and ``full``
were not relative to the scales of the latents."""

_PARTS = {"run", "vae", "comparison"}


def read_config_file(path: Path) -> Any:
    """The content of a JSON file, which need not be such an object.

    Raises:
        FileError: if it is missing or damaged, or such an object in another format.
    """
    value = read_json(path)
    if isinstance(value, dict) and value.keys() & _PARTS:
        found = value.get("format", 1)
        if found != FORMAT:
            raise FileError(
                f"{path} is of another version of vae_models, in format {found!r} where this one has {FORMAT}: what "
                "was trained with that is to be trained anew (--overwrite replaces it)"
            )
    return value


def write_config_file(path: Path, value: dict[str, Any]) -> None:
    """Write such an object, whole."""
    write_json(path, {"format": FORMAT, **value})
