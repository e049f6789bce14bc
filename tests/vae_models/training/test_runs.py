import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from vae_models.data import loading
from vae_models.data.loading import DataError, load
from vae_models.files import FileError, read_json, write_json
from vae_models.model.vae import VAE
from vae_models.settings.config import Config
from vae_models.settings.config_file import write_config_file
from vae_models.settings.objectives import Objective
from vae_models.training import runs
from vae_models.training.callbacks import History
from vae_models.training.progress import ProgressLine
from vae_models.training.runs import Run, load_images, load_other_images, read_config, read_metrics, train

TRAINED = ["best.ckpt", "config.json", "data.json", "last.ckpt", "metrics.csv", "model.safetensors"]
SMALL = Config(epochs=3, latent_dim=3, network_options={"hidden": 8}, posterior="markov", batch_size=400)


class StopAfter(Callback):
    """Raises an error after so many epochs, when their checkpoint is written."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epochs:
            raise RuntimeError("stopped")


def finished(folder: Path, config: Config = SMALL, **options) -> Run:
    """A run with final figures, which hang on the weights and on the noise of the evaluation."""
    run = train(config, folder, **options)
    if not run.finished:
        torch.manual_seed(config.seed)
        write_json(folder / "metrics.json", {"nll": -run.vae.log_likelihood(run.images.test, 2).mean().item()})
    return run


def stopped(folder: Path, config: Config = SMALL, epochs: int = 2) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        train(config, folder, callbacks=[StopAfter(epochs)])


def files(folder: Path) -> list[str]:
    """Without the lock, and TensorBoard's folder, which is there if TensorBoard is installed."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != ".lock")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {name: ((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns) for name in files(folder)}


def assert_same(folder: Path, other: Path) -> None:
    """The same files and figures, but for the seconds."""
    assert files(folder) == files(other)
    for name in ("model.safetensors", "metrics.json", "config.json", "data.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    rows, other_rows = ([{**row, "seconds": 0} for row in read_metrics(each)] for each in (folder, other))
    assert rows == other_rows
    for name in ("best.ckpt", "last.ckpt"):
        a, b = (torch.load(each / name, weights_only=True) for each in (folder, other))
        assert a["epoch"] == b["epoch"]
        torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=0, atol=0)
        torch.testing.assert_close(a["optimizer_states"], b["optimizer_states"], rtol=0, atol=0)


