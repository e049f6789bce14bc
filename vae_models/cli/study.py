"""The command ``reproduce``. Whatever is slow to import is imported by it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vae_models.cli.errors import Failure, one_line_errors
from vae_models.cli.options import option
from vae_models.cli.output import progress_lines
from vae_models.settings.config import SETTINGS, Hardware
from vae_models.settings.setting import settings_of

if TYPE_CHECKING:
    from vae_models.study.plan import StudyRun

__all__ = ["reproduce"]


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
    with one_line_errors():
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
        raise Failure(f"{len(failed)} of {len(wanted)} runs failed: {', '.join(failed)}", code=1)


def _study(wanted: "Sequence[StudyRun]", out: Path, data_root: Path, accelerator: str) -> list[str]:
    """Do what is left to do, and return the names of what failed."""
    from vae_models.study import records
    from vae_models.study.running import execute
    from vae_models.training.progress import ProgressLine

    failed = []
    with progress_lines() as progress:
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
