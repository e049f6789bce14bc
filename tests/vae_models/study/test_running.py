import statistics
from pathlib import Path

import pytest
import torch

from vae_models.data.loading import load
from vae_models.model.vae import VAE
from vae_models.results import evaluation
from vae_models.settings.config_file import write_config_file
from vae_models.study import records, running
from vae_models.study.plan import StudyRun, Variant
from vae_models.training.module import VAEModule
from vae_models.training.runs import read_metrics


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    monkeypatch.setattr("vae_models.study.plan.IMPORTANCE_SAMPLES", 5)


def run_of(posterior="ar1", change="", **other) -> StudyRun:
    made = {"preset": "vanilla", "dataset": "digits", "binarize": "none", "latent_dim": 4, "seed": 1, "epochs": 2}
    return StudyRun("vanilla", variant=Variant(posterior, change), **(made | other))


def execute(run, folder, **options):
    return running.execute(run, folder, Path("data"), **options)


def test_row(tmp_path):
    run = run_of("markov")
    row = execute(run, tmp_path)
    (read,) = records.read_runs(tmp_path)
    assert {name: row.get(name) for name in read} == read
    place = tmp_path / "runs" / run.name
    vae, history = VAE.from_pretrained(place), read_metrics(place)
    torch.manual_seed(1)
    expected = evaluation.evaluate(vae, load("digits", seed=1).test, num_samples=5)
    for name in ("negative_elbo", "nll", "gap", "mean_abs_rho", "active_units", "num_images", "num_samples"):
        assert row[name] == expected[name]
    assert row["seconds"] == sum(epoch["seconds"] for epoch in history)
    assert row["seconds_per_epoch"] == statistics.median(epoch["seconds"] for epoch in history)
    assert (row["seed"], row["epochs"], row["epochs_trained"], row["torch"]) == (1, 2, 2, torch.__version__)
    epochs = records.read_epochs(tmp_path)
    assert [row["validation_loss"] for row in epochs] == [row["validation_negative_elbo"] for row in history]
    assert [row["epoch"] for row in epochs] == [1, 2]
    files = {path.name for path in place.iterdir() if path.is_file()}
    assert files == {".lock", "config.json", "data.json", "metrics.csv", "metrics.json", "model.safetensors"}


def test_convolutional_networks_take_every_fifth_test_image(tmp_path):
    run = run_of(preset="cnn", epochs=1)
    row = execute(run, tmp_path)
    vae = VAE.from_pretrained(tmp_path / "runs" / run.name)
    torch.manual_seed(1)
    expected = evaluation.evaluate(vae, load("digits", seed=1).test[::5], num_samples=5)
    assert row["num_images"] == 72
    assert row["nll"] == expected["nll"]


def test_finished_is_not_run_again(tmp_path, monkeypatch):
    execute(run_of(), tmp_path)
    monkeypatch.setattr("vae_models.training.runs.train", lambda *_, **__: pytest.fail("trained"))
    assert execute(run_of(), tmp_path) is None


def test_what_another_process_is_at_is_left_alone(tmp_path, monkeypatch, locked_elsewhere):
    monkeypatch.setattr("vae_models.training.runs.train", lambda *_, **__: pytest.fail("trained"))
    with locked_elsewhere(tmp_path / "runs" / run_of().name):
        assert execute(run_of(), tmp_path) is None


def figures(row):
    return {name: value for name, value in row.items() if not name.startswith("seconds")}


