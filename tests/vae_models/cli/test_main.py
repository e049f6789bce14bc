import contextlib
import dataclasses
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.main import get_command

import ar1_dist
from vae_models.cli.main import app, main
from vae_models.cli.output import comparison_table
from vae_models.data.loading import load
from vae_models.model.posteriors import POSTERIORS
from vae_models.model.vae import VAE
from vae_models.settings.config import SETTINGS, Config, Hardware
from vae_models.settings.config_file import FORMAT, write_config_file
from vae_models.training.module import VAEModule

QUICK = ["--epochs", "2", "--importance-samples", "3", "--latent-dim", "5"]
PICTURES = ["correlations.png", "curves.png", "reconstructions.png", "samples.png"]
RUN = ["best.ckpt", "config.json", "data.json", "interpolations.png", "last.ckpt", "metrics.csv", "metrics.json"]
RUN = sorted([*RUN, "model.safetensors", "report.html", "traversals.png", *PICTURES])

pytestmark = pytest.mark.usefixtures("blank_pictures")  # in this process; the comparison and the samples are looked at


def run(*arguments, cwd, **environment):
    """The command as a user runs it, piped."""
    return subprocess.run(
        [sys.executable, "-m", "vae_models", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def called(*arguments, cwd, encoding="utf-8"):
    """The command, called in this process; what it prints goes to files of that encoding."""
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding, newline="") for _ in range(2))
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main([*map(str, arguments)])
    printed = []
    for stream in (out, error):
        stream.seek(0)
        printed.append(stream.read())
    return subprocess.CompletedProcess(arguments, code, *printed)


def one_line(text: str) -> str:
    """The text of standard error, which is to be one line that starts with the command's name."""
    assert re.fullmatch(r"vae-models: [^\n]+\n", text), text
    return text


def contents(folder) -> list[str]:
    """Without the lock, which stays."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def hashes(folder) -> dict:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """The default posteriors and data set, quickly; all output goes to pipes, which take ASCII alone. What a notebook's
    kernel exports does not matter."""
    folder = tmp_path_factory.mktemp("comparison")
    return folder, run("compare", *QUICK, cwd=folder, PYTHONIOENCODING="ascii", MPLBACKEND="module://no.such_backend")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, blank_pictures):
    folder = tmp_path_factory.mktemp("trained")
    return folder, called("train", *QUICK, "--posterior", "low_rank", "--rank", "2", cwd=folder)


# --- compare ---


def test_compare_writes_what_it_says(comparison):
    folder, result = comparison
    assert result.returncode == 0, result.stderr
    assert contents(folder) == ["runs"]
    out = folder / "runs" / "compare"
    assert contents(out) == sorted(
        ["ar1", "config.json", "diagonal", "markov", "metrics.json", "report.html", *PICTURES]
    )
    assert result.stdout.splitlines()[-1] == "Wrote metrics.json, pictures and report.html to runs/compare"
    for name in ("ar1", "diagonal", "markov"):
        assert contents(out / name) == RUN
    for path in out.rglob("*.png"):
        with Image.open(path) as image:
            image.load()


def test_metrics_of_a_comparison(comparison):
    folder, _ = comparison
    metrics = json.loads((folder / "runs" / "compare" / "metrics.json").read_text())
    posteriors = metrics.pop("posteriors")
    assert (metrics["dataset"], metrics["latent_dim"], metrics["epochs"], metrics["seed"]) == ("digits", 5, 2, 0)
    assert list(posteriors) == ["diagonal", "ar1", "markov"]
    assert [figures["head_parameters"] for figures in posteriors.values()] == [10 * 401, 7 * 401, 14 * 401]
    for name, figures in posteriors.items():
        assert figures["negative_elbo"] == pytest.approx(figures["reconstruction"] + figures["kl"])
        assert (figures["mean_abs_rho"] is None) == (name == "diagonal")
        assert (figures["num_images"], figures["num_samples"], figures["epochs"]) == (360, 3, 2)
        assert figures["seconds_per_epoch"] > 0
        own = json.loads((folder / "runs" / "compare" / name / "metrics.json").read_text())
        assert own == {key: value for key, value in figures.items() if key != "seconds_per_epoch"}


def test_table_fits_a_pipe_and_agrees_with_the_metrics(comparison):
    folder, result = comparison
    posteriors = json.loads((folder / "runs" / "compare" / "metrics.json").read_text())["posteriors"]
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in result.stdout + result.stderr
    for name, figures in posteriors.items():
        (place,) = [i for i, line in enumerate(lines) if line.startswith(name)]
        assert lines[place].split() == [
            name,
            f"{figures['head_parameters']:,}",
            f"{figures['negative_elbo']:.2f}",
            f"{figures['reconstruction']:.2f}",
            f"{figures['kl']:.2f}",
            f"{figures['nll']:.2f}",
            "-" if figures["mean_abs_rho"] is None else f"{figures['mean_abs_rho']:.3f}",
            f"{figures['seconds_per_epoch']:.2f}",
        ]
        assert lines[place + 1].split() == [f"({figures[name]:.2f})" for name in ("negative_elbo_se", "nll_se")]


@pytest.mark.parametrize("columns", [60, 30])
def test_tables_keep_their_numbers_in_a_narrow_terminal(columns, comparison, trained, capsys, monkeypatch):
    """The lines of one at 60 columns are no longer than these."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(comparison[0])
    assert main(["compare", "--resume"]) == 0
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert max(map(len, lines)) <= 60
    monkeypatch.chdir(trained[0])
    assert main(["train", "--resume"]) == 0
    words = " ".join(lines + capsys.readouterr().out.splitlines()).split()
    for metrics in comparison[0].rglob("compare/metrics.json"):
        for figures in json.loads(metrics.read_text())["posteriors"].values():
            assert {f"{figures[name]:.2f}" for name in ("negative_elbo", "kl", "nll", "seconds_per_epoch")} <= set(
                words
            )
            assert {f"({figures[name]:.2f})" for name in ("negative_elbo_se", "nll_se")} <= set(words)
            assert f"{figures['head_parameters']:,}" in words
    figures = json.loads((trained[0] / "runs" / "train" / "metrics.json").read_text())
    assert {f"{figures[name]:.3f}" for name in ("negative_elbo", "kl_se", "total_correlation")} <= set(words)
    assert not any("\u2026" in word for word in words)


