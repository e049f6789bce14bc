"""Named image data sets, held in memory as tensors of shape ``(N, C, H, W)`` with values in [0, 1]."""

import gzip
import math
import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vae_models.data.image_files import ImageFile, find_images, list_images, read_image
from vae_models.data.record import SETS, Record, of_files, of_tensors
from vae_models.files import DataError, DataWarning, first_line, reason

__all__ = [
    "BINARIZATIONS",
    "DATASETS",
    "DataError",
    "DataWarning",
    "Images",
    "load",
    "load_folder",
    "load_with_record",
]

BINARIZATIONS = ("none", "static", "dynamic")
"""What :func:`load` may make of grey values."""

# Images that are resized or binarised at once, which bounds the memory that this takes beside the images.
_CHUNK = 1000

# Of fewer images the split would leave less than two to test on, over which there is no standard error.
_LEAST = 6
_LEAST_SAID = f"{_LEAST} are needed: 3 to train on, 1 for validation and 2 for the final metrics"

# Numbers of training and of test images in MNIST and in Fashion-MNIST.
_COUNTS = (60_000, 10_000)


class Images(NamedTuple):
    """The images of a data set, float32 of shape ``(N, C, H, W)``."""

    train: Tensor
    """Those to train on."""
    validation: Tensor
    """Those to choose by."""
    test: Tensor
    """Those of the final figures, by which nothing is chosen."""

    def __repr__(self) -> str:
        sets = ", ".join(f"{name}: {tuple(images.shape)}" for name, images in self._asdict().items())
        return f"Images({sets})"


def load(
    name: str,
    data_root: Path | str = Path("data"),
    *,
    image_size: int | None = None,
    color: bool = False,
    binarize: str = "none",
    seed: int = 0,
) -> Images:
    """The images of a data set.

    - ``digits``: scikit-learn's 1797 handwritten digits of 8×8 pixels and 17 grey values. Needs no files.
    - ``mnist``: 70,000 handwritten digits of 28×28 pixels (LeCun et al., 1998).
    - ``fashion-mnist``: 70,000 articles of clothing of 28×28 pixels (Xiao et al., arXiv:1708.07747).
    - ``folder``: the images in ``data_root`` and in the folders below it, by class or not, that
      :func:`vae_models.data.image_files.list_images` finds, 6 or more, as
      :func:`vae_models.data.image_files.read_image` reads them. Equal files count as one image.

    MNIST and Fashion-MNIST come with their own 10,000 test images; a sixth of the others, 10,000, is for validation. Of
    digits and of a folder's images a fifth is for testing and a tenth for validation.

    Example:

        >>> images = load("digits")
        >>> images.train.shape, images.validation.shape, images.test.shape
        (torch.Size([1257, 1, 8, 8]), torch.Size([180, 1, 8, 8]), torch.Size([360, 1, 8, 8]))
        >>> load("digits", image_size=16, binarize="static").test.unique()
        tensor([0., 1.])

    Args:
        name (str): one of :data:`DATASETS`.
        data_root (Path): the folder of one's own images, or the folder that holds torchvision's data sets in
            torchvision's layout (``data_root/MNIST/raw``). Files that are there are checked and never replaced; those
            that are not there are downloaded.
        image_size (int): side to which the central square of every image is resized, or None for the images as they
            are, which are then to have one size.
        color (bool): whether a folder's images are read with three channels, not turned grey. The others are grey.
        binarize (str): one of :data:`BINARIZATIONS`: ``"none"``; ``"static"``, every value v replaced by 1 with
            probability v, else by 0; or ``"dynamic"``, the same for the validation and test images, while the training
            images stay as they are, to be drawn in every training step.
        seed (int): of the split and of the binarisation. One seed gives the same images every time, and the same
            validation and test images for ``"static"`` and ``"dynamic"``.

    Raises:
        DataError: if the data set is unknown, is neither there nor can be downloaded, is damaged, has too few images to
            be split, or takes more memory than there is, which is estimated before a folder is read. The message names
            the file or folder.

    Note:
        Everything is held in memory, with four bytes per value: 220 MB for MNIST, 48 kB for a coloured image of 64×64.
    """
    return load_with_record(name, data_root, image_size=image_size, color=color, binarize=binarize, seed=seed)[0]


