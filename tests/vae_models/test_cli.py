import json
import os
import re
import subprocess
import sys
import time

import pytest
from PIL import Image

from vae_models.cli import main
from vae_models.data import DATASETS
from vae_models.posteriors import POSTERIORS
from vae_models.training import VAEModule

QUICK = ["compare", "--epochs", "2", "--importance-samples", "3", "--latent-dim", "5"]
FILES = ["curves.png", "metrics.json", "reconstructions.png", "samples.png"]


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


def one_line(text: str) -> str:
    """The text of standard error, which is to be one line that starts with the command's name."""
    assert re.fullmatch(r"vae-models: [^\n]+\n", text), text
    return text


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """The default posteriors and data set, quickly; all output goes to pipes, which take ASCII alone."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run(*QUICK, cwd=folder, PYTHONIOENCODING="ascii")


def test_compare_writes_what_it_says(default_run):
    folder, result = default_run
    assert result.returncode == 0, result.stderr
    out = folder / "runs" / "compare"
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert result.stdout.splitlines()[-1] == (
        "Wrote metrics.json, curves.png, samples.png, reconstructions.png to runs/compare"
    )
    for name in FILES:
        if name.endswith(".png"):
            with Image.open(out / name) as image:
                image.load()
    assert [path.name for path in folder.iterdir()] == ["runs"]


def test_metrics(default_run):
    folder, _ = default_run
    metrics = json.loads((folder / "runs" / "compare" / "metrics.json").read_text())
    posteriors = metrics.pop("posteriors")
    assert metrics == {
        "dataset": "digits",
        "train_images": 1437,
        "test_images": 360,
        "latent_dim": 5,
        "epochs": 2,
        "importance_samples": 3,
        "seed": 0,
    }
    assert list(posteriors) == ["diagonal", "ar1", "markov"]
    assert [figures["head_parameters"] for figures in posteriors.values()] == [10 * 401, 7 * 401, 14 * 401]
    for name, figures in posteriors.items():
        assert figures["negative_elbo"] == pytest.approx(figures["reconstruction"] + figures["kl"])
        assert 0 < figures["negative_elbo_se"] < 1
        assert len(figures["train_negative_elbo_by_epoch"]) == len(figures["test_negative_elbo_by_epoch"]) == 2
        assert figures["negative_elbo"] == pytest.approx(figures["test_negative_elbo_by_epoch"][-1], rel=0.02)
        assert (figures["mean_abs_rho"] is None) == (name == "diagonal")
        assert figures["seconds_per_epoch"] > 0


def test_table_fits_a_pipe_and_agrees_with_the_metrics(default_run):
    folder, result = default_run
    posteriors = json.loads((folder / "runs" / "compare" / "metrics.json").read_text())["posteriors"]
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in result.stdout + result.stderr
    for name, figures in posteriors.items():
        (row,) = [line.split() for line in lines if line.startswith(name)]
        assert row == [
            name,
            f"{figures['head_parameters']:,}",
            *(f"{figures['negative_elbo']:.2f} ({figures['negative_elbo_se']:.2f})".split()),
            f"{figures['reconstruction']:.2f}",
            f"{figures['kl']:.2f}",
            *(f"{figures['nll']:.2f} ({figures['nll_se']:.2f})".split()),
            "-" if figures["mean_abs_rho"] is None else f"{figures['mean_abs_rho']:.3f}",
            f"{figures['seconds_per_epoch']:.2f}",
        ]


def test_same_seed_same_metrics_whatever_else_is_compared(default_run, tmp_path):
    folder, _ = default_run
    first = json.loads((folder / "runs" / "compare" / "metrics.json").read_text())["posteriors"]["markov"]
    out = tmp_path / "deep" / "out"
    assert main([*QUICK, "--posterior", "markov", "--posterior", "markov", "--out", str(out)]) == 0
    posteriors = json.loads((out / "metrics.json").read_text())["posteriors"]
    assert list(posteriors) == ["markov"]
    for name, value in first.items():
        if name != "seconds_per_epoch":
            assert posteriors["markov"][name] == pytest.approx(value, rel=1e-6), name
    assert main([*QUICK, "--posterior", "markov", "--seed", "1", "--out", str(out)]) == 0
    assert json.loads((out / "metrics.json").read_text())["posteriors"]["markov"]["nll"] != first["nll"]


def test_earlier_comparison_is_replaced_and_other_files_are_kept(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    assert main([*QUICK, "--posterior", "diagonal", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["epochs"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "notes.txt"])
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--posterior", "nope"], "unknown posterior 'nope'; choose from diagonal, ar1, markov"),
        (["--dataset", "nope"], "unknown data set 'nope'; choose from digits, mnist, fashion-mnist"),
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "many"], "--epochs"),
        (["--latent-dim", "-1"], "--latent-dim"),
        (["--importance-samples", "0"], "--importance-samples"),
        (["--seed", "-1"], "--seed"),
        (["--nope"], "--nope"),
        (["--out", "{file}"], "cannot write to {file}: it is not a folder"),
        (["--out", "{file}/below"], "cannot write to the folder {file}/below: Not a directory"),
        (["--dataset", "mnist", "--data-root", "{file}"], "{file} is not a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(arguments, said, tmp_path, capsys, monkeypatch):
    """One line on standard error, exit code 2, and no training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VAEModule, "training_step", lambda *_: pytest.fail("trained"))
    file = tmp_path / "file"
    file.write_text("")
    assert main(["compare", *(argument.format(file=file) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert said.format(file=file) in one_line(captured.err)
    assert captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_data_set_and_no_network(tmp_path, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    out = tmp_path / "out"
    assert main(["compare", "--dataset", "mnist", "--data-root", str(tmp_path / "data"), "--out", str(out)]) == 2
    assert "network is unreachable" in one_line(capsys.readouterr().err)
    assert not out.exists()


def test_torchvision_that_does_not_import(tmp_path):
    """Lightning imports it too, even where the data set does not need it."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms is missing")')
    result = run(*QUICK, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert "torchvision::nms is missing" in one_line(result.stderr)


def test_loss_that_is_not_finite(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vae_models.training.negative_elbo", lambda vae, x: x.sum() * float("nan"))
    assert main([*QUICK, "--posterior", "ar1", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "vae-models: training with posterior 'ar1' failed: the loss is nan in epoch 1, after 0 steps"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, "compare", "--epochs", "1000000"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "vae-models: interrupted; nothing was written"
    assert "Traceback" not in error
    assert out == ""
    assert list((tmp_path / "runs" / "compare").iterdir()) == []


# The command, which gets SIGINT in its fifth training step.
INTERRUPTED = """
import signal, sys
from vae_models import training
from vae_models.cli import main
elbo = training.negative_elbo
steps = iter(range(10**9))
def interrupted(*args):
    if next(steps) == 5:
        signal.raise_signal(signal.SIGINT)
    return elbo(*args)
training.negative_elbo = interrupted
sys.exit(main())
"""


def test_help_names_every_choice_and_default(tmp_path):
    result = run("compare", "--help", cwd=tmp_path, COLUMNS="200", TERMINAL_WIDTH="200")
    assert result.returncode == 0
    text = " ".join(result.stdout.replace("│", " ").split())
    for name in [*POSTERIORS, *DATASETS]:
        assert name in text
    for option in ("posterior", "dataset", "data-root", "latent-dim", "epochs", "importance-samples", "seed", "out"):
        assert f"--{option}" in text
    assert text.count("[default:") == 8


def test_help_is_quick(tmp_path):
    start = time.perf_counter()
    result = run("--help", cwd=tmp_path)
    assert time.perf_counter() - start < 2
    assert "compare" in result.stdout
    result = subprocess.run(
        [sys.executable, "-c", "import vae_models.cli, sys; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "False\n"


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "compare" in captured.out + captured.err


def test_missing_extra_is_one_line():
    code = "import sys; sys.modules['typer'] = None; from vae_models.__main__ import main; sys.exit(main())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert one_line(result.stderr) == "vae-models: typer is not installed; pip install 'ar1-dist[vae]'\n"