@pytest.mark.parametrize("change", ["", "rho"])
def test_goes_on_where_it_was_stopped(change, tmp_path, monkeypatch):
    """In training, in the evaluation, and before the row was written."""
    run = run_of(change=change)
    expected = execute(run, tmp_path / "whole")
    folder = tmp_path / "stopped"

    def stop(*_, **__):
        raise KeyboardInterrupt

    def stop_in_second_epoch(module):
        if module.current_epoch == 1:
            stop()

    trained = []
    for target, replacement in [
        ((VAEModule, "on_train_epoch_start"), stop_in_second_epoch),
        ((evaluation, "evaluate"), stop),
        ((records, "append"), stop),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(*target, replacement)
            with pytest.raises(KeyboardInterrupt):
                execute(run, folder)
        assert records.finished(folder) == set()
        trained.append(len(read_metrics(folder / "runs" / run.name)))
    assert trained == [1, 2, 2]
    monkeypatch.setattr(VAEModule, "on_train_epoch_start", stop)
    assert figures(execute(run, folder)) == figures(expected)


@pytest.mark.parametrize("change", ["", "permuted"])
def test_figure_that_is_not_finite_makes_no_row(change, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: {"negative_elbo": 1.0, "nll": float("nan")})
    with pytest.raises(FloatingPointError, match="nll is nan on the test images"):
        execute(run_of(change=change), tmp_path)
    assert records.finished(tmp_path) == set()


def test_place_of_the_data_may_change(tmp_path, monkeypatch):
    """Between two epochs, and before what is only evaluated."""

    def stop_in_second_epoch(module):
        if module.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VAEModule, "on_train_epoch_start", stop_in_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            execute(run_of(), tmp_path)
    assert running.execute(run_of(), tmp_path, Path("moved"))["epochs_trained"] == 2
    assert running.execute(run_of(change="permuted"), tmp_path, Path("again")) is not None


def test_says_when_it_evaluates(tmp_path):
    epochs_before = []
    place = tmp_path / "runs" / run_of().name
    for change in ("", "permuted"):
        execute(run_of(change=change), tmp_path, on_evaluation=lambda: epochs_before.append(len(read_metrics(place))))
    assert epochs_before == [2, 2]


def test_rho_that_is_held_at_zero(tmp_path):
    with_rho, without = execute(run_of(), tmp_path), execute(run_of(change="rho-zero"), tmp_path)
    assert with_rho["mean_abs_rho"] > 0
    assert (without["mean_abs_rho"], without["total_correlation"]) == (0, 0)
    assert without["negative_elbo"] == pytest.approx(with_rho["negative_elbo"], rel=0.05)
    weights = VAE.from_pretrained(tmp_path / "runs" / run_of(change="rho-zero").name).state_dict()
    assert not weights["posterior.atanh_rho.weight"].any()
    assert weights["posterior.log_variance.weight"].any()


def test_more_samples_for_fewer_images(tmp_path, monkeypatch):
    monkeypatch.setattr("vae_models.study.plan.MORE_SAMPLES", 50)
    row, more = execute(run_of(), tmp_path), execute(run_of(change="more-samples"), tmp_path)
    assert (row["num_images"], row["num_samples"]) == (360, 5)
    assert (more["num_images"], more["num_samples"]) == (36, 50)
    vae = VAE.from_pretrained(tmp_path / "runs" / run_of().name)
    torch.manual_seed(1)
    assert more["nll"] == evaluation.evaluate(vae, load("digits", seed=1).test[::10], num_samples=50)["nll"]
    assert more["gap"] > row["gap"]


@pytest.mark.parametrize(("trained", "evaluated"), [("", "permuted"), ("walk", "walk-sampled")])
def test_what_is_only_evaluated(trained, evaluated, tmp_path):
    """It trains what it needs, once, in whichever order the two come."""
    first = execute(run_of(change=evaluated), tmp_path)
    assert records.read_epochs(tmp_path) == []
    weights = (tmp_path / "runs" / run_of(change=trained).name / "model.safetensors").read_bytes()
    second = execute(run_of(change=trained), tmp_path)
    assert (tmp_path / "runs" / run_of(change=trained).name / "model.safetensors").read_bytes() == weights
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert records.finished(tmp_path) == {run_of(change=change).name for change in (trained, evaluated)}
    assert first["negative_elbo"] != second["negative_elbo"]
    assert len(records.read_epochs(tmp_path)) == 2
    if trained:
        assert second["printed_loss"] < second["negative_elbo"]
        assert "printed_loss" not in first
    else:
        assert first["kl"] == pytest.approx(second["kl"], rel=1e-5)


def test_folder_of_another_run(tmp_path):
    run = run_of()
    execute(run, tmp_path)
    (tmp_path / "runs.csv").unlink()
    place = tmp_path / "runs" / run.name
    write_config_file(place / "config.json", {"run": run_of(seed=2).config(Path("data")).to_json()})
    with pytest.raises(ValueError, match="a run is resumed with its own settings"):
        execute(run, tmp_path)
    write_config_file(place / "config.json", {"run": run_of(epochs=3).config(Path("data")).to_json()})
    with pytest.raises(ValueError, match="last.ckpt does not exist, without which the run can't be trained for anoth"):
        execute(run, tmp_path)