def load_with_record(
    name: str,
    data_root: Path | str = Path("data"),
    *,
    image_size: int | None = None,
    color: bool = False,
    binarize: str = "none",
    seed: int = 0,
    download: bool = True,
) -> tuple[Images, Record]:
    """What :func:`load` gives, and the record of it: see :mod:`vae_models.data.record`. It is one of the images before
    they are resized and binarised. Without ``download`` nothing is written, as where ``data_root`` is what a file says.

    Example:

        >>> _, record = load_with_record("digits")
        >>> record["tensors"]["test"]["shape"]
        [360, 1, 8, 8]
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; choose from {', '.join(DATASETS)}")
    _check(image_size, binarize)
    generator = torch.Generator().manual_seed(seed)
    if not download and name in _MNIST_LIKE and not _is_whole(raw := Path(data_root, _MNIST_LIKE[name], "raw")):
        raise DataError(f"{_MNIST_LIKE[name]} is not whole in {raw.parent}: say by --data-root where it is")
    images, record = DATASETS[name](Path(data_root), image_size, color, generator)
    if binarize != "none":
        _draw(images.test, generator)
        _draw(images.validation, generator)
    if binarize == "static":
        _draw(images.train, generator)  # last, so that the others are the same for dynamic
    return images, record


def load_folder(
    folder: Path | str, *, image_size: int | None = None, color: bool = False, binarize: str = "none", seed: int = 0
) -> tuple[Tensor, list[ImageFile]]:
    """All the images in a folder, not split, to evaluate on, and their files, in the order of their names.

    Args:
        folder (Path): which.
        image_size, color, binarize, seed: as in :func:`load`; ``"dynamic"`` images are drawn once, like test images.

    Returns:
        tuple: float32 of shape ``(N, C, H, W)``, and a list of :class:`vae_models.data.image_files.ImageFile`.

    Raises:
        DataError: as by :func:`load`, or if there are fewer than two.
    """
    _check(image_size, binarize)
    why = "2 are needed, for the standard errors over images"
    images, files = _read_folder(Path(folder), image_size, color, 2, why, None)
    if binarize != "none":
        _draw(images, torch.Generator().manual_seed(seed))
    return images, files


def _check(image_size: int | None, binarize: str) -> None:
    if binarize not in BINARIZATIONS:
        raise DataError(f"unknown binarisation {binarize!r}; choose from {', '.join(BINARIZATIONS)}")
    if image_size is not None and image_size < 1:
        raise DataError(f"image size must be at least 1, got {image_size}")


def _digits(data_root: Path, image_size: int | None, color: bool, generator: torch.Generator) -> tuple[Images, Record]:
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images / 16, dtype=torch.float32).unsqueeze(1)
    images, parts = images[torch.randperm(len(images), generator=generator)], _split(len(images))
    record = of_tensors(images.split(parts))
    return Images(*_resized("digits", images, image_size).split(parts)), record


def _folder(data_root: Path, image_size: int | None, color: bool, generator: torch.Generator) -> tuple[Images, Record]:
    images, files = _read_folder(data_root, image_size, color, _LEAST, _LEAST_SAID, generator)
    parts = _split(len(files))
    names = {name: files[sum(parts[:i]) :][:size] for i, (name, size) in enumerate(zip(SETS, parts, strict=True))}
    return Images(*images.split(parts)), of_files(names)


def _read_folder(
    root: Path, image_size: int | None, color: bool, least: int, why: str, generator: torch.Generator | None
) -> tuple[Tensor, list[ImageFile]]:
    """The images of a folder, float32, and their files: in the order of their names, or in a random one."""

    def require(number: int) -> None:
        if number < least:
            raise DataError(f"the folder {root} holds {number} image{'s' * (number != 1)}; {why}")

    paths = list_images(root)
    require(len(paths))
    shape: Sequence[int] = read_image(paths[0], color).shape
    shape = shape if image_size is None else (shape[0], image_size, image_size)
    _require_memory(f"the {len(paths):,} images in {root}", len(paths), shape)  # before all of them are read
    files = find_images(root, paths)
    require(len(files))
    if generator is not None:
        files = [files[i] for i in torch.randperm(len(files), generator=generator)]
    shape = shape if image_size is not None else read_image(files[0].path, color).shape
    images = torch.empty(len(files), *shape)
    for file, place in zip(files, images, strict=True):
        image = read_image(file.path, color)
        if image_size is None and image.shape != shape:
            raise DataError(
                f"{file.path} is of size {_size(image.shape)} and {files[0].path} of {_size(shape)}; give an image size"
            )
        _fill(place.unsqueeze(0), image.unsqueeze(0))
    return images, files


def _is_whole(raw: Path) -> bool:
    return all(_idx_file(raw, name).exists() for name in _IDX_NAMES)


def _mnist_like(
    class_name: str, data_root: Path, image_size: int | None, color: bool, generator: torch.Generator
) -> tuple[Images, Record]:
    """A data set of torchvision's that has the shape and the format of MNIST."""
    raw = data_root / class_name / "raw"
    if not _is_whole(raw):
        _download(class_name, data_root, raw)
    train, test = (_read_idx(_idx_file(raw, name), count) for name, count in zip(_IDX_NAMES, _COUNTS, strict=True))
    train = train[torch.randperm(len(train), generator=generator)]
    num_validation = len(train) // 6
    parts = train[:-num_validation], train[-num_validation:], test
    record = of_tensors(parts)
    train, test = (_resized(class_name, images, image_size) for images in (train, test))
    return Images(train[:-num_validation], train[-num_validation:], test), record


