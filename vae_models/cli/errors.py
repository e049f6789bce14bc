"""How a command ends that can't be done: in one line and an exit code."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vae_models.files import first_line, reason

__all__ = ["Failure", "one_line_errors"]


class Failure(Exception):
    """What ends the command with one line and an exit code."""

    def __init__(self, message: object, code: int = 2) -> None:
        said = reason(message) if isinstance(message, BaseException) else " ".join(str(message).split())
        super().__init__(said)
        self.code = code


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors that a user can mend, or must know of, into one line each."""
    try:
        import vae_models.results.writing  # noqa: F401
    except (ImportError, RuntimeError) as error:
        # Lightning imports torchvision where it is installed, and that fails beside a torch it was not built for.
        raise Failure(
            f"a library does not import ({error}); install what belongs together, in a clone of the repository: "
            "pip install --upgrade '.[vae]' torch torchvision"
        ) from error
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    said = set()

    def say(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in said:  # every run of a comparison reads the same images
            print(f"vae-models: {' '.join(str(message).split())}", file=sys.stderr)
        said.add(str(message))

    try:
        with warnings.catch_warnings():
            warnings.showwarning = say
            yield
    except FloatingPointError as error:
        raise Failure(error, code=1) from error
    except (ValueError, MisconfigurationException) as error:  # FileError and DataError among them
        raise Failure(error) from error
    except OSError as error:
        raise Failure(f"{error.filename or 'the system says'}: {reason(error)}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise Failure(f"there is not enough memory: {first_line(error)}") from error
