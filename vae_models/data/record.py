"""What a run was trained on: ``data.json`` in its folder.

A record has one entry. ``"files"`` holds, for each of the three sets, the names of its images and the checksum of each;
``"tensors"`` the shape, the type and the checksum of each set's values. Checksums are SHA-256, in hexadecimal digits.
They are those of the files or of the values as they are kept, not of what resizing and drawing makes of them, which may
differ by a rounding between machines.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_models.data.image_files import ImageFile
from vae_models.files import FileError, read_json

__all__ = ["SETS", "Record", "checksum", "difference", "of_files", "of_tensors", "read", "seen_in_training"]

SETS = ("train", "validation", "test")
"""The names of the three sets."""

Record = dict[str, dict[str, dict[str, Any]]]
"""A value that JSON can hold."""


def of_files(sets: Mapping[str, Sequence[ImageFile]]) -> Record:
    """The record of the images of a folder.

    Args:
        sets (mapping): from each of :data:`SETS` to its files.
    """
    return {"files": {name: {file.name: file.checksum for file in sorted(sets[name])} for name in SETS}}


def of_tensors(sets: Iterable[Tensor]) -> Record:
    """The record of images that are tensors.

    Example:

        >>> record = of_tensors(torch.zeros(3, 2, 1, 8, 8))
        >>> record["tensors"]["train"]["shape"]
        [2, 1, 8, 8]

    Args:
        sets (iterable of Tensor): the training, the validation and the test images.
    """
    return {"tensors": {name: _of_tensor(images) for name, images in zip(SETS, sets, strict=True)}}


def _of_tensor(images: Tensor) -> dict[str, Any]:
    dtype = str(images.dtype).removeprefix("torch.")
    values = images.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return {"shape": list(images.shape), "dtype": dtype, "sha256": hashlib.sha256(values).hexdigest()}


def checksum(record: Record) -> str:
    """That of a whole record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        FileError: if it is missing or holds no record.
    """
    if not path.exists():
        raise FileError(f"{path} does not exist, and nothing else says what the run was trained on: train it anew")
    value = read_json(path)
    sets = next(iter(value.values())) if isinstance(value, dict) and set(value) in ({"files"}, {"tensors"}) else None
    if not (
        isinstance(sets, dict) and set(sets) == set(SETS) and all(isinstance(each, dict) for each in sets.values())
    ):
        raise FileError(f"{path} does not say what a run was trained on")
    return value


def seen_in_training(record: Record, files: Iterable[ImageFile]) -> int | None:
    """How many of these files are, by their content, training or validation images of a record; None if that is one of
    tensors."""
    if "files" not in record:
        return None
    seen = {each for name in ("train", "validation") for each in record["files"][name].values()}
    return sum(file.checksum in seen for file in files)


def difference(recorded: Record, present: Record) -> str:
    """In which way the images that are there are not those of a record, in words; nothing if they are.

    Example:

        >>> recorded = {"files": {"train": {"a.png": "5e2f"}, "validation": {}, "test": {}}}
        >>> present = {"files": {"train": {"a.png": "5e2f", "b.png": "91c0"}, "validation": {}, "test": {}}}
        >>> difference(recorded, present)
        '1 image was added: b.png'
    """
    if recorded == present:
        return ""
    if recorded.keys() != present.keys():
        return "it was a folder of files, or is one now"
    before, after = next(iter(recorded.values())), next(iter(present.values()))
    return _difference_of_files(before, after) if "files" in recorded else _difference_of_tensors(before, after)


def _difference_of_files(recorded: Mapping[str, Mapping[str, str]], present: Mapping[str, Mapping[str, str]]) -> str:
    before, after = ({name: each[name] for each in sets.values() for name in each} for sets in (recorded, present))
    kinds = {
        "added": after.keys() - before.keys(),
        "removed": before.keys() - after.keys(),
        "changed": {name for name in before.keys() & after.keys() if before[name] != after[name]},
    }
    said = [
        f"{len(names):,} image{' was' if len(names) == 1 else 's were'} {kind}: {_some(sorted(names))}"
        for kind, names in kinds.items()
        if names
    ]
    return "; ".join(said) or "the images are the same, but another version of the software splits them otherwise"


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _difference_of_tensors(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    for name in SETS:
        before, after = recorded[name], present[name]
        for key in ("shape", "dtype"):
            if before.get(key) != after[key]:
                return f"the {key} of the {name} images is {after[key]}, not {before.get(key)}"
        if before != after:
            return f"the {name} images have other values"
    return "the record is of another version"
