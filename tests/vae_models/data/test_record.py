import hashlib
import os
from pathlib import Path

import pytest
import torch

from vae_models.data.image_files import ImageFile
from vae_models.data.record import SETS, checksum, difference, of_files, of_tensors, read, seen_in_training
from vae_models.files import FileError, write_json


def file(name: str, content: str = "") -> ImageFile:
    return ImageFile(name, Path(name), hashlib.sha256(os.fsencode(content or name)).hexdigest())


def record(train, validation=(), test=()):
    return of_files(
        dict(zip(SETS, [[file(name) for name in names] for names in (train, validation, test)], strict=True))
    )


def test_difference_of_files():
    before = record("ab", "c", "d")
    assert difference(before, record("ba", "c", "d")) == ""
    assert difference(before, record("ab", "c", "de")) == "1 image was added: e"
    assert difference(before, record("hgfedcba")) == "4 images were added: e, f, g and 1 more"
    assert difference(before, record("ab")) == "2 images were removed: c, d"
    changed = of_files({"train": [file("a", "other"), file("b")], "validation": [file("c")], "test": [file("d")]})
    assert difference(before, changed) == "1 image was changed: a"
    assert difference(before, record("ax")) == "1 image was added: x; 3 images were removed: b, c, d"
    assert "splits them otherwise" in difference(before, record("ac", "b", "d"))


def test_difference_of_tensors():
    images = list(torch.rand(9, 1, 4, 4).split([4, 2, 3]))
    before = of_tensors(images)
    assert difference(before, of_tensors([each.clone() for each in images])) == ""
    assert difference(before, of_tensors([*images[:2], images[2][:2]])) == (
        "the shape of the test images is [2, 1, 4, 4], not [3, 1, 4, 4]"
    )
    assert "the dtype of the train images is float64, not float32" in difference(
        before, of_tensors([each.double() for each in images])
    )
    images[1][-1, -1, -1, -1] += 1e-7
    assert difference(before, of_tensors(images)) == "the validation images have other values"
    assert (
        difference(before, record("a"))
        == difference(record("a"), before)
        == ("it was a folder of files, or is one now")
    )


def test_checksum_of_a_record():
    images = torch.rand(9, 1, 4, 4).split([4, 2, 3])
    assert checksum(of_tensors(images)) == checksum(of_tensors(list(images))) != checksum(of_tensors(images[::-1]))


def test_record_is_read_as_it_was_written(tmp_path):
    """Names that are no UTF-8 too."""
    for each in (record(["a/b.png", os.fsdecode(b"caf\xe9.png")], "c"), of_tensors(torch.rand(3, 2, 1, 4, 4))):
        write_json(tmp_path / "data.json", each)
        assert read(tmp_path / "data.json") == each


@pytest.mark.parametrize("value", [None, [], {}, {"files": {}}, {"files": 3}, {"tensors": dict.fromkeys(SETS, 0)}])
def test_file_of_something_else(value, tmp_path):
    write_json(tmp_path / "data.json", value)
    with pytest.raises(FileError, match=f"^{tmp_path / 'data.json'} does not say what a run was trained on"):
        read(tmp_path / "data.json")


def test_seen_in_training():
    files = [file("copy of a", "a"), file("d"), file("e"), file("c")]
    assert seen_in_training(record("ab", "c", "d"), files) == 2
    assert seen_in_training(of_tensors(torch.rand(3, 2, 1, 4, 4)), files) is None
