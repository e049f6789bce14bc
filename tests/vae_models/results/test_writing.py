import json

import pytest
import torch
from PIL import Image

from vae_models.files import FileError, read_json
from vae_models.results import evaluation, writing
from vae_models.settings.config import Config
from vae_models.training import runs

CONFIG = Config(epochs=3, latent_dim=4, importance_samples=5, posterior="markov", network_options={"hidden": 20})
PICTURES = ["correlations.png", "curves.png", "reconstructions.png", "samples.png"]
OF_ONE = ["interpolations.png", "traversals.png"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose training has ended, but that is not finished."""
    return runs.train(CONFIG, tmp_path_factory.mktemp("run"))


def test_finish(run):
    before = torch.get_rng_state()
    metrics = writing.finish(run, CONFIG)
    assert torch.equal(torch.get_rng_state(), before)
    assert metrics == read_json(run.folder / "metrics.json")
    torch.manual_seed(CONFIG.seed)
    expected = evaluation.evaluate(run.vae, run.images.test, num_samples=5)
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["head_parameters"] == 21 * (4 + 4 + 3)
    losses = [row["validation_negative_elbo"] for row in runs.read_metrics(run.folder)]
    assert (metrics["epochs"], metrics["best_epoch"]) == (3, 1 + losses.index(min(losses)))
    for name in PICTURES + OF_ONE:
        with Image.open(run.folder / name) as image:
            image.load()
    assert f"{metrics['nll']:.2f}" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_finished_run_is_not_changed(run, monkeypatch):
    writing.finish(run, CONFIG)
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    again = runs.train(CONFIG, run.folder, resume=True)
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("evaluated"))
    assert again.finished
    assert writing.finish(again, CONFIG) == read_json(run.folder / "metrics.json")
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before


def test_killed_before_the_metrics(run, tmp_path, monkeypatch):
    """metrics.json comes last, and what came before is made again to the same effect."""
    writing.finish(run, CONFIG)
    expected = {path.name: path.read_bytes() for path in run.folder.iterdir()}

    def killed(*_):
        raise KeyboardInterrupt

    (run.folder / "metrics.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            writing.finish(runs.train(CONFIG, run.folder, resume=True), CONFIG)
    resumed = runs.train(CONFIG, run.folder, resume=True)
    assert not resumed.finished
    writing.finish(resumed, CONFIG)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == expected


def test_compare(run, tmp_path):
    writing.finish(run, CONFIG)
    other_config = Config(**{**vars(CONFIG), "posterior": "diagonal"})
    other = runs.train(other_config, tmp_path / "diagonal")
    writing.finish(other, other_config)
    compared = writing.compare(tmp_path, {"markov": run, "diagonal": other}, CONFIG, other.images)
    assert list(compared) == ["markov", "diagonal"]
    for name, folder in [("markov", run.folder), ("diagonal", other.folder)]:
        own = read_json(folder / "metrics.json")
        assert compared[name] == {**own, "seconds_per_epoch": compared[name]["seconds_per_epoch"]}
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["posteriors"] == compared
    assert written["latent_dim"] == 4
    assert "posterior" not in written
    report, own_report = (
        path.read_text(encoding="utf-8") for path in (tmp_path / "report.html", run.folder / "report.html")
    )
    assert '<th scope="row">posterior</th>' in own_report
    assert '<th scope="row">posterior' not in report
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["diagonal", "metrics.json", "report.html", *PICTURES]
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("null", "does not hold the final figures of a run"),
        ("[1]", "does not hold the final figures of a run"),
        ('{"nll": 1.0}', "does not hold the final figures of a run"),
        ("{", "is damaged"),
        ("nll", "has nll = '1', which is no number"),
        ("epochs", "has epochs = '1', which is no number"),
    ],
)
def test_final_figures_that_are_none(content, said, run):
    metrics = writing.finish(runs.train(CONFIG, run.folder, resume=True), CONFIG)
    path = run.folder / "metrics.json"
    path.write_text(json.dumps(metrics | {content: "1"}) if content in metrics else content)
    try:
        with pytest.raises(FileError, match=rf"^{path} {said}"):
            writing.finish(runs.train(CONFIG, run.folder, resume=True), CONFIG)
    finally:
        path.unlink()
