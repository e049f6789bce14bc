import os
import subprocess
import sys
from pathlib import Path

import pytest

from vae_models.files import FileError
from vae_models.training.locks import InUseError, locked

HOLDS = """
import sys
from pathlib import Path
from vae_models.training.locks import locked

with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time(tmp_path):
    """The second is told which is the first, again and again, until that is killed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path / "run"], env=environment, **pipes)
    assert other.stdout.readline() == "locked\n"
    said = f"^{tmp_path / 'run'} is in use by (process {other.pid}|another process)$"
    for _ in range(3):
        with pytest.raises(InUseError, match=said), locked(tmp_path / "run"):
            pytest.fail("both have it")
    other.kill()
    other.communicate()
    with locked(tmp_path / "run"):
        pass


def test_nested(tmp_path, locked_elsewhere, monkeypatch):
    """However the folder is written, and within another one."""
    monkeypatch.chdir(tmp_path)
    with locked(tmp_path / "run"), locked(Path("run")), locked(Path("run", "below")):
        pass
    with locked_elsewhere(tmp_path / "run"):
        with locked(Path("run", "below")):
            pass
        with pytest.raises(InUseError), locked(Path("run")):
            pass


def test_made_folders_are_removed_after_an_error(tmp_path):
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "a" / "b", tmp_path / "there"):
        with pytest.raises(RuntimeError, match="stop"), locked(folder):
            raise RuntimeError("stop")
    with pytest.raises(RuntimeError, match="stop"), locked(tmp_path / "c" / "d"):
        raise RuntimeError((tmp_path / "c" / "mine").touch() or "stop")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "c", tmp_path / "c" / "mine", tmp_path / "there"]


def test_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(FileError, match=".lock is a link, to which nothing is written"), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for folder, said in [("file", "{} is not a folder"), ("file/below", "cannot write to the folder {}")]:
        with pytest.raises(FileError, match=said.format(tmp_path / folder)), locked(tmp_path / folder):
            pass
