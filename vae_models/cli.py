"""The command ``vae-models``. Whatever is slow to import is imported by the command that needs it."""

import dataclasses
import io
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vae_models.config import PRESETS, SETTINGS, Config, Hardware
from vae_models.files import first_line, reason
from vae_models.options import given, option, takes
from vae_models.settings import settings_of
from vae_models.sources import make_configs

if TYPE_CHECKING:
    from vae_models.runs import Run
    from vae_models.study.plan import StudyRun

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# click's UsageError, which Typer gives no public name of its own; BadParameter derives from it.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

# A rule under the header, in characters that every encoding has.
_RULED = box.Box(str(box.SIMPLE_HEAD).replace("─", "-"), ascii=True)


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
    except _Failure as error:
        code, message = error.code, str(error)
    except (KeyboardInterrupt, typer.Abort):
        code, message = 130, ""
    if code == 130:  # which some versions of Typer return
        message = "interrupted; what is finished is kept, and --resume, or reproduce again, goes on from there"
    if message:
        print(f"vae-models: {message}", file=sys.stderr)
    return code


class _Failure(Exception):
    """What ends the command with one line and an exit code."""

    def __init__(self, message: object, code: int = 2) -> None:
        said = reason(message) if isinstance(message, BaseException) else " ".join(str(message).split())
        super().__init__(said)
        self.code = code


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn the errors that a user can mend, or must know of, into one line each."""
    try:
        import vae_models.results  # noqa: F401
    except (ImportError, RuntimeError) as error:
        # Lightning imports torchvision where it is installed, and that fails beside a torch it was not built for.
        raise _Failure(
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
        raise _Failure(error, code=1) from error
    except (ValueError, MisconfigurationException) as error:  # FileError and DataError among them
        raise _Failure(error) from error
    except OSError as error:
        raise _Failure(f"{error.filename or 'the system says'}: {reason(error)}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise _Failure(f"there is not enough memory: {first_line(error)}") from error


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"vae-models {version('ar1-dist')}")
    except PackageNotFoundError as error:
        raise _Failure("ar1-dist has no version: it is not installed, only in the path") from error
    raise typer.Exit


@app.callback()
def _vae_models(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Variational auto-encoders with Gaussian posteriors, the autoregressive one of the rho-VAE among them."""


# --- Options that train and compare share. Those of settings are made of the settings. ---

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="JSON file of settings, such as the config.json of a run. Options on the command line override it.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last finished epoch of what is in --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in --out.")]

_OWN = "Its own options may follow it, as in low_rank:rank=2."


