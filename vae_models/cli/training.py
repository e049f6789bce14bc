"""The commands ``train`` and ``compare``. Whatever is slow to import is imported by the command that needs it."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from vae_models.cli.errors import Failure, one_line_errors
from vae_models.cli.options import given, option, takes
from vae_models.cli.output import comparison_table, described, metrics_table, print_table, progress_lines
from vae_models.settings.comparisons import is_comparison, read_comparison, run_folder, write_comparison
from vae_models.settings.config import PRESETS, SETTINGS, Config, Hardware
from vae_models.settings.setting import settings_of
from vae_models.settings.sources import make_configs

if TYPE_CHECKING:
    from vae_models.training.runs import Run

__all__ = ["compare", "train"]

_HARDWARE = tuple(settings_of(Hardware))

# Options that both have beside the settings.
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
    with one_line_errors():
        _check_how(context)
        trained = (_resumed(context, out) if resume else None) or _one_config(context, posterior, config)
        with progress_lines() as progress:
            metrics = _run(trained, out, progress, context.params)
    if metrics is None:
        return
    print_table(metrics_table(described(trained), metrics))
    print(f"Wrote metrics.json, pictures, report.html and the model to {out}")


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
    with one_line_errors():
        from lightning.pytorch.callbacks import LambdaCallback

        from vae_models.results import writing
        from vae_models.training import runs
        from vae_models.training.locks import locked

        _check_how(context)
        if out.exists() and not out.is_dir():
            raise Failure(f"{out} is not a folder")
        configs = _resumed_comparison(context, out, posterior) if resume else None
        configs = configs or make_configs(given(context), posterior, config)
        folders = {label: run_folder(out, label) for label in configs}
        if runs.is_run(out) and not is_comparison(out):
            raise Failure(f"{out} holds a run, not a comparison: name another --out")
        if out.exists() and not (resume or overwrite) and any(path.name != ".lock" for path in out.iterdir()):
            raise Failure(f"{out} is not empty: --resume or --overwrite it, or name another --out")
        for folder in folders.values():
            if folder.is_symlink():
                raise Failure(f"{folder} is a link, to which nothing is written")
        begin = LambdaCallback(
            on_train_start=lambda it, _: write_comparison(out, configs) if it.is_global_zero else None
        )
        finished: dict[str, Run] = {}
        with progress_lines() as progress, locked(out) if runs.is_main_process() else nullcontext():
            for label, each in configs.items():
                if _run(each, folders[label], progress, context.params, begin, label=label) is None:
                    return
                finished[label] = runs.train(each, folders[label], resume=True)
            shared = next(iter(configs.values()))
            images = runs.load_images(shared, *folders.values())
            compared = writing.compare(out, finished, shared, images)
    print_table(comparison_table(described(shared), shared, len(images.test), compared))
    print(f"Wrote metrics.json, pictures and report.html to {out}")


def _check_how(context: typer.Context) -> None:
    if context.params["resume"] and context.params["overwrite"]:
        raise Failure("--resume, --overwrite: what is there is either resumed or overwritten")


def _resumed(context: typer.Context, folder: Path) -> Config | None:
    """The settings of the run in the folder, if no option but --epochs says anything of them."""
    from vae_models.training.runs import is_run, read_config

    said = given(context).keys()
    if not is_run(folder):
        raise Failure(f"{folder} holds no run to resume: leave out --resume to start one")
    if said - {"out", "resume", "epochs", "data_root", *_HARDWARE} or not (folder / "config.json").exists():
        return None  # runs.train sees that the options agree with the run
    config = read_config(folder)
    if "epochs" in said:
        config = dataclasses.replace(config, epochs=context.params["epochs"])
    if "data_root" in said:
        config = dataclasses.replace(config, data_root=str(context.params["data_root"]))
    if config.preset not in PRESETS:
        raise Failure(f"{folder} holds a run of the study ({config.preset}): vae-models reproduce goes on with it")
    return config


def _resumed_comparison(context: typer.Context, folder: Path, posteriors: Sequence[str]) -> dict[str, Config] | None:
    """The settings of the comparison in the folder, by label, if no option but --epochs says anything of them."""
    from vae_models.training.runs import is_run

    labels = {*SETTINGS["posterior"].choices, *posteriors}
    if not is_comparison(folder) and not any(is_run(run_folder(folder, label)) for label in labels):
        raise Failure(f"{folder} holds no comparison to resume: leave out --resume to start one")
    if given(context).keys() - {"out", "resume", "epochs", *_HARDWARE}:
        return None
    configs = read_comparison(folder)
    for config in configs.values():
        if config.preset not in PRESETS:
            raise Failure(f"{folder / 'config.json'} has preset = {config.preset!r}, which is none")
    if context.params["epochs"] is not None:
        configs = {label: dataclasses.replace(each, epochs=context.params["epochs"]) for label, each in configs.items()}
    return configs


def _one_config(context: typer.Context, posterior: str, file: Path | None) -> Config:
    """The settings of one run."""
    configs = make_configs(given(context), [posterior], file)
    if len(configs) > 1:
        raise Failure(f"{file} holds a comparison of {', '.join(configs)}: name one of them by --posterior")
    return next(iter(configs.values()))


def _run(
    config: Config, folder: Path, progress: Progress, options: Mapping[str, Any], *callbacks: Any, label: str = ""
) -> dict[str, Any] | None:
    """Train and finish a run. None in all processes but the first one."""
    from vae_models.training import runs
    from vae_models.training.locks import locked

    with locked(folder) if runs.is_main_process() else nullcontext():
        return _train_and_finish(config, folder, progress, options, callbacks, label or config.posterior)


def _train_and_finish(
    config: Config, folder: Path, progress: Progress, options: Mapping[str, Any], callbacks: Sequence[Any], label: str
) -> dict[str, Any] | None:
    from vae_models.results import writing
    from vae_models.training import runs
    from vae_models.training.progress import ProgressLine

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
    metrics = writing.finish(run, config)
    progress.update(task, epoch=f"epoch {metrics['epochs']}/{config.epochs}", total=1, completed=1)
    return metrics
