"""Files that are written whole or not at all, and read with one clear error."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["FileError", "read_json", "write_json", "write_whole"]


class FileError(ValueError):
    """A file or folder that is missing, damaged, not what was wanted, or can't be written. The message names it."""


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file's content in one step: a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        FileError: if it can't be written.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}") from error


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
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # not JSON, or not text
        raise FileError(f"{path} is damaged: {error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