def _idx_file(raw: Path, name: str) -> Path:
    """The file of that name, or where it is not there, as on the servers, compressed."""
    return raw / name if os.path.exists(raw / name) else raw / f"{name}.gz"


def _read_idx(path: Path, count: int) -> Tensor:
    """So many images of 28×28 bytes in the IDX format of MNIST, of shape ``(count, 1, 28, 28)``.

    The format has no checksum: this checks all that its header says, and the length.
    """
    shape, start = (count, 28, 28), 16
    length = start + math.prod(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = bytearray(file.read(length + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {first_line(error)}") from error
    magic, *sizes = struct.unpack(">4I", content[:start].ljust(start, b"\0"))
    if len(content) < start:
        fault = f"it has {len(content)} bytes, less than a header"
    elif magic != 0x803:  # 8: bytes; 3: dimensions
        fault = f"it starts with 0x{magic:08x}, not 0x00000803"
    elif tuple(sizes) != shape:
        fault = "its header says {:,} images of {}x{}".format(*sizes)
    elif len(content) < length:
        fault = f"it is truncated to {len(content):,} of {length:,} bytes"
    elif len(content) > length:
        fault = f"it is longer than the {length:,} bytes that its header says"
    else:
        return torch.frombuffer(content, dtype=torch.uint8, offset=start).reshape(count, 1, 28, 28)
    raise DataError(f"{path} does not hold {count:,} images of 28x28: {fault}; move it away to download it anew")


def _download(class_name: str, data_root: Path, raw: Path) -> None:
    """Let torchvision download a data set, check it and unpack it in a temporary folder; then move what is missing."""
    datasets = _import_torchvision_datasets()
    if data_root.exists() and not data_root.is_dir():
        raise DataError(f"the data root {data_root} is not a folder")
    made = [each for each in (raw, *raw.parents) if not each.exists()]
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=data_root) as temporary:
            downloaded = Path(getattr(datasets, class_name)(temporary, download=True).raw_folder)
            raw.mkdir(parents=True, exist_ok=True)
            for file in downloaded.glob("*-ubyte"):
                if not _idx_file(raw, file.name).exists():
                    file.replace(raw / file.name)
    except Exception as error:  # a failed download raises whatever torchvision stumbles over
        raise DataError(
            f"{class_name} is not whole in {raw.parent} and could not be downloaded to it: {reason(error)}"
        ) from error
    finally:
        for each in made:
            with suppress(OSError):  # it is not there, or there is something in it
                each.rmdir()


def _import_torchvision_datasets() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an extension for reading files, which is not needed, is missing
            import torchvision.datasets
    except (ImportError, RuntimeError) as error:  # the latter is what a torchvision built for another torch raises
        raise DataError(
            f"torchvision does not import beside torch {torch.__version__} ({first_line(error)}); "
            "install the two together: pip install --upgrade torch torchvision"
        ) from error
    return torchvision.datasets


def _split(num_images: int) -> tuple[int, int, int]:
    """How many of so many images are for training, validation and testing."""
    num_validation, num_test = math.ceil(num_images / 10), math.ceil(num_images / 5)
    return num_images - num_validation - num_test, num_validation, num_test


def _resized(name: str, images: Tensor, size: int | None) -> Tensor:
    """Images ``(N, C, H, W)``, bytes or float32, as :func:`load` gives them."""
    shape = images.shape[1:] if size is None else (images.shape[1], size, size)
    _require_memory(f"the {len(images):,} images of {name}", len(images), shape)
    result = torch.empty(len(images), *shape)
    for place, part in zip(result.split(_CHUNK), images.split(_CHUNK), strict=True):
        _fill(place, part)
    return result


def _fill(place: Tensor, images: Tensor) -> None:
    """Write images to a place of their own shape, or else the central square of each, resized to that of the place."""
    values = images / 255 if images.dtype == torch.uint8 else images
    if place.shape != images.shape:
        height, width = images.shape[-2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        values = values[..., top : top + side, left : left + side]
        values = interpolate(values, place.shape[-2:], mode="bilinear", antialias=True)
        values = values.clamp(0, 1)  # weights that are rounded can add up to a little more than 1
    place.copy_(values)


def _draw(images: Tensor, generator: torch.Generator) -> None:
    """Replace every value v by 1 with probability v, else by 0."""
    for part in images.split(_CHUNK):
        part.copy_(torch.bernoulli(part, generator=generator))


def _require_memory(what: str, count: int, shape: Sequence[int]) -> None:
    needed, available = 4 * count * math.prod(shape), _available_memory()
    if needed > available:
        raise DataError(
            f"{what} take {needed / 2**30:,.1f} GiB at {_size(shape)}, and {available / 2**30:,.1f} GiB of memory are "
            "free; choose a smaller image size"
        )


def _available_memory() -> float:
    """Bytes that can be allocated without swapping; infinity where the system does not say as Linux does."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return math.inf


def _size(shape: Sequence[int]) -> str:
    """What a message says of the shape ``(C, H, W)``: width and height, as image viewers do."""
    return f"{shape[-1]}x{shape[-2]}"


_MNIST_LIKE = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_IDX_NAMES = [f"{part}-images-idx3-ubyte" for part in ("train", "t10k")]

DATASETS: dict[str, Callable[[Path, int | None, bool, torch.Generator], tuple[Images, Record]]] = {
    "digits": _digits,
    **{name: partial(_mnist_like, class_name) for name, class_name in _MNIST_LIKE.items()},
    "folder": _folder,
}
"""The data sets by name, as the functions that :func:`load_with_record` calls.

:meta hide-value:
"""