@app.command()
@takes(Config, Hardware)
def train(
    context: typer.Context,
    posterior: Annotated[str, option(SETTINGS["posterior"], _OWN)] = Config.posterior,
    *,
    config: ConfigFile = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/train"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Train a VAE, evaluate it on the test images, and write numbers, pictures and report.html.

    The defaults are the vanilla VAE of arXiv:1909.06236 with its autoregressive posterior, on digits. A run that was
    stopped or killed goes on with --resume, which needs no other option but --out.
    """
    with _one_line_errors():
        _check_how(context)
        trained = (_resumed(context, out) if resume else None) or _one_config(context, posterior, config)
        with _progress() as progress:
            metrics = _run(trained, out, progress, context.params)
    if metrics is None:
        return
    _print_table(_metrics_table(_described(trained), metrics))
    print(f"Wrote metrics.json, pictures, report.html and the model to {out}")


@app.command()
@takes(Config, Hardware)
def compare(
    context: typer.Context,
    posterior: Annotated[list[str], option(SETTINGS["posterior"], f"May be given more than once. {_OWN}")] = [  # noqa: B006 (Typer shows it, and nothing changes it)
        "diagonal",
        "ar1",
        "markov",
    ],
    *,
    config: ConfigFile = None,
    out: Annotated[Path, typer.Option(help="Folder of the comparison, with a run for every posterior in it.")] = Path(
        "runs/compare"
    ),
    resume: Resume = False,
    overwrite: Overwrite = False,
    **settings: Any,
) -> None:
    """Train the same VAE once with every posterior and compare them on the test images.

    Prints a table and writes metrics.json, pictures and report.html, beside a folder for every posterior's run.
    """
    with _one_line_errors():
        from lightning.pytorch.callbacks import LambdaCallback

        from vae_models import results, runs
        from vae_models.comparisons import is_comparison, run_folder, write_comparison
        from vae_models.locks import locked

        _check_how(context)
        if out.exists() and not out.is_dir():
            raise _Failure(f"{out} is not a folder")
        configs = _resumed_comparison(context, out, posterior) if resume else None
        configs = configs or make_configs(given(context), posterior, config)
        folders = {label: run_folder(out, label) for label in configs}
        if runs.is_run(out) and not is_comparison(out):
            raise _Failure(f"{out} holds a run, not a comparison: name another --out")
        if out.exists() and not (resume or overwrite) and any(path.name != ".lock" for path in out.iterdir()):
            raise _Failure(f"{out} is not empty: --resume or --overwrite it, or name another --out")
        for folder in folders.values():
            if folder.is_symlink():
                raise _Failure(f"{folder} is a link, to which nothing is written")
        begin = LambdaCallback(
            on_train_start=lambda it, _: write_comparison(out, configs) if it.is_global_zero else None
        )
        finished: dict[str, Run] = {}
        with _progress() as progress, locked(out) if runs.is_main_process() else nullcontext():
            for label, each in configs.items():
                if _run(each, folders[label], progress, context.params, begin, label=label) is None:
                    return
                finished[label] = runs.train(each, folders[label], resume=True)
            shared = next(iter(configs.values()))
            images = runs.load_images(shared, *folders.values())
            compared = results.compare(out, finished, shared, images)
    _print_table(_comparison_table(_described(shared), shared, len(images.test), compared))
    print(f"Wrote metrics.json, pictures and report.html to {out}")


@app.command()
def evaluate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    split: Annotated[str, typer.Option(help="The run's images to evaluate on: train, validation or test.")] = "test",
    images: Annotated[
        Path | None, typer.Option(help="Evaluate on all images in this folder instead, which are read like the run's.")
    ] = None,
    importance_samples: Annotated[int, option(SETTINGS["importance_samples"])] = 100,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the noise.")] = 0,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the run's data set lies now.", show_default="where it was")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write the metrics to, as JSON.")] = None,
) -> None:
    """Evaluate the model of a run, on its own test images if nothing else is said. The run is not changed."""
    with _one_line_errors():
        import torch

        from vae_models import evaluation
        from vae_models.files import write_json
        from vae_models.runs import load_images, load_other_images, output, read_config
        from vae_models.vae import VAE

        clash = given(context).keys() & {"split", "data_root"}
        if images is not None and clash:
            option = min(clash).replace("_", "-")
            raise _Failure(f"--{option} is about the run's own images, and --images names others: give one of the two")
        if split not in ("train", "validation", "test"):
            raise _Failure(f"unknown split {split!r}; choose from train, validation, test")
        config, vae = read_config(folder), VAE.from_pretrained(folder)
        if data_root is not None:
            config = dataclasses.replace(config, data_root=str(data_root))
        if out is not None:
            output(out, folder, config, ".json")
        if images is None:
            of: dict[str, Any] = {"split": split}
            values = getattr(load_images(config, folder), split)
        else:
            values, seen = load_other_images(config, vae, folder, images)
            of = {"images": str(images), "seen_in_training": seen}
        torch.manual_seed(seed)
        metrics = evaluation.evaluate(vae, values, num_samples=importance_samples)
        if out is not None:
            write_json(out, {**metrics, **of})
    which = f"{split} images" if images is None else "other images"
    _print_table(_metrics_table(f"{_described(config)}, {which}", metrics))
    if images is not None:
        known = f", of which the run saw {seen:,} in its training" if seen else ""
        print(f"Evaluated on all {len(values):,} images in {_printable(images)}{known}")


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    num: Annotated[int, typer.Option(min=1, help="Number of images.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the latent vectors.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("samples.png"),
) -> None:
    """Draw images from the model of a run and write them as one picture."""
    with _one_line_errors():
        import torch

        from vae_models import figures
        from vae_models.files import write_whole
        from vae_models.runs import output, read_config
        from vae_models.vae import VAE

        config, vae = read_config(folder), VAE.from_pretrained(folder)
        output(out, folder, config, ".png")
        torch.manual_seed(seed)
        figure = figures.samples({config.posterior: vae.sample(num)}, title=f"Samples from the prior: {config.dataset}")
        write_whole(out, figures.png(figure))
    print(f"Wrote {out}")


@app.command()
def reproduce(
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Part of the study: vanilla, published, ablation, binary, literature, cnn, beta or info, or one that "
            "--list shows. May be given more than once, like the next three.",
            show_default="all",
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="mnist, fashion-mnist, or digits for a quick run.", show_default="mnist and fashion-mnist"),
    ] = None,
    posterior: Annotated[list[str] | None, typer.Option(help=SETTINGS["posterior"].help, show_default="all")] = None,
    latent_dim: Annotated[list[int] | None, typer.Option(help=SETTINGS["latent_dim"].help, show_default="all")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.", show_default="the part's")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of every run.", show_default="the part's")] = None,
    data_root: Annotated[Path, option(SETTINGS["data_root"])] = Path("data"),
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/study"),
    list_: Annotated[bool, typer.Option("--list", help="Show the runs and which are done, and run nothing.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write tables and figures anew, and run nothing.")] = False,
    accelerator: Annotated[str, option(settings_of(Hardware)["accelerator"])] = "auto",
) -> None:
    """Run the study of the paper's comparisons (docs/study), or what is left of it.

    A finished run is a row of runs.csv in --out and is not run again; one that was stopped or killed goes on from its
    last finished epoch. The same command may run several times side by side: no two take the same run, and what another
    one is at is left to it. At the end come tables and figures, in the folder results of --out.
    """
    with _one_line_errors():
        from vae_models.study import plan, records

        wanted = plan.plan(
            only or (),
            datasets=dataset or (),
            posteriors=posterior or (),
            latent_dims=latent_dim or (),
            seeds=seeds,
            epochs=epochs,
        )
        if list_:
            done = records.finished(out)
            for run in wanted:
                print(f"{'done' if run.name in done else 'open'}  {run.part}  {run.name}")
        failed = [] if report or list_ else _study(wanted, out, data_root, accelerator)
        done = records.finished(out)
        if not report:
            print(f"{sum(run.name in done for run in wanted)} of {len(wanted)} runs are done in {out}")
        if report or (done and not list_):
            from vae_models.study.report import write_report

            write_report(out)
            print(f"Wrote tables and figures to {out / 'results'}")
    if failed:
        raise _Failure(f"{len(failed)} of {len(wanted)} runs failed: {', '.join(failed)}", code=1)


def _study(wanted: "Sequence[StudyRun]", out: Path, data_root: Path, accelerator: str) -> list[str]:
    """Do what is left to do, and return the names of what failed."""
    from vae_models.progress import ProgressLine
    from vae_models.study import records
    from vae_models.study.running import execute

    failed = []
    with _progress() as progress:
        for i, run in enumerate(wanted):
            if run.name in records.finished(out):
                continue
            task = progress.add_task(f"{i + 1}/{len(wanted)} {run.name}", start=False, epoch="", loss="")
            line = ProgressLine(progress, task)
            try:
                row = execute(
                    run, out, data_root, on_evaluation=line.evaluating, callbacks=[line], accelerator=accelerator
                )
            except FloatingPointError as error:
                failed.append(run.name)
                progress.console.print(f"{run.name} failed: {error}", soft_wrap=True, highlight=False, markup=False)
            else:
                if row is not None:
                    progress.console.print(
                        f"{i + 1}/{len(wanted)} {run.name}: negative ELBO {row['negative_elbo']:.2f}, "
                        f"NLL {row['nll']:.2f}, trained for {row['seconds']:.0f} s",
                        soft_wrap=True,
                        highlight=False,
                        markup=False,
                    )
            progress.remove_task(task)
    return failed


_HARDWARE = tuple(settings_of(Hardware))


def _check_how(context: typer.Context) -> None:
    if context.params["resume"] and context.params["overwrite"]:
        raise _Failure("--resume, --overwrite: what is there is either resumed or overwritten")


def _resumed(context: typer.Context, folder: Path) -> Config | None:
    """The settings of the run in the folder, if no option but --epochs says anything of them."""
    from vae_models.runs import is_run, read_config

    said = given(context).keys()
    if not is_run(folder):
        raise _Failure(f"{folder} holds no run to resume: leave out --resume to start one")
    if said - {"out", "resume", "epochs", "data_root", *_HARDWARE} or not (folder / "config.json").exists():
        return None  # runs.train sees that the options agree with the run
    config = read_config(folder)
    if "epochs" in said:
        config = dataclasses.replace(config, epochs=context.params["epochs"])
    if "data_root" in said:
        config = dataclasses.replace(config, data_root=str(context.params["data_root"]))
    if config.preset not in PRESETS:
        raise _Failure(f"{folder} holds a run of the study ({config.preset}): vae-models reproduce goes on with it")
    return config


def _resumed_comparison(context: typer.Context, folder: Path, posteriors: Sequence[str]) -> dict[str, Config] | None:
    """The settings of the comparison in the folder, by label, if no option but --epochs says anything of them."""
    from vae_models.comparisons import is_comparison, read_comparison, run_folder
    from vae_models.runs import is_run

    labels = {*SETTINGS["posterior"].choices, *posteriors}
    if not is_comparison(folder) and not any(is_run(run_folder(folder, label)) for label in labels):
        raise _Failure(f"{folder} holds no comparison to resume: leave out --resume to start one")
    if given(context).keys() - {"out", "resume", "epochs", *_HARDWARE}:
        return None
    configs = read_comparison(folder)
    for config in configs.values():
        if config.preset not in PRESETS:
            raise _Failure(f"{folder / 'config.json'} has preset = {config.preset!r}, which is none")
    if context.params["epochs"] is not None:
        configs = {label: dataclasses.replace(each, epochs=context.params["epochs"]) for label, each in configs.items()}
    return configs


def _one_config(context: typer.Context, posterior: str, file: Path | None) -> Config:
    """The settings of one run."""
    configs = make_configs(given(context), [posterior], file)
    if len(configs) > 1:
        raise _Failure(f"{file} holds a comparison of {', '.join(configs)}: name one of them by --posterior")
    return next(iter(configs.values()))


def _run(
    config: Config, folder: Path, progress: Progress, options: Mapping[str, Any], *callbacks: Any, label: str = ""
) -> dict[str, Any] | None:
    """Train and finish a run. None in all processes but the first one."""
    from vae_models import runs
    from vae_models.locks import locked

    with locked(folder) if runs.is_main_process() else nullcontext():
        return _train_and_finish(config, folder, progress, options, callbacks, label or config.posterior)


def _train_and_finish(
    config: Config, folder: Path, progress: Progress, options: Mapping[str, Any], callbacks: Sequence[Any], label: str
) -> dict[str, Any] | None:
    from vae_models import results, runs
    from vae_models.progress import ProgressLine

    task = progress.add_task(label, start=False, epoch="", loss="")
    hardware = {name: options[name] for name in _HARDWARE}
    line = ProgressLine(progress, task)
    resume, overwrite = options["resume"], options["overwrite"]
    try:
        run = runs.train(config, folder, resume=resume, overwrite=overwrite, callbacks=[line, *callbacks], **hardware)
    except FloatingPointError as error:
        raise FloatingPointError(f"training with posterior {label!r} failed: {error}") from error
    if not runs.is_main_process():
        return None
    if not run.finished:
        line.evaluating()
    metrics = results.finish(run, config)
    progress.update(task, epoch=f"epoch {metrics['epochs']}/{config.epochs}", total=1, completed=1)
    return metrics


@contextmanager
def _progress() -> Iterator[Progress]:
    """A line for every run that trains. It is stopped here, and started by the first of them."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[epoch]}"),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
    )
    try:
        yield progress
    finally:
        if progress.live.is_started:
            progress.stop()


