"""One process at a time in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vae_models.files import FileError, reason

__all__ = ["InUseError", "locked"]

_NAME = ".lock"


class InUseError(FileError):
    """Another process has the folder. The message names both."""


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Within it the folder is there, and no other process has it. It can be nested. The system takes the lock from a
    process that ends, however it does. After an error the folders that were made for it are removed again, if nothing
    was written to them.

    Example:

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder) / "run"):
        ...     sorted(path.name for path in (Path(folder) / "run").iterdir())
        ['.lock']

    Args:
        folder (Path): which. The lock is the file ``.lock`` in it, which stays there.
        wait (bool): for the other process to end.

    Raises:
        InUseError: if another process has it, without ``wait``.
        FileError: if the folder can't be made or written to.
    """
    made: list[Path] = []
    path = folder.absolute() / _NAME
    new = not os.path.exists(path)
    try:
        lock = _acquire(folder, path, made, wait)
        try:
            yield
        except BaseException:
            if new and not wait:
                path.unlink(missing_ok=True)
            raise
        finally:
            lock.release()
    except BaseException:
        with suppress(OSError):  # there is something in it
            for each in made:
                each.rmdir()
        raise


def _acquire(folder: Path, path: Path, made: list[Path], wait: bool) -> FileLock:
    try:
        if folder.exists() and not folder.is_dir():
            raise FileError(f"{folder} is not a folder")
        for each in (*reversed(folder.parents), folder):
            if not each.is_dir():
                each.mkdir(exist_ok=True)
                made.insert(0, each)
        if path.is_symlink():
            raise FileError(f"{folder / _NAME} is a link, to which nothing is written")
        holder = _holder(path)  # before the attempt: some versions of the library empty the file
        lock = FileLock(path, is_singleton=True)
        lock.acquire(blocking=wait)
    except Timeout:
        raise InUseError(f"{folder} is in use by {holder or 'another process'}") from None
    except (OSError, NotImplementedError) as error:
        raise FileError(f"cannot write to the folder {folder}, or lock it: {reason(error)}") from error
    with suppress(OSError):  # some systems let no one write to a file that is locked
        path.write_text(f"{os.getpid()}\n")
    return lock


def _holder(path: Path) -> str:
    """The process that has written to the lock, if that can be read."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return f"process {text}" if text.isdecimal() else ""
