import os
import stat
from pathlib import Path

import pytest
import torch

from vae_models.files import FileError
from vae_models.training.checkpoints import WholeCheckpointIO, check_checkpoint, read_checkpoint

SETTINGS = {"seed": 0}


class Bomb:
    """What runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def checkpoint(**parts) -> dict:
    module = torch.nn.Linear(50, 50)
    names = ("optimizer_states", "lr_schedulers", "callbacks")
    return {"epoch": 3, "state_dict": module.state_dict(), "loops": {}, **dict.fromkeys(names), "run": SETTINGS} | parts


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint(checkpoint(), path)
    return path


def test_round_trip(path):
    got = WholeCheckpointIO().load_checkpoint(path)
    assert got.keys() == checkpoint().keys()
    assert got["state_dict"]["weight"].shape == (50, 50)
    assert got["run"] == SETTINGS
    assert list(path.parent.iterdir()) == [path]


def test_bomb_does_not_go_off(tmp_path):
    path, crater = tmp_path / "last.ckpt", tmp_path / "crater"
    torch.save(checkpoint(callbacks=Bomb(crater)), path)
    for read in (read_checkpoint, WholeCheckpointIO().load_checkpoint):
        with pytest.raises(FileError, match=f"^{path} is damaged or not a checkpoint: "):
            read(path)
    assert not crater.exists()
    torch.load(path, weights_only=False)
    assert crater.exists()


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
def test_truncated(fraction, path):
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(FileError, match=f"^{path} is damaged or not a checkpoint: ."):
        read_checkpoint(path)


def test_one_bit_is_enough(path):
    """In the weights, where torch alone does not notice it."""
    content = path.read_bytes()
    weights = checkpoint()["state_dict"]["weight"].numel() * 4
    changed = bytearray(content)
    changed[content.index(b"data/0") + weights // 2] ^= 1
    path.write_bytes(changed)
    torch.load(path, weights_only=True)
    with pytest.raises(FileError, match=f"^{path} is damaged .* checksum of .*data/0 is wrong"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [{}, [1, 2], {"state_dict": {}}, torch.ones(3)])
def test_foreign(content, path):
    torch.save(content, path)
    with pytest.raises(FileError, match=f"^{path} is not a checkpoint of a run$"):
        read_checkpoint(path)


def test_missing_and_folder(tmp_path):
    with pytest.raises(FileError, match="nothing.ckpt does not exist"):
        read_checkpoint(tmp_path / "nothing.ckpt")
    with pytest.raises(FileError, match=f"^{tmp_path} is damaged or not a checkpoint: "):
        read_checkpoint(tmp_path)


def test_check(path):
    assert check_checkpoint(path, SETTINGS, torch.nn.Linear(50, 50), prefix="") == 4
    for settings, module, prefix in (
        ({"seed": 1}, torch.nn.Linear(50, 50), ""),
        (SETTINGS, torch.nn.Linear(50, 51), ""),
        (SETTINGS, torch.nn.Linear(50, 50, bias=False), ""),
        (SETTINGS, torch.nn.Linear(50, 50), "vae."),
    ):
        with pytest.raises(FileError, match=f"^{path} belongs to another run$"):
            check_checkpoint(path, settings, module, prefix)
    for weights in (None, [1], {"weight": 1}):
        torch.save(checkpoint(state_dict=weights), path)
        with pytest.raises(FileError, match=f"^{path} (belongs to another run|is not a checkpoint of a run)$"):
            check_checkpoint(path, SETTINGS, torch.nn.Linear(50, 50), prefix="")


def test_failed_write_leaves_the_old_one(path, monkeypatch):
    old = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FileError, match=f"cannot write {path}: No space left on device"):
        WholeCheckpointIO().save_checkpoint(checkpoint(run={"seed": 1}), path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