def test_table_of_long_numbers_fits_80_columns():
    figures = {
        "head_parameters": 2_197_600,
        "negative_elbo": -12345.67,
        "negative_elbo_se": 123.45,
        "reconstruction": -12567.89,
        "kl": 222.22,
        "nll": -12456.78,
        "nll_se": 124.56,
        "mean_abs_rho": 0.123,
        "seconds_per_epoch": 987.65,
    }
    console = Console(width=80, file=io.StringIO())
    console.print(comparison_table("title", Config(), 10_000, dict.fromkeys(POSTERIORS, figures)))
    words = console.file.getvalue().split()
    cells = "2,197,600 -12345.67 (123.45) -12567.89 222.22 -12456.78 (124.56) 0.123 987.65"
    assert [words.count(cell) for cell in cells.split()] == [len(POSTERIORS)] * 9
    heading = words[1 : words.index("diagonal") - 1]  # after the title and before the rule
    expected = "head negative recon- mean s per posterior params ELBO struction KL NLL |rho| epoch"
    assert heading == expected.split()


def test_same_seed_same_metrics_whatever_else_is_compared(comparison, tmp_path):
    folder, _ = comparison
    first = json.loads((folder / "runs" / "compare" / "markov" / "metrics.json").read_text())
    out = tmp_path / "deep" / "out"
    command = ["compare", *QUICK, "--posterior", "markov", "--posterior", "markov", "--out", str(out)]
    assert main(command) == 0
    again = json.loads((out / "markov" / "metrics.json").read_text())
    assert list(again) == list(first)
    for name, value in first.items():
        assert again[name] == pytest.approx(value, rel=1e-6), name
    assert main([*command, "--seed", "1", "--overwrite"]) == 0
    assert json.loads((out / "markov" / "metrics.json").read_text())["nll"] != first["nll"]


def test_comparison_is_neither_replaced_nor_repeated_unasked(comparison, capsys, monkeypatch):
    folder, _ = comparison
    monkeypatch.chdir(folder)
    before = hashes(folder / "runs" / "compare" / "ar1")
    assert main(["compare", *QUICK]) == 2
    assert "runs/compare is not empty: --resume or --overwrite it" in one_line(capsys.readouterr().err)
    monkeypatch.setattr(VAEModule, "training_step", lambda *_: pytest.fail("trained"))
    assert main(["compare", *QUICK, "--resume"]) == 0
    assert hashes(folder / "runs" / "compare" / "ar1") == before


# --- train, evaluate, sample ---


def test_train_writes_what_it_says(trained):
    folder, result = trained
    assert result.returncode == 0, result.stderr
    assert contents(folder / "runs" / "train") == RUN
    assert result.stdout.splitlines()[-1] == "Wrote metrics.json, pictures, report.html and the model to runs/train"
    config = json.loads((folder / "runs" / "train" / "config.json").read_text())
    assert config["run"]["posterior_options"] == config["vae"]["posterior_options"] == {"rank": 2}
    metrics = json.loads((folder / "runs" / "train" / "metrics.json").read_text())
    assert not any(isinstance(value, (dict, list)) for value in metrics.values())
    assert f"{metrics['nll']:.3f}" in result.stdout
    assert VAE.from_pretrained(folder / "runs" / "train").config == config["vae"]


def test_finished_run_is_kept(trained, capsys, monkeypatch):
    folder, _ = trained
    monkeypatch.chdir(folder)
    monkeypatch.setattr(VAEModule, "training_step", lambda *_: pytest.fail("trained"))
    before = hashes(folder)
    assert main(["train", *QUICK]) == 2
    assert "runs/train already holds a run" in one_line(capsys.readouterr().err)
    assert main(["train", "--resume"]) == 0  # with the settings of the run
    assert main(["train", "--resume", *QUICK, "--posterior", "ar1"]) == 2
    assert "config.json has posterior = 'low_rank', not 'ar1'" in one_line(capsys.readouterr().err)
    assert hashes(folder) == before


