"""Files that are written whole or not at all, and read with one clear error."""

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = [
    "SOFTWARE",
    "DataError",
    "DataWarning",
    "FileError",
    "first_line",
    "is_number",
    "read_csv",
    "read_json",
    "reason",
    "write_csv",
    "write_json",
    "write_whole",
]

SOFTWARE = "vae_models"
"""By what the pictures that are written here say that they were made."""


class FileError(ValueError):
    """A file or folder that is missing, damaged, not what was wanted, or can't be written. The message names it."""


class DataError(FileError):
    """A data set that is unknown, missing, damaged, too small or too large, or not the one of a run."""


class DataWarning(UserWarning):
    """What is read of a data set is not what one may think."""


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file's content in one step: a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        FileError: if it can't be written, or is a device, a pipe or a folder, which would be replaced too.
    """
    try:
        if path.exists() and not path.is_file():
            raise FileError(f"cannot write {path}: it is there and is not a file")
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):  # an interrupt can come just after it got its name
                os.unlink(temporary)
            raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {reason(error)}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole. NaN and infinity, which JSON lacks, are a ValueError.

    Example:

        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder) / "numbers.json", {"kl": 22.3})
        ...     read_json(Path(folder) / "numbers.json")
        {'kl': 22.3}
    """
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileError: if it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(f"{path} does not exist") from None
    except OSError as error:
        raise FileError(f"cannot read {path}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not text, or nested a thousand times
        raise FileError(f"{path} is damaged: {reason(error)}") from error


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV below the names of the columns, whole. What a row lacks, and None, is an empty cell.

    Example:

        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_csv(Path(folder) / "rows.csv", ["epoch", "loss"], [{"epoch": 1, "loss": 2.5}, {"epoch": 2}])
        ...     read_csv(Path(folder) / "rows.csv", ["epoch", "loss"], lambda name, cell: float(cell or "nan"))
        [{'epoch': 1.0, 'loss': 2.5}, {'epoch': 2.0, 'loss': nan}]
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def read_csv(path: Path, columns: Sequence[str], value: Callable[[str, str], Any]) -> list[dict[str, Any]]:
    """Read the rows of a CSV file with these columns.

    Args:
        path (Path): the file.
        columns (sequence of str): what its first line has to be.
        value (callable): from the name of a column and a cell to what the cell stands for; a ValueError if to nothing.

    Raises:
        FileError: if it is missing or damaged.
    """
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
        if tuple(header) != tuple(columns):
            raise ValueError(f"its first line is not {','.join(columns)}")
        return [{name: value(name, cell) for name, cell in zip(columns, row, strict=True)} for row in rows]
    except FileNotFoundError:
        raise FileError(f"{path} does not exist") from None
    except (OSError, ValueError, csv.Error) as error:
        raise FileError(f"{path} is damaged: {reason(error)}") from error


def first_line(error: Warning | BaseException | str) -> str:
    """The first line of an error's text, without a colon at its end, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" :")


def reason(error: BaseException) -> str:
    """What an error says, on one line: never nothing, which would leave a message that ends at a colon."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def is_number(value: object) -> bool:
    """Whether a value that was read is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