def _printable(path: Path) -> str:
    """A path without the bytes that are no UTF-8, which can't be printed."""
    return str(path).encode(errors="backslashreplace").decode()


def _described(config: Config) -> str:
    return f"{config.dataset}, {config.preset} preset, {config.latent_dim} latents, at most {config.epochs} epochs"


_HEADINGS = {
    "negative_elbo": "negative ELBO (nats per image)",
    "reconstruction": "reconstruction, or distortion",
    "kl": "KL, or rate",
    "nll": "importance-weighted NLL",
    "gap": "gap between the two bounds",
    "effective_sample_size": "effective importance samples",
    "total_correlation": "total correlation of the posterior",
    "mean_abs_rho": "mean |rho|",
    "active_units": "active units",
    "num_images": "images",
    "num_samples": "importance samples per image",
}


def _print_table(table: Table) -> None:
    """Print a table in lines as long as its numbers need, if the terminal's are shorter: none is cut."""
    console = Console()
    unlimited = console.options.update(max_width=10_000)
    console.width = max(console.width, Measurement.get(console, unlimited, table).minimum)
    console.print(table)


def _metrics_table(title: str, metrics: Mapping[str, Any]) -> Table:
    """The final metrics of one VAE, a row each."""
    table = Table(title=Text(title), box=_RULED, show_edge=False)
    table.add_column("figure", overflow="fold")
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("standard\nerror", justify="right", no_wrap=True)
    for name, heading in _HEADINGS.items():
        value, error = metrics[name], metrics.get(f"{name}_se")
        if value is not None:
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
            table.add_row(heading, shown, "" if error is None else f"{error:.3f}")
    return table


def _comparison_table(title: str, config: Config, num_images: int, results: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row per posterior, within 60 columns if no number is long: standard errors stand below the means."""
    table = Table(
        title=Text(title),
        caption=f"Nats per image; in brackets, standard errors over the {num_images:,} test images. "
        f"NLL: importance-weighted bound with {config.importance_samples:,} samples.",
        box=_RULED,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    table.add_column("posterior", no_wrap=True)
    for header in ("head\nparams", "negative\nELBO", "recon-\nstruction", "KL", "NLL", "mean\n|rho|", "s per\nepoch"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, result in results.items():
        rho = result["mean_abs_rho"]
        table.add_row(
            name,
            f"{result['head_parameters']:,}",
            f"{result['negative_elbo']:.2f}\n({result['negative_elbo_se']:.2f})",
            f"{result['reconstruction']:.2f}",
            f"{result['kl']:.2f}",
            f"{result['nll']:.2f}\n({result['nll_se']:.2f})",
            "-" if rho is None else f"{rho:.3f}",
            f"{result['seconds_per_epoch']:.2f}",
        )
    return table
