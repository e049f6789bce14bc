"""The benchmarks of docs/performance.md run, once and at small sizes."""

import json
import os
from pathlib import Path

import pytest
import torch

from ar1_dist import set_kernels

pytest.importorskip("matplotlib")
pytest.importorskip("pytest_benchmark")
ROOT = Path(__file__).parents[1]
SHAPE = (1, 4)


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    """Benchmarks import each other from their folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield
    set_kernels("auto")


def test_tables_and_figure(tmp_path, monkeypatch):
    import operations
    import performance

    file = tmp_path / "report.json"
    options = ["--shapes", "1x4", "--benchmark-max-time=0", "--benchmark-quiet", f"--benchmark-json={file}"]
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)  # beside other processes nothing is timed
    assert pytest.main([str(ROOT / "benchmarks"), "--rootdir", str(ROOT), "-p", "no:xdist", *options]) == 0
    report = json.loads(file.read_text())
    assert len(report["benchmarks"]) == len(operations.cases([SHAPE], []))
    assert "torch" in report["machine_info"]["described"]
    results = performance.Results(report["benchmarks"])
    for operation in operations.OPERATIONS:
        lines = results.table(operation).splitlines()
        assert {line.count("|") for line in lines} == {4}
        assert not any("| -" in line for line in lines[2:] if "target" not in line)
    results.draw(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_memory_is_that_of_the_tensors_that_are_held():
    import memory

    kept = []

    def function():
        kept.append(torch.zeros(1000))
        torch.zeros(500).add_(1).sum()

    assert 2000 <= memory.peak_bytes(function) < 2100
    assert isinstance(memory.resident_bytes(memory.SHARED, "torch", SHAPE), int)


def test_first_call():
    import first_call

    assert set(first_call.seconds_here(SHAPE, "torch")) == set(first_call.STEPS)


def test_training_step_of_every_posterior():
    import vae_step

    from vae_models.model.posteriors import POSTERIORS

    rows = vae_step.step_rows(rounds=1, batch_size=2, latent_dim=3)
    assert [row[0] for row in rows] == list(POSTERIORS)
    assert {len(row) for row in rows} == {len(vae_step.HEADER)}
    assert rows[0][-1] == "1.00"


def test_parametrisations_of_the_study():
    """The table of the study's page is that of its runs, and what the page says of it holds."""
    pytest.importorskip("lightning")
    import parametrisations

    study = ROOT / "docs" / "study"
    text = parametrisations.table(parametrisations.read(study / "parametrisations.jsonl"), 15)
    assert text + "\n" == (study / "results" / "parametrisations.md").read_text(encoding="utf-8")
    gains = {
        cells[0]: [float(cell.strip("* ").split(" ")[0].replace("\N{MINUS SIGN}", "-")) for cell in cells[1:]]
        for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[3:-1])
    }
    full = {name: means for name, means in gains.items() if name.startswith("full")}
    chosen = full["full, autoregressive in its own scale: diag(s) (I - O)^-1"]
    assert full["full, diag(s) + O"][0] > 0 > 1 + chosen[0]
    assert all(chosen[i] == min(means[i] for means in full.values()) for i in range(len(chosen)))