def test_finished_run_is_trained_for_more_epochs(trained, tmp_path, capsys, monkeypatch):
    """With nothing but their number said again."""
    shutil.copytree(trained[0], tmp_path / "longer")
    monkeypatch.chdir(tmp_path / "longer")
    result = called("train", "--resume", "--epochs", "3", cwd=tmp_path / "longer")
    assert result.returncode == 0, result.stderr
    out = tmp_path / "longer" / "runs" / "train"
    assert contents(out) == RUN
    metrics, config = (json.loads((out / name).read_text()) for name in ("metrics.json", "config.json"))
    assert metrics["epochs"] == config["run"]["epochs"] == 3
    assert config["run"]["posterior_options"] == {"rank": 2}
    assert f"{metrics['nll']:.3f}" in result.stdout
    before = hashes(out)
    assert main(["train", "--resume", "--epochs", "2"]) == 2
    assert "runs/train has been trained for 3 epochs, more than 2" in one_line(capsys.readouterr().err)
    assert hashes(out) == before


def test_comparison_is_trained_for_more_epochs(comparison, tmp_path, monkeypatch):
    shutil.copytree(comparison[0], tmp_path / "longer")
    monkeypatch.chdir(tmp_path / "longer")
    assert main(["compare", *QUICK, "--epochs", "3", "--resume"]) == 0
    metrics = json.loads(Path("runs", "compare", "metrics.json").read_text())
    assert [metrics["epochs"], *(each["epochs"] for each in metrics["posteriors"].values())] == [3, 3, 3, 3]


def test_evaluate_repeats_the_figures(trained, tmp_path, capsys, monkeypatch):
    folder, _ = trained
    before = hashes(folder)
    out = tmp_path / "figures.json"
    command = ["evaluate", str(folder / "runs" / "train"), "--out", str(out)]
    assert main([*command, "--importance-samples", "3"]) == 0
    metrics = json.loads((folder / "runs" / "train" / "metrics.json").read_text())
    figures = json.loads(out.read_text())
    assert figures.pop("split") == "test"
    for name, value in figures.items():
        assert value == (None if value is None else pytest.approx(metrics[name], rel=1e-6)), name
    assert main([*command, "--importance-samples", "5", "--split", "validation"]) == 0
    figures = json.loads(out.read_text())
    assert (figures["num_images"], figures["num_samples"]) == (180, 5)
    assert hashes(folder) == before
    capsys.readouterr()
    assert main([*command, "--split", "nope"]) == 2
    assert "unknown split 'nope'" in one_line(capsys.readouterr().err)
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "config.json does not exist" in one_line(capsys.readouterr().err)


OF_A_FOLDER = [*QUICK, "--dataset", "folder", "--data-root", ".", "--posterior", "diagonal", "--posterior", "ar1"]


@pytest.fixture(scope="module")
def of_a_folder(tmp_path_factory, blank_pictures):
    """A comparison on the images in the very folder in which the command is called, which has twenty of them."""
    folder = tmp_path_factory.mktemp("of_a_folder")
    for i, digit in enumerate(load("digits").test[:20, 0]):
        Image.fromarray((255 * digit).byte().numpy()).save(folder / f"{i:02}.png")
    copy = folder / "copy.png"
    copy.write_bytes((folder / "00.png").read_bytes())
    result = called("compare", *OF_A_FOLDER, cwd=folder)
    assert result.returncode == 0
    return folder, result.stderr


def test_pictures_of_runs_are_not_trained_on(of_a_folder, capsys, monkeypatch):
    """Each posterior's run and a comparison that is resumed find the same images."""
    folder, error = of_a_folder
    records = {(folder / "runs/compare" / name / "data.json").read_text() for name in ("ar1", "diagonal")}
    (record,) = map(json.loads, records)
    assert sorted(name for each in record["files"].values() for name in each) == [f"{i:02}.png" for i in range(20)]
    said = "vae-models: copy.png is a copy of another image in ., and equal files count as one image: there are 20"
    assert [line for line in error.splitlines() if "copy" in line] == [said]
    monkeypatch.chdir(folder)
    assert main(["sample", "runs/compare/ar1"]) == 0
    before = hashes(folder)
    assert main(["compare", *OF_A_FOLDER, "--resume"]) == 0
    assert main(["evaluate", "runs/compare/ar1", "--importance-samples", "2"]) == 0
    assert {path: content for path, content in hashes(folder).items() if path.name != "report.html"} == {
        path: content for path, content in before.items() if path.name != "report.html"
    }


