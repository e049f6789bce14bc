"""The code of the README and of the pages runs, in order, and does what they say."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = (0.5, 0.8, 0.95)  # of the central intervals in the page on amortised guides


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


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """Pages draw into this folder."""
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_drawn(figures: Path, name: str) -> None:
    """The page's figure is drawn, is small, and is there for the reader."""
    assert 0 < (figures / name).stat().st_size < 150_000
    assert (ROOT / "docs" / "figures" / name).is_file()


def test_irregular_times_page(figures):
    names = run_blocks(ROOT / "docs" / "howto_irregular_times.md", 5)
    assert names["evidences"][-1] > names["evidences"][0]
    assert 1 < names["scale"] < 4
    assert 5 < names["timescale"] < 45
    posterior, level = names["posterior"], names["level"]
    at_times = posterior.marginal(names["order"] < 60)
    assert ((at_times.mean - level).abs() < 3 * at_times.stddev).float().mean() > 0.9
    assert (names["mean_field_stddev"] < posterior.stddev).all()
    assert_drawn(figures, "irregular_times.png")
    assert names["bridges"].mean.tolist() == pytest.approx([1, 2, 2, 1])
    assert names["kl"].shape == (16,)


@pytest.mark.slow
def test_time_series_page(figures):
    names = run_blocks(ROOT / "docs" / "howto_time_series.md", 3)
    assert (names["low"] < names["median"]).all()
    assert (names["median"] < names["high"]).all()
    posterior, exact, evidence = names["posterior"], names["exact"], names["evidence"].item()
    assert ((posterior.mean - exact.mean).abs() < 0.2 * exact.stddev).all()
    assert ((posterior.stddev / exact.stddev).log().abs() < 0.2).all()
    elbos = {name: -sum(losses[-100:]) / 100 for name, losses in names["losses"].items()}
    assert abs(elbos["chain"] - evidence) < 0.5
    assert 20 < evidence - elbos["mean field"] < 30
    losses = names["losses_of_several"]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert_drawn(figures, "nile.png")


@pytest.mark.slow
def test_amortised_page(figures):
    names = run_blocks(ROOT / "docs" / "howto_amortised.md", 5)
    assert names["elbos"]["chain"] > names["elbos"]["mean field"] + 5
    # Of five windows, each of 48 months whose neighbours are alike: as if 60 readings of them were independent.
    misses = {
        name: [
            abs(share - level) / (level * (1 - level) / 60) ** 0.5 for share, level in zip(shares, LEVELS, strict=True)
        ]
        for name, shares in names["coverages"].items()
    }
    assert max(misses["chain"]) < 2.6
    assert min(misses["mean field"]) > 2.6
    assert_drawn(figures, "amortised.png")
