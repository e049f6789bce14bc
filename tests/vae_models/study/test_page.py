"""The study's page: its tables are those of its rows, and the rows are those of the plan."""

import statistics
from pathlib import Path

from vae_models.study import records
from vae_models.study.plan import PARTS, plan
from vae_models.study.report import write_report

STUDY = Path(__file__).parents[3] / "docs" / "study"
ROWS = records.read_runs(STUDY)
EPOCHS = records.read_epochs(STUDY)


def test_tables_are_those_of_the_rows(tmp_path):
    for name in ("runs.csv", "epochs.csv"):
        (tmp_path / name).write_bytes((STUDY / name).read_bytes())
    write_report(tmp_path)
    made, shown = (
        {path.name: path.read_text(encoding="utf-8") for path in (folder / "results").glob("*.md")}
        for folder in (tmp_path, STUDY)
    )
    assert made == shown


def test_rows_are_of_the_plan():
    names = [row["run"] for row in ROWS]
    assert len(set(names)) == len(names)
    assert set(names) <= {run.name for run in plan()}


def test_every_epoch_has_a_row():
    """But for runs that evaluate what another one trained."""
    trained = {run.name: run.epochs for run in plan() if run.trained == run}
    counts = dict.fromkeys((row["run"] for row in ROWS if row["run"] in trained), 0)
    for row in EPOCHS:
        counts[row["run"]] += 1
    assert counts == {name: trained[name] for name in counts}


def test_the_page_shows_every_part():
    page = (STUDY / "index.md").read_text(encoding="utf-8")
    for name in (*PARTS, "status", "summary", "progress"):
        assert f"{{include}} results/{name}.md" in page


def test_nothing_had_converged_after_fifteen_epochs():
    """As the page says: the plateau never came, the last epoch was the best, and the loss was still falling."""
    short = [row for row in ROWS if row["epochs"] == 15 and row["preset"] == "vanilla"]
    names = {row["run"] for row in short}
    assert {row["learning_rate"] for row in EPOCHS if row["run"] in names} == {0.001}
    assert sum(row["best_epoch"] == 15 for row in short) / len(short) > 0.9
    losses = {(row["run"], row["epoch"]): row["validation_loss"] for row in EPOCHS}
    elbos = [row["run"] for row in short if not row["change"]]
    assert 0.4 < statistics.fmean(losses[name, 13] - losses[name, 15] for name in elbos) < 0.7