def test_folder(tmp_path):
    folder = tmp_path / "deep" / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train(SMALL, folder)
    assert files(folder) == TRAINED
    config = json.loads((folder / "config.json").read_text())
    assert Config.from_json(config["run"]) == SMALL
    rows = read_metrics(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert (folder / "metrics.csv").read_text().splitlines()[0] == ",".join(History.COLUMNS)
    assert not run.finished
    assert not run.vae.training
    assert run.images.test.shape == (360, 1, 8, 8)
    again = VAE.from_pretrained(folder)
    torch.testing.assert_close(again.state_dict(), run.vae.state_dict(), rtol=0, atol=0)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    finished(tmp_path)
    (events,) = (tmp_path / "tensorboard").glob("events.out.*")
    train(SMALL, tmp_path, overwrite=True)
    assert not events.exists()


def test_weights_are_those_of_the_best_epoch(tmp_path):
    """The learning rate is such that the third epoch is worse than the second."""

    class Spoil(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            weights.append({name: value.clone() for name, value in pl_module.vae.state_dict().items()})

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                pl_module.vae.decoder[0].weight.data.normal_().mul_(50)

    weights: list[dict] = []
    run = train(SMALL, tmp_path, callbacks=[Spoil()])
    losses = [row["validation_negative_elbo"] for row in read_metrics(tmp_path)]
    assert min(losses) == losses[1]
    torch.testing.assert_close(run.vae.state_dict(), weights[1], rtol=0, atol=0)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close({name.removeprefix("vae."): value for name, value in last.items()}, weights[2])


def test_run_is_refused_resumed_or_overwritten(tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    finished(folder)
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(FileError, match=rf"^{folder} already holds a run \(config.json, .*metrics.json\): resume or"):
        train(SMALL, folder)
    with pytest.raises(ValueError, match="either resumed or overwritten"):
        train(SMALL, folder, resume=True, overwrite=True)
    run = finished(folder, resume=True)
    assert run.finished
    assert run.images is None
    assert contents(folder) == before

    seed = dataclasses.replace(SMALL, seed=1)
    assert not train(seed, folder, overwrite=True).finished
    assert (folder / "notes.txt").read_text() == "mine"
    assert files(folder) == sorted([*TRAINED, "notes.txt"])
    (folder / "notes.txt").unlink()
    finished(folder, seed, resume=True)
    finished(other, seed)
    assert_same(folder, other)


@pytest.mark.parametrize(
    "name", ["config.json", "data.json", "model.safetensors", "metrics.csv", "metrics.json", "best.ckpt"]
)
def test_any_file_of_a_run_makes_one(name, tmp_path):
    (tmp_path / name).write_text("x")
    with pytest.raises(FileError, match=rf"already holds a run \({name}\)"):
        train(SMALL, tmp_path)
    assert files(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "x"


def test_run_that_can_not_be_loaded_does_not_overwrite(tmp_path):
    finished(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(FileError):
        train(dataclasses.replace(SMALL, dataset="folder", data_root=str(tmp_path / "no")), tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="unknown posterior"):
        train(dataclasses.replace(SMALL, posterior="nope"), tmp_path, overwrite=True)
    assert contents(tmp_path) == before


def test_folder_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(FileError, match=f"{path} is not a folder"):
        train(SMALL, path)
    with pytest.raises(FileError, match=f"cannot write to the folder {path / 'deeper'}"):
        train(SMALL, path / "deeper")


FULL = {
    "warm-up, plateau and early stopping on dynamic images": dataclasses.replace(
        SMALL,
        epochs=40,
        binarize="dynamic",
        objective=Objective.beta_vae(2.0, warmup_epochs=3),
        learning_rate=0.1,
        plateau_patience=0,
        early_stopping=2,
    ),
    "batch normalisation and discrepancy": dataclasses.replace(
        SMALL,
        network="dcgan",
        network_options={"channels": (4, 8), "hidden": 8},
        objective=Objective.info_vae(0.0, 20.0),
        gradient_clip=1.0,
    ),
}


@pytest.mark.parametrize("config", FULL.values(), ids=FULL)
def test_resumed_is_the_same(config, tmp_path):
    finished(tmp_path / "whole", config)
    rows = read_metrics(tmp_path / "whole")
    if config.early_stopping is not None:
        assert 3 < len(rows) < config.epochs
        assert rows[-1]["learning_rate"] < config.learning_rate
    for epochs in {0, 1, 2, len(rows) // 2, len(rows) - 1}:
        folder = tmp_path / str(epochs)
        stopped(folder, config, epochs)
        assert len(read_metrics(folder)) == epochs
        finished(folder, config, resume=True)
        assert_same(folder, tmp_path / "whole")


def test_progress_of_a_resumed_run(tmp_path):
    stopped(tmp_path)
    with Progress(console=Console(file=io.StringIO())) as progress:
        task = progress.add_task("", start=False, epoch="", loss="")
        train(SMALL, tmp_path, resume=True, callbacks=[ProgressLine(progress, task)])
    (line,) = progress.tasks
    assert line.completed == line.total == 3 * 4


def test_early_stopping_is_not_forgotten(tmp_path, monkeypatch):
    """Killed when the checkpoint of the epoch in which it was to stop is written."""
    config = next(iter(FULL.values()))
    finished(tmp_path / "whole", config)

    def fail(*args):
        raise RuntimeError("stopped")

    monkeypatch.setattr(VAE, "save_pretrained", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    finished(tmp_path / "run", config, resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_moved_run_can_be_resumed(tmp_path):
    """The best loss so far is not forgotten: the last epoch, which is a bad one, does not become the best."""
    finished(tmp_path / "whole", dataclasses.replace(SMALL, epochs=2))

    class Spoil(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.vae.decoder[0].weight.data.normal_().mul_(50)

    stopped(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(SMALL, tmp_path / "new", resume=True, callbacks=[Spoil()])
    losses = [row["validation_negative_elbo"] for row in read_metrics(tmp_path / "new")]
    assert losses[2] > losses[1]
    name = "model.safetensors"
    assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resume_starts_a_run_where_there_is_none(tmp_path):
    finished(tmp_path / "whole")
    finished(tmp_path / "resumed", resume=True)
    assert_same(tmp_path / "resumed", tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 5}, "seed = 0, not 5"),
        ({"epochs": 4, "seed": 5}, "seed = 0, not 5"),
        ({"network_options": {"hidden": 9}}, r"network_options = {'hidden': 8}, not {'hidden': 9}"),
        ({"objective": Objective(beta=2.0)}, "objective = .*1.0.*, not .*2.0"),
    ],
)
def test_resume_with_other_settings(changes, message, tmp_path):
    stopped(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(FileError, match=rf"^{tmp_path / 'config.json'} has {message}"):
        train(dataclasses.replace(SMALL, **changes), tmp_path, resume=True)
    assert contents(tmp_path) == before


# The images


@pytest.fixture
def pictures(tmp_path):
    """A folder of twenty images, and settings of training on it."""
    root = tmp_path / "pictures"
    root.mkdir()
    for i, digit in enumerate(load("digits").test[:20, 0]):
        Image.fromarray((255 * digit).byte().numpy()).save(root / f"{i:02}.png")
    return root, dataclasses.replace(SMALL, dataset="folder", data_root=str(root), epochs=2)


def _add(root: Path) -> None:
    Image.new("L", (8, 8)).save(root / "new.png")


def _remove(root: Path) -> None:
    (root / "03.png").unlink()


def _change(root: Path) -> None:
    Image.new("L", (8, 8)).save(root / "03.png")


CHANGES = {
    "1 image was added: new.png": _add,
    "1 image was removed: 03.png": _remove,
    "1 image was changed: 03.png": _change,
}


@pytest.mark.parametrize("said", CHANGES)
def test_run_keeps_to_its_own_images(said, pictures, tmp_path):
    root, config = pictures
    folder = tmp_path / "run"
    stopped(folder, config, epochs=1)
    CHANGES[said](root)
    before = contents(folder)
    message = f"^the images in {root} are not those that the run {folder} was trained on: {said}. Put those back, or"
    with pytest.raises(DataError, match=message):
        train(config, folder, resume=True)
    with pytest.raises(DataError, match=message):
        load_images(config, folder)
    assert contents(folder) == before
    assert len(torch.cat(load_images(config))) in (19, 20, 21)
    train(config, folder, overwrite=True)
    train(config, folder, resume=True)  # which reads them, as the run has no final figures


def test_run_that_was_trained_but_not_evaluated_keeps_to_its_images(pictures, tmp_path):
    root, config = pictures
    train(config, tmp_path / "run")
    _add(root)
    with pytest.raises(DataError, match="1 image was added"):
        train(config, tmp_path / "run", resume=True)


def test_images_that_were_moved_are_the_same(pictures, tmp_path):
    root, config = pictures
    stopped(tmp_path / "run", config, epochs=1)
    root.rename(tmp_path / "elsewhere")
    moved = dataclasses.replace(config, data_root=str(tmp_path / "elsewhere"))
    train(moved, tmp_path / "run", resume=True)
    assert read_config(tmp_path / "run") == moved
    train(moved, tmp_path / "whole")
    for name in ("model.safetensors", "data.json", "config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_run_that_was_killed_before_it_wrote_what_it_is_trained_on(pictures, tmp_path, monkeypatch):
    _, config = pictures
    write = runs.write_json
    monkeypatch.setattr(runs, "write_json", lambda path, value: path.name == "data.json" or write(path, value))
    with pytest.raises(RuntimeError, match="stopped"):
        train(config, tmp_path, callbacks=[StopAfter(0)])
    assert files(tmp_path) == ["config.json", "metrics.csv"]
    monkeypatch.undo()
    train(config, tmp_path, resume=True)
    assert files(tmp_path) == TRAINED


@pytest.mark.parametrize("dataset", ["digits", "folder"])
def test_tensors_of_other_values(dataset, pictures, tmp_path, monkeypatch):
    """Of a data set that is no folder, and of one that is another kind by now."""
    _, config = pictures
    config = dataclasses.replace(config, dataset=dataset)
    stopped(tmp_path / "run", config, epochs=1)
    images, record = loading.load_with_record("digits", seed=1)
    monkeypatch.setattr(loading, "load_with_record", lambda *_, **__: (images, record))
    with pytest.raises(
        DataError, match="the train images have other values" if dataset == "digits" else "it was a folder"
    ):
        train(config, tmp_path / "run", resume=True)


def test_images_of_another_folder(pictures, tmp_path):
    root, config = pictures
    run = train(config, tmp_path / "run")
    other = tmp_path / "other"
    other.mkdir()
    recorded = json.loads((tmp_path / "run" / "data.json").read_text())["files"]
    for name in [*recorded["test"], *recorded["validation"], *list(recorded["train"])[:2]]:
        (other / name).write_bytes((root / name).read_bytes())
    _add(other)
    values, seen = load_other_images(config, run.vae, tmp_path / "run", other)
    assert values.shape == (4 + 2 + 2 + 1, 1, 8, 8)
    assert seen == 2 + 2
    Image.new("L", (9, 8)).save(root / "wide.png")
    for path in other.iterdir():
        Image.new("L", (9, 8), int(path.stem) if path.stem != "new" else 99).save(path)
    with pytest.raises(DataError, match=r"are of shape \(1, 8, 9\), and the model takes \(1, 8, 8\)"):
        load_other_images(config, run.vae, tmp_path / "run", other)
    with pytest.raises(DataError, match="holds 0 images; 2 are needed"):
        load_other_images(config, run.vae, tmp_path / "run", tmp_path / "run")


def test_too_few_images_leave_nothing_behind(pictures, tmp_path):
    root, config = pictures
    for path in sorted(root.iterdir())[5:]:
        path.unlink()
    with pytest.raises(DataError, match="holds 5 images; 6 are needed"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    _add(root)
    few = dataclasses.replace(config, batch_size=2, network="dcgan", network_options={"channels": (2, 4), "hidden": 4})
    with pytest.raises(ValueError, match="^batch normalisation needs two images .* 3 training images in batches of 2"):
        train(few, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    finished(tmp_path / "run", config)


@pytest.mark.parametrize("config", FULL.values(), ids=FULL)
@pytest.mark.parametrize("stop_at", [None, 1, 3])
def test_longer_is_as_if_so_long_from_the_beginning(stop_at, config, tmp_path):
    """A finished run and a stopped one, and one that is stopped again on its way to more epochs."""
    config = dataclasses.replace(config, epochs=min(config.epochs, 8))
    short = dataclasses.replace(config, epochs=2)
    finished(tmp_path / "whole", config)
    finished(tmp_path / "run", short) if stop_at is None else stopped(tmp_path / "run", short, epochs=1)
    if stop_at == 3:
        with pytest.raises(RuntimeError, match="stopped"):
            train(config, tmp_path / "run", resume=True, callbacks=[StopAfter(2)])
        assert read_config(tmp_path / "run").epochs == config.epochs
    run = finished(tmp_path / "run", config, resume=True)
    assert len(read_metrics(tmp_path / "run")) > 2
    assert run.images is not None
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_more_epochs_after_early_stopping_change_nothing_but_the_setting(tmp_path):
    config = next(iter(FULL.values()))
    finished(tmp_path / "run", config)
    finished(tmp_path / "run", dataclasses.replace(config, epochs=50), resume=True)
    finished(tmp_path / "whole", dataclasses.replace(config, epochs=50))
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_fewer_epochs(tmp_path):
    """What is behind a run can't be taken back; what is not yet can be left out."""
    stopped(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(FileError, match=rf"^{tmp_path / 'run'} has been trained for 2 epochs, more than 1$"):
        train(dataclasses.replace(SMALL, epochs=1), tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before
    two = dataclasses.replace(SMALL, epochs=2)
    finished(tmp_path / "run", two, resume=True)
    finished(tmp_path / "whole", two)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_run_that_never_began_is_no_run(tmp_path):
    """Nothing is left of what is refused, and a run that is to be resumed or overwritten stays as it was."""

    class Refuse(Callback):
        def on_fit_start(self, *args):
            raise RuntimeError("refused")

    refused = [{"accelerator": "nope"}, {"precision": "nope"}, {"strategy": "nope"}, {"max_epochs": 7}]
    refused += [{"callbacks": [Refuse()]}]
    finished(tmp_path / "run")
    before = contents(tmp_path / "run")
    longer = dataclasses.replace(SMALL, epochs=4)
    for options in refused:
        for folder, config, how in [
            ("deep/new", SMALL, {}),
            ("run", longer, {"resume": True}),
            ("run", SMALL, {"overwrite": True}),
        ]:
            with pytest.raises((ValueError, MisconfigurationException, RuntimeError), match="nope|max_epochs|refused"):
                train(config, tmp_path / folder, **how, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert contents(tmp_path / "run") == before


def test_precision_of_the_training_is_not_that_of_the_run(tmp_path):
    run = train(dataclasses.replace(SMALL, epochs=1), tmp_path, precision="bf16-true")
    assert {value.dtype for value in run.vae.state_dict().values()} == {torch.float32}
    assert run.vae.reconstruct(run.images.test).shape == run.images.test.shape


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _foreign(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def _of_another_run(path: Path) -> None:
    torch.save({**torch.load(path, weights_only=True), "run": {}}, path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[(name, damage) for name in ("last.ckpt", "best.ckpt") for damage in (_truncate, _foreign, _of_another_run)],
        ("best.ckpt", Path.unlink),
        ("config.json", _truncate),
        ("config.json", Path.unlink),
        ("config.json", lambda path: path.write_text("[]")),
        ("config.json", lambda path: write_config_file(path, {"run": {"seed": 0}})),
        ("config.json", lambda path: write_config_file(path, {"vae": {}})),
        ("config.json", lambda path: write_json(path, {**read_json(path), "format": 1})),
        ("data.json", _truncate),
        ("data.json", Path.unlink),
        ("data.json", lambda path: path.write_text("null")),
    ],
)
def test_damaged_file_is_named_and_nothing_overwritten(name, damage, tmp_path):
    stopped(tmp_path)
    damage(tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(FileError, match=f"^{tmp_path / name} "):
        train(SMALL, tmp_path, resume=True)
    assert contents(tmp_path) == before


def _callback(checkpoint: dict, start: str) -> dict:
    return next(state for name, state in checkpoint["callbacks"].items() if name.startswith(start))


# A checkpoint that is none of the project's: what a stranger changes in it, and what is said.
CRAFTED = {
    "epoch": (lambda it: it.update(epoch="1"), "not a checkpoint of a run"),
    "loops": (lambda it: it["loops"]["fit_loop"].update(epoch_progress=".."), "counts of epochs"),
    "a count": (
        lambda it: it["loops"]["fit_loop"]["epoch_progress"]["current"].update(processed=-1),
        "counts of epochs",
    ),
    "epochs": (lambda it: it["loops"]["fit_loop"]["epoch_progress"]["current"].update(processed=7), "counts 7 epochs"),
    "loops away": (lambda it: it["loops"].clear(), "'fit_loop'"),
    "rows": (lambda it: _callback(it, "History").update(rows=[{"epoch": ".."}]), "another history"),
    "a row": (lambda it: _callback(it, "History")["rows"][0].update(seconds="1"), "another history"),
    "no rows": (lambda it: _callback(it, "History").clear(), "figures of another number"),
    "score": (lambda it: _callback(it, "EpochCheckpoint{'monitor': 'val").update(best_model_score=".."), "least loss"),
    "waited": (lambda it: _callback(it, "Resumable").update(wait_count=None), "how long there was no improvement"),
    "optimisers": (lambda it: it.update(optimizer_states=[]), "optimiser is another"),
    "an optimiser": (lambda it: it.update(optimizer_states=[1]), "optimiser is another"),
    "rate": (lambda it: it["optimizer_states"][0]["param_groups"][0].update(lr=".."), "optimiser is another"),
    "moments": (lambda it: it["optimizer_states"][0]["state"][0].update(exp_avg=torch.ones(2)), "other weights"),
    "schedule": (lambda it: it["lr_schedulers"][0].update(optimizer=1), "schedule of the learning rate"),
    "patience": (lambda it: it["lr_schedulers"][0].update(patience="1"), "schedule of the learning rate"),
}


@pytest.fixture(scope="module")
def stopped_early(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outer") / "run"
    stopped(folder, dataclasses.replace(SMALL, early_stopping=5))
    return folder


@pytest.mark.parametrize(("craft", "said"), CRAFTED.values(), ids=CRAFTED)
def test_crafted_checkpoint_is_one_clear_error(craft, said, stopped_early, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped_early, folder)
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    craft(checkpoint)
    torch.save(checkpoint, folder / "last.ckpt")
    before = contents(folder)
    with pytest.raises(FileError, match=rf"^{folder / 'last.ckpt'} .*{said}"):
        train(dataclasses.replace(SMALL, early_stopping=5), folder, resume=True)
    assert contents(folder) == before


@pytest.mark.parametrize("path", ["..", ".", "/", "notes.txt", "../precious.txt", "{folder}/../precious.txt", 3, None])
def test_paths_in_a_checkpoint_are_not_followed(path, stopped_early, tmp_path):
    """Lightning deletes what the last checkpoint says is the one before. Nothing but the run's own files changes."""
    config = dataclasses.replace(SMALL, early_stopping=5)
    folder = tmp_path / "run"
    shutil.copytree(stopped_early, folder)
    for place in (tmp_path / "precious.txt", folder / "notes.txt"):
        place.write_text("mine")
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    path = path.format(folder=folder) if isinstance(path, str) else path
    for state in checkpoint["callbacks"].values():
        if "best_model_path" in state:
            for name in ("best_model_path", "kth_best_model_path", "last_model_path", "dirpath"):
                state[name] = path
            state["best_k_models"] = {path: torch.tensor(0.0), "..": torch.tensor(-1.0)}
    torch.save(checkpoint, folder / "last.ckpt")
    finished(folder, config, resume=True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["precious.txt", "run"]
    assert {(tmp_path / "precious.txt").read_text(), (folder / "notes.txt").read_text()} == {"mine"}
    (folder / "notes.txt").unlink()
    finished(tmp_path / "whole", config)
    assert_same(folder, tmp_path / "whole")


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    """Files that are written replace a link, and what a link of the folder points to is neither written nor deleted."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("mine")
    finished(tmp_path / "run")
    for name in ("metrics.csv", "metrics.json", "config.json"):
        content = (tmp_path / "run" / name).read_bytes()
        (outside / name).write_bytes(content)
        (tmp_path / "run" / name).unlink()
        (tmp_path / "run" / name).symlink_to(outside / name)
    before = contents(outside)
    finished(tmp_path / "run", dataclasses.replace(SMALL, epochs=4), resume=True)
    assert contents(outside) == before
    assert not any(path.is_symlink() for path in (tmp_path / "run").iterdir())
    shutil.rmtree(tmp_path / "run" / "tensorboard", ignore_errors=True)
    (tmp_path / "run" / "tensorboard").symlink_to(outside)
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(FileError, match=f"^{tmp_path / 'run' / 'tensorboard'} is a link"):
            train(dataclasses.replace(SMALL, epochs=5), tmp_path / "run", **options)
    assert contents(outside) == before


def test_damaged_metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    with pytest.raises(FileError, match=f"{path} does not exist"):
        read_metrics(tmp_path)
    header = ",".join(History.COLUMNS)
    for text in ("", "epoch,loss\n1,2\n", f"{header}\n1,2\n", f"{header}\n{'x,' * 6}x\n", "\x00"):
        path.write_text(text)
        with pytest.raises(FileError, match=f"{path} is damaged"):
            read_metrics(tmp_path)


def test_metrics_are_written_from_the_checkpoint(tmp_path):
    """What is in metrics.csv beyond it, or instead of it, is replaced."""
    finished(tmp_path / "whole")
    stopped(tmp_path / "run", epochs=1)
    (tmp_path / "run" / "metrics.csv").write_text("nonsense")
    finished(tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path):
    class Break(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == self.step:
                pl_module.vae.posterior.log_variance.bias.data.fill_(torch.nan)

    broken = Break()
    broken.step = 1
    with pytest.raises(
        FloatingPointError, match="in epoch 1, after 1 steps; there is no checkpoint of an epoch before$"
    ):
        train(SMALL, tmp_path, callbacks=[broken])
    broken.step = 9
    good = tmp_path / "last.ckpt"
    with pytest.raises(FloatingPointError, match=f"in epoch 3, after 9 steps; the last good checkpoint is {good}$"):
        train(SMALL, tmp_path, overwrite=True, callbacks=[broken])
    checkpoint = torch.load(good, weights_only=True)
    assert checkpoint["epoch"] == 1
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_ctrl_c_keeps_the_last_checkpoint(tmp_path):
    class Interrupt(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 1:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, tmp_path / "run", callbacks=[Interrupt()])
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 0
    finished(tmp_path / "run", resume=True)
    finished(tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")


# Forks a process for every attempt, which is to be killed: after a time, or before or after its nth file is in place.
# The parent has done no more than to import, so that a fork of it is as good as a new process, and starts at once.
KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from ar1_dist import set_kernels
from tests.vae_models.training import test_runs
from vae_models.data.loading import load

load("digits")
set_kernels("torch")  # loading kernels would take longer than what is to be killed


def attempt(folder, config, delay=None, write=None):
    child = os.fork()
    if child == 0:
        if write is not None:
            replace, count = os.replace, 0

            def counted(*paths):
                nonlocal count
                count += 0.5
                if count == write:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(*paths)
                count += 0.5
                if count == write:
                    os.kill(os.getpid(), signal.SIGKILL)

            os.replace = counted
        try:
            test_runs.finished(folder, config, resume=True)
            os._exit(0)
        finally:
            os._exit(1)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status == 0
"""


def _run_killed(tmp_path: Path, script: str, *arguments: str) -> str:
    """What a script prints that follows the one above."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-W", "ignore", "-c", KILLED + script, str(tmp_path), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_killed_at_random_moments(name, tmp_path, plain_path):
    """Eight times, before a run starts and in its course, or at its end, after which the next one starts."""
    config = dataclasses.replace(FULL[name], epochs=8)
    finished(tmp_path / "whole", config)
    out = _run_killed(
        tmp_path,
        """
import dataclasses
from pathlib import Path
config, folder = dataclasses.replace(test_runs.FULL[sys.argv[2]], epochs=8), Path(sys.argv[1], "run-0")
start = time.perf_counter()
assert attempt(Path(sys.argv[1], "alone"), config)
duration = time.perf_counter() - start
random.seed(0)
kills, epochs, runs = 0, set(), 1
for _ in range(8):
    if attempt(folder, config, delay=random.uniform(0, 0.6) * duration):
        folder, runs = Path(sys.argv[1], f"run-{runs}"), runs + 1
        continue
    kills += 1
    if (folder / "last.ckpt").exists():
        epochs.add(torch.load(folder / "last.ckpt", weights_only=True)["epoch"])
assert attempt(folder, config)
print(kills, len(epochs), runs)
""",
        name,
    )
    kills, epochs, runs = map(int, out.split())
    assert kills >= 4
    assert epochs >= 2
    for each in ("alone", *(f"run-{i}" for i in range(runs))):
        assert_same(tmp_path / each, tmp_path / "whole")


@pytest.mark.slow
def test_killed_around_every_write(tmp_path, plain_path):
    """Of two epochs: the second one's files replace the first one's."""
    config = dataclasses.replace(SMALL, epochs=2)
    finished(tmp_path / "whole", config)
    out = _run_killed(
        tmp_path,
        """
import dataclasses
from pathlib import Path
config = dataclasses.replace(test_runs.SMALL, epochs=2)
for half in range(1, 100):
    folder = Path(sys.argv[1], str(half))
    if attempt(folder, config, write=half / 2):
        break
    while not attempt(folder, config):
        pass
print(half)
""",
    )
    last = int(out)
    assert last > 20
    for half in range(1, last + 1):
        assert_same(tmp_path / str(half), tmp_path / "whole")