def test_other_images_are_refused(of_a_folder, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "images"
    shutil.copytree(of_a_folder[0], folder)
    Image.new("L", (8, 8)).save(folder / "new.png")
    (folder / "copy.png").unlink()
    monkeypatch.chdir(folder)
    before = hashes(folder)
    commands = [
        ["evaluate", "runs/compare/ar1"],
        ["evaluate", "runs/compare/ar1", "--data-root", str(folder), "--split", "train"],
        ["compare", *OF_A_FOLDER, "--resume"],
    ]
    for command in commands:
        assert main(command) == 2
        error = one_line(capsys.readouterr().err)
        assert re.search(
            r"not those that the run runs/compare/\w+ was trained on: 1 image was added: new.png\. ", error
        )
        assert "--images" in error
    assert hashes(folder) == before


def test_evaluate_on_other_images(of_a_folder, trained, tmp_path, capsys, monkeypatch):
    folder, out = tmp_path / "images", tmp_path / "figures.json"
    shutil.copytree(of_a_folder[0], folder)
    run = folder / "runs" / "compare" / "ar1"
    Image.new("L", (8, 8)).save(folder / "new.png")
    before = hashes(folder)
    command = ["evaluate", str(run), "--importance-samples", "2"]
    assert main([*command, "--images", str(folder), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    figures = json.loads(out.read_text())
    assert (figures["num_images"], figures["images"], figures["seen_in_training"]) == (21, str(folder), 16)
    assert "split" not in figures
    said = f"Evaluated on all 21 images in {folder}, of which the run saw 16 in its training"
    assert captured.out.splitlines()[-1] == said
    assert main(["evaluate", str(trained[0] / "runs" / "train"), "--images", str(folder), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["seen_in_training"] is None
    capsys.readouterr()
    for arguments, said in [
        (["--images", str(folder), "--split", "train"], "--split is about the run's own images"),
        (["--images", str(folder), "--data-root", "x"], "--data-root is about the run's own images"),
        (["--images", str(folder / "none")], f"{folder / 'none'} does not exist"),
        (["--out", str(run / "metrics.json")], "metrics.json is a file of the run"),
        (["--out", str(run / ".." / "ar1" / "config.json")], "config.json is a file of the run"),
    ]:
        assert main([*command, *arguments]) == 2
        assert said in one_line(capsys.readouterr().err)
    assert hashes(folder) == before


def test_images_that_were_moved(of_a_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(of_a_folder[0] / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "runs/compare/ar1", "--importance-samples", "2"]
    assert main(command) == 2
    assert "the folder . holds 0 images" in one_line(capsys.readouterr().err)
    assert main([*command, "--data-root", str(of_a_folder[0])]) == 0
    run = tmp_path / "runs" / "compare" / "ar1"
    for name in ("metrics.json", "model.safetensors"):
        (run / name).unlink()
    assert main(["train", "--out", str(run), "--resume", "--data-root", str(of_a_folder[0])]) == 0
    assert json.loads((run / "metrics.json").read_text())["num_images"] == 4


def test_a_run_downloads_nothing_to_where_it_says(trained, tmp_path, capsys):
    folder, run = trained[0] / "runs" / "train", tmp_path / "run"
    shutil.copytree(folder, run)
    settings = json.loads((run / "config.json").read_text())
    settings["run"] |= {"dataset": "mnist", "data_root": str(tmp_path / "elsewhere")}
    (run / "config.json").write_text(json.dumps(settings))
    for command in (["evaluate", str(run)], ["train", "--out", str(run), "--resume", "--epochs", "9"]):
        assert main(command) == 2
        assert "MNIST is not whole" in one_line(capsys.readouterr().err)
    assert not (tmp_path / "elsewhere").exists()


def test_sample(trained, tmp_path, capsys, monkeypatch, blank_pictures):
    monkeypatch.setattr("vae_models.results.figures.png", blank_pictures)
    folder, _ = trained
    monkeypatch.chdir(tmp_path)
    command = ["sample", str(folder / "runs" / "train"), "--num", "10"]
    assert main(command) == 0
    assert capsys.readouterr().out == "Wrote samples.png\n"
    first = (tmp_path / "samples.png").read_bytes()
    assert main([*command, "--seed", "1", "--out", "other.png"]) == 0
    assert first != (tmp_path / "other.png").read_bytes()
    capsys.readouterr()
    assert main([*command, "--out", "missing/samples.png"]) == 2
    assert "cannot write missing/samples.png" in one_line(capsys.readouterr().err)
    assert contents(tmp_path) == ["other.png", "samples.png"]


def test_options_become_settings(tmp_path):
    options = ["--preset", "info", "--image-size", "8", "--likelihood", "gaussian", "--likelihood-scale", "0.5"]
    options += ["--learn-scale", "--beta", "0.5", "--warmup-epochs", "1", "--mmd-weight", "3", "--hidden", "16"]
    options += ["--binarize", "dynamic", "--batch-size", "300", "--learning-rate", "0.01", "--early-stopping", "7"]
    options += ["--plateau-patience", "3", "--gradient-clip", "9", "--posterior", "full", "--devices", "1"]
    assert main(["train", *QUICK, *options, "--out", str(tmp_path)]) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    expected = {
        "preset": "info",
        "network": "dcgan",
        "network_options": {"hidden": 16},
        "image_size": 8,
        "likelihood": "gaussian",
        "likelihood_options": {"scale": 0.5, "learn_scale": True},
        "objective": {"beta": 0.5, "warmup_epochs": 1, "mmd_weight": 3.0},
        "binarize": "dynamic",
        "batch_size": 300,
        "learning_rate": 0.01,
        "plateau_patience": 3,
        "early_stopping": 7,
        "gradient_clip": 9.0,
        "posterior": "full",
        "posterior_options": {},
    }
    assert {name: config["run"][name] for name in expected} == expected
    assert config["vae"]["objective"] == expected["objective"]


def test_rank_needs_one_of_the_posteriors(tmp_path):
    posteriors = ["--posterior", "ar1", "--posterior", "low_rank"]
    assert main(["compare", *QUICK, *posteriors, "--rank", "2", "--out", str(tmp_path)]) == 0
    for name, options in [("ar1", {}), ("low_rank", {"rank": 2})]:
        assert json.loads((tmp_path / name / "config.json").read_text())["run"]["posterior_options"] == options


# --- Settings from a file, and posteriors with options of their own ---


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory, blank_pictures):
    folder = tmp_path_factory.mktemp("of_two_ranks")
    posteriors = ["--posterior", "low_rank:rank=2", "--posterior", "low_rank", "--posterior", "ar1:per_pair=true"]
    return folder, called("compare", *QUICK, *posteriors, "--rank", "3", "--out", "out", cwd=folder)


LABELS = {
    "low_rank:rank=2": {"rank": 2},
    "low_rank": {"rank": 3},
    "ar1:per_pair=true": {"per_pair": True},
}


def test_posteriors_with_options_of_their_own(of_two_ranks):
    folder, result = of_two_ranks
    assert result.returncode == 0, result.stderr
    out = folder / "out"
    names = [path.name for path in out.iterdir() if path.is_dir()]
    assert sorted(names) == ["ar1-per_pair=true", "low_rank", "low_rank-rank=2"]
    assert {
        name: json.loads((out / name / "config.json").read_text())["run"]["posterior_options"] for name in names
    } == {name.replace(":", "-"): options for name, options in LABELS.items()}
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["posteriors"]) == list(LABELS)
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    report = (out / "report.html").read_text()
    for label in LABELS:
        assert sum(line.startswith(f"{label} ") for line in lines) == 1
        assert f">{label}<" in report


def test_comparison_of_such_posteriors_is_resumed(of_two_ranks, tmp_path, capsys):
    shutil.copytree(of_two_ranks[0] / "out", tmp_path / "out")
    (tmp_path / "out" / "low_rank-rank=2" / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "out" / "ar1-per_pair=true")
    expected = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert main(["compare", "--resume", "--out", str(tmp_path / "out")]) == 0
    again = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for metrics in (again, expected):
        for figures in metrics["posteriors"].values():
            figures.pop("seconds_per_epoch")
    assert again == expected
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "out")]) == 2
    said = one_line(capsys.readouterr().err)
    assert said.endswith(f"such as {tmp_path / 'out' / 'low_rank-rank=2'}\n")


def test_file_of_a_comparison(of_two_ranks, tmp_path, capsys):
    """For another comparison of the same; not for one run."""
    file = of_two_ranks[0] / "out" / "config.json"
    command = ["compare", "--config", str(file), "--out", str(tmp_path / "out"), "--epochs", "1"]
    assert main(command) == 0
    stored = json.loads(file.read_text())["comparison"]
    expected = {label: settings | {"epochs": 1} for label, settings in stored.items()}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"format": FORMAT, "comparison": expected}
    capsys.readouterr()
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "run")]) == 2
    assert f"{file} holds a comparison of low_rank:rank=2, low_rank, ar1:per_pair=true" in one_line(
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
    assert main(["train", "--config", str(file), "--posterior", "low_rank", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"] == stored["low_rank"]


def test_file_of_a_run(trained, tmp_path, capsys, monkeypatch):
    """It starts the same run elsewhere, and its options go on with one."""
    monkeypatch.chdir(tmp_path)
    folder = trained[0] / "runs" / "train"
    file = folder / "config.json"
    assert main(["train", "--config", str(file), "--out", "again"]) == 0
    assert Path("again", "config.json").read_bytes() == file.read_bytes()
    figures = [json.loads((each / "metrics.json").read_text()) for each in (Path("again"), folder)]
    assert figures[0] == {name: value if value is None else pytest.approx(value) for name, value in figures[1].items()}
    capsys.readouterr()
    assert main(["train", "--config", str(file), "--out", "again"]) == 2
    assert "again already holds a run" in one_line(capsys.readouterr().err)
    assert main(["train", "--config", str(file), "--out", "again", "--resume", "--epochs", "3"]) == 0
    assert json.loads(Path("again", "config.json").read_text())["run"]["epochs"] == 3
    capsys.readouterr()
    Path("other.json").write_text('{"seed": 4}')
    before = hashes(Path("again"))
    assert main(["train", "--config", "other.json", "--out", "again", "--resume"]) == 2
    assert "a run is resumed with its own settings" in one_line(capsys.readouterr().err)
    assert hashes(Path("again")) == before


def test_train_with_a_posterior_and_its_options(tmp_path):
    out = tmp_path / "run"
    assert main(["train", *QUICK, "--posterior", "low_rank:rank=2", "--out", str(out)]) == 0
    settings = json.loads((out / "config.json").read_text())["run"]
    assert (settings["posterior"], settings["posterior_options"]) == ("low_rank", {"rank": 2})
    assert main(["train", "--resume", "--posterior", "low_rank", "--rank", "2", *QUICK, "--out", str(out)]) == 0


# --- What is there already ---


@pytest.mark.parametrize("command", ["train", "compare"])
def test_resume_of_nothing(command, tmp_path, capsys, monkeypatch):
    """It would start another model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for out in ("missing", "empty"):
        for options in ([], QUICK):
            assert main([command, "--resume", "--out", out, *options]) == 2
            said = one_line(capsys.readouterr().err)
            assert re.search(rf"{out} holds no (run|comparison) to resume: leave out --resume to start one", said)
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_existing_run_names_the_ways_on(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained[0])
    for options in ([], ["--resume", "--seed", "3"]):
        assert main(["train", *options]) == 2
        assert "--overwrite" in one_line(capsys.readouterr().err)


def test_comparison_is_resumed_without_its_settings(comparison, tmp_path, capsys, monkeypatch):
    """As after a stop in the second posterior."""
    shutil.copytree(comparison[0], tmp_path / "stopped")
    monkeypatch.chdir(tmp_path / "stopped")
    out = Path("runs", "compare")
    expected = json.loads((out / "metrics.json").read_text())
    for name in ("metrics.json", "report.html", "ar1/metrics.json", "ar1/model.safetensors"):
        (out / name).unlink()
    shutil.rmtree(out / "markov")
    assert main(["compare", "--resume"]) == 0
    again = json.loads((out / "metrics.json").read_text())
    for metrics in (again, expected):
        for figures in metrics["posteriors"].values():
            figures.pop("seconds_per_epoch")
    assert again == expected


def test_run_and_comparison_are_not_taken_for_each_other(trained, comparison, capsys, monkeypatch):
    before = hashes(trained[0]), hashes(comparison[0])
    for options in (["--overwrite"], ["--resume"]):
        assert main(["compare", *QUICK, *options, "--out", str(trained[0] / "runs" / "train")]) == 2
        assert re.search("holds (a run, not a comparison|no comparison)", one_line(capsys.readouterr().err))
        assert main(["train", *QUICK, *options, "--out", str(comparison[0] / "runs" / "compare")]) == 2
        assert "holds a comparison of the runs diagonal, ar1, markov, not a run" in one_line(capsys.readouterr().err)
    assert (hashes(trained[0]), hashes(comparison[0])) == before


@pytest.mark.parametrize("command", [["evaluate"], ["sample"], ["train", "--resume", "--out"], ["train", "--out"]])
def test_comparison_in_place_of_a_run_names_its_runs(command, comparison, capsys, monkeypatch):
    monkeypatch.chdir(comparison[0])
    assert main([*command, "runs/compare"]) == 2
    said = one_line(capsys.readouterr().err)
    assert "holds a comparison of the runs diagonal, ar1, markov, not a run: name one of them" in said
    assert said.endswith(", such as runs/compare/diagonal\n")


@pytest.mark.parametrize(("command", "suffix"), [("sample", "PNG"), ("evaluate", "JSON")])
def test_ending_of_an_output_says_what_is_in_it(command, suffix, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x.jpg", "x.JPEG", "x.pdf", "x.csv"):
        assert main([command, str(trained[0] / "runs" / "train"), "--out", name]) == 2
        said = f"{name} is to end in .{suffix.lower()}: a {suffix} file is written"
        assert said in one_line(capsys.readouterr().err)
    assert contents(tmp_path) == []


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_outputs_replace_no_file_of_a_run(command, trained, tmp_path, capsys, monkeypatch):
    shutil.copytree(trained[0] / "runs" / "train", tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()  # the run is not finished by this one
    before = hashes(tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "link", Path(".")):
        for name in ("config.json", "metrics.json", "model.safetensors", "samples.png", "report.html"):
            assert main([command, str(tmp_path / "run"), "--out", str(folder / name)]) == 2
            assert f"{name} is a file of the run: name another one" in one_line(capsys.readouterr().err)
    assert hashes(tmp_path / "run") == before
    assert main([command, str(tmp_path / "run"), "--out", "/dev/null"]) == 2
    assert "cannot write /dev/null: it is there and is not a file" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("command", [["train", "--overwrite"], ["train", "--resume"], ["compare", "--overwrite"]])
def test_folder_that_another_process_is_at(command, trained, comparison, capsys, monkeypatch, locked_elsewhere):
    name = command[0]
    folder = {"train": trained, "compare": comparison}[name][0]
    monkeypatch.chdir(folder)
    before = hashes(folder)
    with locked_elsewhere(folder / "runs" / name):
        assert main([*command, *(QUICK if "--overwrite" in command else [])]) == 2
    assert f"runs/{name} is in use by process {os.getpid()}" in one_line(capsys.readouterr().err)
    assert hashes(folder) == before


def test_settings_of_a_stranger(trained, tmp_path, capsys, monkeypatch):
    """Types and names are checked, and no text is taken for mark-up."""
    shutil.copytree(trained[0] / "runs" / "train", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    changes = [
        {"epochs": "2"},
        {"batch_size": 0},
        {"posterior_options": []},
        {"preset": None},
        {"objective": {"beta": ""}},
    ]
    for change in changes:
        path.write_text(json.dumps(config | {"run": config["run"] | change}))
        for command in (["train", "--resume", "--out"], ["evaluate"], ["sample"]):
            assert main([*command, str(tmp_path / "run")]) == 2
            assert f"{path} does not hold the settings of a run" in one_line(capsys.readouterr().err)
    path.write_text(json.dumps(config | {"run": config["run"] | {"preset": "[/bold] [red]x"}}))
    assert main(["evaluate", str(tmp_path / "run"), "--importance-samples", "2"]) == 0
    assert "[/bold] [red]x preset" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "run" / "metrics.json").write_text("null")
    path.write_text(json.dumps(config))
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 2
    assert "metrics.json does not hold the final figures of a run" in one_line(capsys.readouterr().err)


def test_run_of_another_version(trained, tmp_path, capsys, monkeypatch):
    """Of one from before there were formats, whose factors meant something else; and of one of a time to come."""
    run = tmp_path / "run"
    shutil.copytree(trained[0] / "runs" / "train", run)
    path = run / "config.json"
    config = json.loads(path.read_text())
    monkeypatch.chdir(tmp_path)
    for stored in ({"run": config["run"], "vae": config["vae"]}, config | {"format": FORMAT + 1}):
        path.write_text(json.dumps(stored))
        before = hashes(run)
        for command in (
            ["evaluate", "run"],
            ["sample", "run"],
            ["train", "--resume", "--out", "run"],
            ["train", "--config", "run/config.json", "--out", "new"],
        ):
            assert main(command) == 2
            said = f"run/config.json is of another version of vae_models, in format {stored.get('format', 1)} where"
            assert said in one_line(capsys.readouterr().err)
        assert hashes(run) == before
    assert contents(tmp_path) == ["run"]
    assert main(["train", *QUICK, "--overwrite", "--out", "run"]) == 0
    assert json.loads(path.read_text())["format"] == FORMAT


def test_comparison_of_a_stranger(comparison, tmp_path, capsys):
    shutil.copytree(comparison[0] / "runs" / "compare", tmp_path / "compare")
    path = tmp_path / "compare" / "config.json"
    config = json.loads(path.read_text())["comparison"]
    for stored in ({"..": config["ar1"]}, {"markov": config["ar1"]}, {"ar1": config["ar1"] | {"epochs": "1"}}, {}, []):
        write_config_file(path, {"comparison": stored})
        assert main(["compare", "--resume", "--out", str(tmp_path / "compare")]) == 2
        assert f"{path} does not hold a comparison" in one_line(capsys.readouterr().err)
    shutil.rmtree(tmp_path / "compare" / "ar1")
    (tmp_path / "outside").mkdir()
    (tmp_path / "compare" / "ar1").symlink_to(tmp_path / "outside")
    write_config_file(path, {"comparison": config})
    assert main(["compare", "--resume", "--out", str(tmp_path / "compare")]) == 2
    assert "compare/ar1 is a link, to which nothing is written" in one_line(capsys.readouterr().err)
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_names_that_no_terminal_can_print(tmp_path):
    """A name of bytes that are no UTF-8, for the data and for the run, and a terminal of ASCII alone."""
    name = os.fsdecode(b"d\xff\xfc\xe9")
    out = f"{name}ρ"
    result = called("train", *QUICK, "--data-root", name, "--out", out, cwd=tmp_path, encoding="ascii")
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / out) == RUN
    assert main(["train", "--resume", "--out", str(tmp_path / out), "--epochs", "3"]) == 0


# --- Bad input ---


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--posterior", "nope"],
            "unknown posterior 'nope'; choose from diagonal, ar1, markov, low_rank, banded, full",
        ),
        (["--dataset", "nope"], "unknown dataset 'nope'; choose from digits, mnist, fashion-mnist, folder"),
        (["--preset", "nope"], "unknown preset 'nope'; choose from vanilla, beta, cnn, info"),
        (["--network", "nope"], "unknown network 'nope'; choose from mlp, cnn, conv64, dcgan"),
        (["--likelihood", "nope"], "unknown likelihood 'nope'; choose from bernoulli, continuous-bernoulli, gaussian"),
        (["--binarize", "nope"], "unknown binarize 'nope'; choose from none, static, dynamic"),
        (["--network", "cnn", "--image-size", "9"], "divisible by 4, got 9x9"),
        (["--likelihood", "gaussian", "--likelihood-scale", "0"], "'--likelihood-scale': 0 is not positive and finite"),
        (["--likelihood-scale", "0.2"], "--likelihood-scale goes with --likelihood gaussian, not with bernoulli"),
        (["--learn-scale"], "--learn-scale goes with --likelihood gaussian, not with bernoulli"),
        (["--posterior", "ar1", "--rank", "1"], "--rank goes with --posterior low_rank, not with ar1"),
        (["--posterior", "low_rank:rnk=2"], "low_rank takes rank (a whole number of at least 1), not 'rnk'"),
        (["--posterior", "low_rank:rank=none"], "'none' is not a whole number of at least 1"),
        (
            ["--posterior", "low_rank:rank=2", "--rank", "3"],
            "--rank goes with --posterior low_rank, not with low_rank:",
        ),
        (["--posterior", "full", "--order", "2"], "--order goes with --posterior banded, not with full"),
        (["--posterior", "banded", "--order", "0"], "--order"),
        (["--posterior", "full", "--per-pair"], "--per-pair goes with --posterior ar1, not with full"),
        (["--config", "nope.json"], "nope.json does not exist"),
        (["--config", "{file}"], "{file} is damaged"),
        (["--config", "."], "cannot read .: Is a directory"),
        (["--color"], "--color goes with --dataset folder, not with digits"),
        (["--learning-rate", "0"], "'--learning-rate': 0 is not positive and finite"),
        (["--learning-rate", "nan"], "'--learning-rate': nan is not positive and finite"),
        (["--gradient-clip", "-1"], "'--gradient-clip': -1 is not positive and finite"),
        (["--beta", "-1"], "beta must be finite and not negative"),
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "many"], "--epochs"),
        (["--latent-dim", "-1"], "--latent-dim"),
        (["--importance-samples", "0"], "--importance-samples"),
        (["--seed", "-1"], "--seed"),
        (["--nope"], "--nope"),
        (["--resume", "--overwrite"], "either resumed or overwritten"),
        (["--accelerator", "nope"], "nope"),
        (["--accelerator", "tpu"], ""),
        (["--precision", "nope"], "nope"),
        (["--strategy", "nope"], "nope"),
        (["--batch-size", "1", "--devices", "2", "--accelerator", "cpu"], "can't be shared by 2 processes"),
        (["--out", "x" * 300], "File name too long"),
        (["--out", "{file}"], "{file} is not a folder"),
        (["--out", "{file}/below"], "cannot write to the folder {file}/below"),
        (["--dataset", "mnist", "--data-root", "{file}"], "{file} is not a folder"),
        (["--dataset", "folder", "--data-root", "{file}/below"], "{file}/below does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(command, arguments, said, tmp_path, capsys, monkeypatch):
    """One line on standard error, exit code 2, no training, and nothing written, not even a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VAEModule, "training_step", lambda *_: pytest.fail("trained"))
    file = tmp_path / "file"
    file.write_text("")
    assert main([command, *(argument.format(file=file) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert said.format(file=file) in one_line(captured.err)
    assert captured.out == ""
    assert list(tmp_path.rglob("*")) == [file]


def test_missing_data_set_and_no_network(tmp_path, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    out = tmp_path / "out"
    assert main(["train", "--dataset", "mnist", "--data-root", str(tmp_path / "data"), "--out", str(out)]) == 2
    assert "network is unreachable" in one_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(), OSError(""), MemoryError(), ValueError(), ValueError("\n")], ids=repr)
def test_error_that_says_nothing(error, tmp_path, capsys, monkeypatch):
    """It is named by its type: no line ends at a colon, or is empty."""

    def fail(*_):
        raise error

    monkeypatch.setattr("vae_models.training.runs.read_config", fail)
    assert main(["evaluate", str(tmp_path)]) == 2
    assert type(error).__name__ in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory\nat x")])
def test_too_little_memory(error, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("vae_models.model.vae.VAE.build", fail)
    assert main(["train", "--out", str(tmp_path / "out")]) == 2
    assert "there is not enough memory" in one_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_torchvision_that_does_not_import(tmp_path):
    """Lightning imports it too, even where the data set does not need it."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms is missing")')
    result = run("compare", *QUICK, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert "torchvision::nms is missing" in one_line(result.stderr)


def test_loss_that_is_not_finite(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vae_models.training.module.loss_per_image", lambda vae, x: x.sum() * float("nan"))
    assert main(["compare", *QUICK, "--posterior", "ar1", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("vae-models: training with posterior 'ar1' failed: the training loss is nan, in epoch 1")
    assert "checkpoint" in error


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_keeps_the_last_checkpoint(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, "train", "--epochs", "1000000"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("vae-models: interrupted; what is finished is kept")
    assert "Traceback" not in error
    assert out == ""
    assert contents(tmp_path / "runs" / "train") == [
        "best.ckpt",
        "config.json",
        "data.json",
        "last.ckpt",
        "metrics.csv",
    ]
    assert len((tmp_path / "runs" / "train" / "metrics.csv").read_text().splitlines()) == 1 + 2


# The command, which gets SIGINT in its third epoch, of ten steps each.
INTERRUPTED = """
import signal, sys
from vae_models.cli.main import main
from vae_models.training import module
loss_per_image = module.loss_per_image
steps = iter(range(10**9))
def interrupted(*args):
    if next(steps) == 25:
        signal.raise_signal(signal.SIGINT)
    return loss_per_image(*args)
module.loss_per_image = interrupted
sys.exit(main())
"""


# --- Help ---


@pytest.mark.parametrize("command", ["train", "compare", "reproduce"])
def test_help_names_every_posterior(command):
    texts = {option.name: option.help for option in get_command(app).commands[command].params}
    assert set(POSTERIORS) <= set(re.findall(r"[\w-]+", texts["posterior"]))


@pytest.mark.parametrize("command", ["train", "compare"])
def test_help_names_every_setting(command, tmp_path):
    result = run(command, "--help", cwd=tmp_path, COLUMNS="200", TERMINAL_WIDTH="200")
    assert result.returncode == 0
    lines = [line.split()[1] for line in result.stdout.splitlines() if re.match(r"\S +--", line)]
    shown = [each.flag for each in SETTINGS.values() if each.option != "posterior"]
    assert lines == ["--posterior", *shown, "--config", "--out", "--resume", "--overwrite"] + [
        f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Hardware)
    ] + ["--help"]


@pytest.mark.parametrize("command", [[], ["train"], ["compare"], ["evaluate"], ["sample"], ["reproduce"]])
def test_short_option_shows_the_help(command, capsys):
    shown = []
    for option in ("-h", "--help"):
        assert main([*command, option]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""


def test_help_is_quick(tmp_path):
    start = time.perf_counter()
    result = run("--help", cwd=tmp_path)
    assert time.perf_counter() - start < 2
    assert all(command in result.stdout for command in ("train", "evaluate", "sample", "compare", "reproduce"))
    result = subprocess.run(
        [sys.executable, "-c", "import vae_models.cli.main, sys; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "False\n"


def test_version(capsys, monkeypatch):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vae-models {ar1_dist.__version__}\n"

    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert main(["--version"]) == 2
    assert "ar1-dist has no version: it is not installed" in one_line(capsys.readouterr().err)


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "compare" in captured.out + captured.err


def test_missing_extra_is_one_line():
    code = "import sys; sys.modules['typer'] = None; from vae_models.__main__ import main; sys.exit(main())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    said = "vae-models: typer is not installed; in a clone of the repository: pip install '.[vae]'\n"
    assert one_line(result.stderr) == said
