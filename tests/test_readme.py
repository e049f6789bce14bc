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
    names = run_blocks(ROOT / "README.md", 1)
    losses = names["losses"]
    assert abs(sum(losses[-100:]) / 100 + names["evidence"]) < 1


def test_readme_has_the_commands_of_the_makefile():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    commands = re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"demo", "test", "docs"} <= set(commands) <= set(targets)


FOLDERS = ("", "api", "study")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(path for folder in FOLDERS for path in (ROOT / "docs" / folder).glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """To files, and to headings in them, as a repository's host finds them."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target


def test_first_steps():
    names = run_blocks(ROOT / "docs" / "tutorial_first_steps.md", 6)
    assert names["q"].covariance_matrix[0].tolist() == [4, 2, 1, 0.5]
    assert names["z"].shape == (100, 7, 4)
    assert names["difference"] < 1e-5
    assert names["density_difference"] < 1e-5
    assert names["kl_to_dense"].abs() < 1e-5
    assert names["fitted"].rho.tolist() == pytest.approx([0.9, 0, -0.9], abs=0.05)
    assert names["fitted"].loc.tolist() == pytest.approx([1, 2, 3, 4], abs=0.05)
    assert [names[name].event_shape for name in ("ends", "between", "posterior")] == [(2,), (2,), (4,)]


def test_pyro_guide():
    names = run_blocks(ROOT / "docs" / "tutorial_pyro_guide.md", 6)
    assert names["loss_of_mean_field"] - names["loss_of_chain"] == pytest.approx(50, abs=5)
    assert names["covered"] == pytest.approx(0.95, abs=0.03)
    assert names["too_narrow"] == pytest.approx(0.45, abs=0.05)
    assert names["paths"].shape == (3, 200)


def test_vae_tutorial(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    names = run_blocks(ROOT / "docs" / "tutorial_vae.md", 8)
    images = names["images"]
    assert images.train.shape == (420, 1, 16, 16)
    assert images.test.shape == names["means"].shape == (120, 1, 16, 16)
    assert names["new"].shape == (64, 1, 16, 16)
    assert names["losses"][-1] < names["losses"][0]
    assert names["metrics"]["nll"] < names["metrics"]["negative_elbo"]
    assert names["own_history"].column("epoch") == [1]
    assert (names["again"].encode(images.test).mean == names["q"].mean).all()


def test_errata():
    names = run_blocks(ROOT / "docs" / "errata.md", 7)
    s, rho, d = names["s"], names["rho"], names["d"]
    variances, neighbours = names["variances"], names["neighbours"]
    assert variances["published"].tolist() == pytest.approx([s * t for t in range(1, d + 1)], rel=0.02)
    assert variances["exact"].tolist() == pytest.approx([s] * d, rel=0.02)
    assert neighbours["published"] == pytest.approx(0.5**0.5, abs=0.01)
    assert neighbours["exact"] == pytest.approx(rho, abs=0.01)
    assert names["last_variance"] == pytest.approx(s * (1 - rho ** (2 * d)) / (1 - rho**2), rel=0.02)
    assert names["last_variance"] == pytest.approx(1.24, abs=0.02)
    assert names["last_mean"] == pytest.approx(3.36, abs=0.02)
    assert names["ratio"].flatten().tolist() == pytest.approx([1 / 128] * 128, rel=1e-4)
    assert names["errors"]["right"] < 1e-6
    assert names["errors"]["wrong"] == pytest.approx(1.5)
    assert names["same"]
    assert names["baseline"] == pytest.approx(0.35, abs=0.02)
    assert names["actual"] == pytest.approx(3.74, abs=0.01)


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
