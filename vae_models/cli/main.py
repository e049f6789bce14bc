"""The command ``vae-models``."""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from vae_models.cli.errors import Failure
from vae_models.cli.study import reproduce
from vae_models.cli.trained import evaluate, sample
from vae_models.cli.training import compare, train

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (train, compare, evaluate, sample, reproduce):  # in the order of the help
    app.command()(_command)

# click's UsageError, which Typer gives no public name of its own; BadParameter derives from it.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0; 1 if training failed; 2 on bad input; 130 on Ctrl-C."""
    os.environ["MPLBACKEND"] = "agg"  # figures become files; what a notebook exports may not even import here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that a terminal can't show end no command
    try:
        code, message = app(arguments, prog_name="vae-models", standalone_mode=False) or 0, ""
    except _UsageError as error:
        code, message = 2, error.format_message()  # type: ignore[attr-defined]
    except Failure as error:
        code, message = error.code, str(error)
    except (KeyboardInterrupt, typer.Abort):
        code, message = 130, ""
    if code == 130:  # which some versions of Typer return
        message = "interrupted; what is finished is kept, and --resume, or reproduce again, goes on from there"
    if message:
        print(f"vae-models: {message}", file=sys.stderr)
    return code


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"vae-models {version('ar1-dist')}")
    except PackageNotFoundError as error:
        raise Failure("ar1-dist has no version: it is not installed, only in the path") from error
    raise typer.Exit


@app.callback()
def _vae_models(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Variational auto-encoders with Gaussian posteriors, the autoregressive one of the rho-VAE among them."""
