"""The study's ``results/``: a page of tables for every part and its figures, made of ``runs.csv`` and ``epochs.csv``
alone."""

import math
from pathlib import Path

from vae_models.files import FileError, reason, write_whole
from vae_models.results.figures import png
from vae_models.study import curves, tables
from vae_models.study.plan import PARTS
from vae_models.study.records import read_epochs, read_runs

__all__ = ["write_report"]

_NOTE = "<!-- Made by vae-models reproduce --report from runs.csv and epochs.csv; not edited by hand. -->\n\n"


def write_report(folder: Path) -> None:
    """Write the tables and figures of the study in a folder.

    Raises:
        FileError: if it has no finished run, if a file is damaged or can't be written.
    """
    rows, epochs = read_runs(folder), read_epochs(folder)
    if not rows:
        raise FileError(f"there is no finished run in {folder}")
    seconds: dict[str, float] = {}
    for epoch in epochs:
        seconds[epoch["run"]] = min(epoch["seconds"], seconds.get(epoch["run"], math.inf))
    rows = [{**row, "fastest_epoch": seconds.get(row["run"])} for row in rows]
    results = folder / "results"
    try:
        results.mkdir(exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {results}: {reason(error)}") from error
    texts = {
        "headline": tables.headline_table(rows),
        "status": tables.status_table(rows),
        "summary": tables.summary_tables(rows),
        "progress": tables.progress_table(rows, epochs),
    }
    for name, text in texts.items():
        write_whole(results / f"{name}.md", (_NOTE + text + "\n").encode())
    if tables.headline_settings(rows):
        write_whole(results / "headline.png", png(curves.headline(rows), dpi=110))
    for part in PARTS.values():
        page = _NOTE + tables.part_table(part, rows) + "\n"
        found = tables.settings(part, rows)
        drawn = {}
        if any(row["run"] in seconds for row in rows if row["part"] == part.name):
            drawn[f"{part.name}_loss.png"] = ("Validation loss by epoch.", curves.loss_curves(part, rows, epochs))
        if any(tables.BASELINE in variants and len(variants) > 1 for variants in found.values()):
            caption = "Differences from the diagonal posterior."
            drawn[f"{part.name}_differences.png"] = (caption, curves.differences(part, rows))
        for name, (caption, figure) in drawn.items():
            write_whole(results / name, png(figure, dpi=90))
            page += f"\n![{caption}]({name})\n"
        write_whole(results / f"{part.name}.md", page.encode())
