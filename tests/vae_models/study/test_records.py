import subprocess
import sys

import pytest

from vae_models.files import FileError
from vae_models.study import records

ROW = {
    "run": "a",
    "part": "vanilla",
    "preset": "vanilla",
    "dataset": "digits",
    "binarize": "none",
    "likelihood": "bernoulli",
    "posterior": "ar1",
    "rank": None,
    "order": None,
    "change": "",
    "latent_dim": 10,
    "seed": 0,
    "epochs": 2,
    "epochs_trained": 2,
    "best_epoch": 2,
    "negative_elbo": 1 / 3,
    "active_units": 7,
    "torch": "2.0",
}
EPOCHS = [{"epoch": 1, "train_loss": 1.5, "validation_loss": 2.5}, {"epoch": 2, "train_loss": 1.25}]


def test_what_is_written_is_read(tmp_path):
    folder = tmp_path / "new"
    assert records.read_runs(folder) == records.read_epochs(folder) == []
    records.append(folder, ROW, EPOCHS)
    (row,) = records.read_runs(folder)
    assert {name: value for name, value in row.items() if name in ROW} == ROW
    assert all(row[name] is None for name in records.RUN_COLUMNS if name not in ROW)
    assert [(row["run"], row["epoch"], row["train_loss"]) for row in records.read_epochs(folder)] == [
        ("a", 1, 1.5),
        ("a", 2, 1.25),
    ]
    assert records.finished(folder) == {"a"}


def test_rows_are_added_once(tmp_path):
    records.append(tmp_path, ROW, EPOCHS)
    before = (tmp_path / "runs.csv").read_bytes()
    records.append(tmp_path, {**ROW, "negative_elbo": 7.0}, EPOCHS)
    assert (tmp_path / "runs.csv").read_bytes() == before
    records.append(tmp_path, {**ROW, "run": "b"}, EPOCHS)
    assert [row["run"] for row in records.read_runs(tmp_path)] == ["a", "b"]
    assert (tmp_path / "runs.csv").read_bytes().startswith(before)
    assert len(records.read_epochs(tmp_path)) == 4


def test_killed_between_the_files(tmp_path, monkeypatch):
    """A run without a row is not finished, and its epochs are replaced when it is."""
    write = records.write_csv

    def killed(path, *content):
        if path.name == "runs.csv":
            raise KeyboardInterrupt
        write(path, *content)

    with monkeypatch.context() as patch:
        patch.setattr(records, "write_csv", killed)
        with pytest.raises(KeyboardInterrupt):
            records.append(tmp_path, ROW, EPOCHS)
    assert records.finished(tmp_path) == set()
    records.append(tmp_path, ROW, EPOCHS)
    assert len(records.read_epochs(tmp_path)) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("runs.csv", b""),
        ("runs.csv", b"run,seed\na,0\n"),
        ("runs.csv", ",".join(records.RUN_COLUMNS).encode() + b"\na,vanilla\n"),
        ("runs.csv", ",".join(records.RUN_COLUMNS).encode() + b"\n" + b"a," * 29 + b"x\n"),
        ("epochs.csv", ",".join(records.EPOCH_COLUMNS).encode() + b"\na,one,1,1,1,1,1,1\n"),
        ("epochs.csv", b"\xff\xfe"),
    ],
)
def test_damaged(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=rf"{name} is damaged: "):
        records.append(tmp_path, ROW, EPOCHS)
    assert (tmp_path / name).read_bytes() == content


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="file is not a folder"):
        records.append(tmp_path / "file", ROW, EPOCHS)


def test_lock_is_anothers_until_that_ends(tmp_path):
    code = (
        "import sys, pathlib; from vae_models.study.records import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "locked\n"
    with records.locked(tmp_path, wait=False) as mine:
        assert not mine
    other.kill()
    other.communicate()
    with records.locked(tmp_path, wait=False) as mine:
        assert mine
