"""The code of the README and of the pages runs, in order, and does what they say."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_blocks(page: Path, count: int) -> dict:
    """The names that the page's Python blocks define, of which there are to be so many."""
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == count
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    return names


def test_readme():
    names = run_blocks(ROOT / "README.md", 2)
    assert names["z"].shape == (128, 20)
    assert names["kl"].shape == (128,)
    losses = names["losses"]
    assert sum(losses[-20:]) < sum(losses[:20])


def test_vae_models_page():
    names = run_blocks(ROOT / "docs" / "vae_models.md", 1)
    assert names["q"].batch_shape == (16,)
    assert type(names["q"]).__name__ == "AR1Normal"
    assert names["loss"] > 0


def test_irregular_times_page(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names = run_blocks(ROOT / "docs" / "howto_irregular_times.md", 5)
    assert names["evidences"][-1] > names["evidences"][0]
    assert 1 < names["scale"] < 4
    assert 5 < names["timescale"] < 45
    posterior, level = names["posterior"], names["level"]
    at_times = posterior.marginal(names["order"] < 60)
    assert ((at_times.mean - level).abs() < 3 * at_times.stddev).float().mean() > 0.9
    assert (tmp_path / "irregular_times.png").stat().st_size < 150_000
    assert names["bridges"].mean.tolist() == pytest.approx([1, 2, 2, 1])
    assert names["kl"].shape == (16,)


def test_time_series_page():
    names = run_blocks(ROOT / "docs" / "howto_time_series.md", 2)
    assert (names["low"] < names["median"]).all()
    assert (names["median"] < names["high"]).all()
    assert names["posterior"].event_shape == (100,)
    for losses in (names["losses"], names["losses_of_several"]):
        assert sum(losses[-20:]) < sum(losses[:20])
    assert abs(sum(names["losses"][-20:]) / 20 - 178.6) < 2  # the evidence, by a Kalman filter
    assert (ROOT / "docs" / "figures" / "nile.png").is_file()
