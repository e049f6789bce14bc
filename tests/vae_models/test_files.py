import json
import os
import stat

import pytest

from vae_models.files import FileError, first_line, read_json, reason, write_json, write_whole


def test_replaces_whole(tmp_path):
    path = tmp_path / "a"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_failure_keeps_the_old_content_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_whole(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"cannot write .*a: No space left on device"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_mode_is_that_of_an_ordinary_file(tmp_path):
    write_whole(tmp_path / "whole", b"")
    (tmp_path / "ordinary").touch()
    assert stat.S_IMODE((tmp_path / "whole").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileError, match="cannot write"):
        write_whole(tmp_path / "missing" / "a", b"")


@pytest.mark.parametrize(
    ("error", "said", "first"),
    [
        (
            OSError(28, "No space left on device", "a"),
            "No space left on device",
            "[Errno 28] No space left on device: 'a'",
        ),
        (OSError(), "OSError", "OSError"),
        (ValueError(" "), "ValueError", "ValueError"),
        (RuntimeError("Error downloading a:\nTried b"), "Error downloading a: Tried b", "Error downloading a"),
    ],
)
def test_what_an_error_says(error, said, first):
    assert (reason(error), first_line(error)) == (said, first)


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None], "ρ": "x"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value == json.loads((tmp_path / "a.json").read_text())


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"{", "is damaged"),
        (b"\xff", "is damaged"),
        (b"", "is damaged"),
        (b"[" * 99_999, "is damaged"),
    ],
)
def test_unreadable_json(content, said, tmp_path):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FileError, match=rf"a\.json {said}"):
        read_json(tmp_path / "a.json")
    with pytest.raises(FileError, match="cannot read"):
        read_json(tmp_path)


def _step(name, before, interrupt):
    """The function of that name, interrupted before or just after it."""
    function = getattr(os, name)

    def interrupted(*args, **kwargs):
        if before:
            raise interrupt
        function(*args, **kwargs)
        raise interrupt

    return interrupted


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(), MemoryError(), ValueError("other")])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", ["fdopen", "fsync", "chmod", "replace"])
def test_interrupt_in_every_place(name, before, interrupt, tmp_path, monkeypatch):
    """It comes through, and the file has the old content or the new."""
    path = tmp_path / "a"
    write_whole(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, _step(name, before, interrupt))
        with pytest.raises(type(interrupt)):
            write_whole(path, b"new")
    assert path.read_bytes() == (b"new" if (name, before) == ("replace", False) else b"old")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    before = sorted((path.name, path.lstat().st_mode) for path in tmp_path.iterdir())
    for name in ("pipe", "folder", "link", "null"):
        with pytest.raises(FileError, match=f"cannot write {tmp_path / name}: it is there and is not a file"):
            write_whole(tmp_path / name, b"new")
    with pytest.raises(FileError, match="cannot write .*: File name too long"):
        write_whole(tmp_path / ("x" * 300), b"new")
    assert sorted((path.name, path.lstat().st_mode) for path in tmp_path.iterdir()) == before
