"""Folders of image files: which files are images, and the array of what a viewer shows of one."""

import hashlib
import io
import os
import stat
import warnings
from collections import Counter, deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae_models.files import SOFTWARE, DataError, DataWarning, first_line, reason

__all__ = ["EXTENSIONS", "ImageFile", "find_images", "list_images", "read_image"]

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""How the names of image files end, in lower or upper case."""

# Images too, which are not read. That they are passed over is said.
_OTHER_EXTENSIONS = (".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".pbm", ".pnm", ".svg", ".tga")

# Folders in which systems and servers keep previews and deleted files. Hidden ones are passed over whatever their name.
_NOT_ONES_OWN = {"@eadir", "__macosx", "@recycle", "#recycle", "$recycle.bin", "lost+found"}

# What a file is said to be by its content, not by its name; none of them runs another program, as EPS does.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


# Near its start a picture of vae_models has this chunk of PNG: a folder may hold runs beside images.
_OUR_MARK, _MARKED = b"tEXtSoftware\0" + SOFTWARE.encode(), 200


class ImageFile(NamedTuple):
    """An image of a folder."""

    name: str
    """Its path from the folder on, with ``/`` on every system."""
    path: Path
    """Its path."""
    checksum: str
    """The SHA-256 of its content, in hexadecimal digits."""


def list_images(root: Path) -> list[Path]:
    """The files in a folder and in those below it that are images by their names, in the order of these.

    Hidden files and folders are passed over, and folders in which systems keep previews and deleted files. Links to
    folders are followed, but not upwards, and every folder is entered once.

    Raises:
        DataError: if the folder is missing or a folder below it can't be read.
    """
    if not root.is_dir():
        raise DataError(f"the data root {root} {'is not a folder' if root.exists() else 'does not exist'}")
    files, entered, others = [], set(), Counter[str]()
    # Links wait until every folder was entered under its own name.
    folders = deque([root])
    while folders:
        folder = folders.popleft()
        try:
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in entered:
                continue
            entered.add((state.st_dev, state.st_ino))
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    extension = os.path.splitext(entry.name)[1].lower()
                    if entry.name.startswith(".") or entry.name.lower() in _NOT_ONES_OWN:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.appendleft(Path(entry))
                    elif entry.is_dir():
                        if not folder.resolve().is_relative_to(Path(entry).resolve()):  # up, where others' images are
                            folders.append(Path(entry))
                    elif extension in EXTENSIONS:
                        files.append(Path(entry))
                    elif extension in _OTHER_EXTENSIONS:
                        others[extension] += 1
        except OSError as error:
            raise DataError(f"cannot read the folder {folder}: {reason(error)}") from error
    if others:
        kinds = ", ".join(f"{count} {extension}" for extension, count in sorted(others.items()))
        warnings.warn(f"files in {root} that are not read: {kinds}; convert them to .png", DataWarning, stacklevel=2)
    return sorted(files)


def find_images(root: Path, paths: list[Path]) -> list[ImageFile]:
    """The images among files below a folder, each with its checksum. Of equal files there is only the first: a copy
    would be in the training and in the test set. Pictures that vae_models itself wrote are no data.

    Raises:
        DataError: if a file can't be read.
    """
    images: dict[str, ImageFile] = {}
    copies = []
    for path in paths:
        content = _content(path)
        if _OUR_MARK in content[:_MARKED]:
            continue
        image = ImageFile(path.relative_to(root).as_posix(), path, hashlib.sha256(content).hexdigest())
        if image.checksum in images:
            copies.append(image.name)
        images.setdefault(image.checksum, image)
    if copies:
        said = f"{copies[0]} is a copy of another image" if len(copies) == 1 else f"{len(copies):,} files are copies"
        warnings.warn(
            f"{said} in {root}, and equal files count as one image: there are {len(images):,}",
            DataWarning,
            stacklevel=2,
        )
    return list(images.values())


def read_image(path: Path, color: bool) -> Tensor:
    """What a viewer shows of an image file: bytes of shape ``(C, H, W)``, or float32 in [0, 1] if it has 16 bits.

    The image is turned as its EXIF orientation says and converted to sRGB from the profile that it carries; transparent
    pixels are shown on white. Colours become grey by ITU-R 601.

    Args:
        path (Path): the file.
        color (bool): whether with three channels or one.

    Raises:
        DataError: if the file can't be read, has several frames, or has values of which nobody says what is white. The
            message names the file.
    """
    content = _content(path)
    try:
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            values = _read(content, color)
    except Exception as error:  # a damaged file raises whatever the reader of its format stumbles over
        raise DataError(f"cannot read the image {path}: {first_line(error)}") from error
    for remark in remarks:  # such as damaged EXIF data
        if "DecompressionBombWarning" not in remark.category.__name__:
            warnings.warn(f"the image {path}: {first_line(remark.message)}", DataWarning, stacklevel=2)
    return torch.from_numpy(values.copy())


def _content(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for ever
            raise DataError(f"cannot read the image {path}: it is not a file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {reason(error)}") from error


def _read(content: bytes, color: bool) -> np.ndarray:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(_FORMATS)}, or damaged") from None
    with opened as image:
        kind = image.format
        # MPO is a photo as telephones make it: a JPEG with a preview or a map of depths behind it.
        if kind != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"it has {image.n_frames} frames")  # type: ignore[attr-defined]
        tags = dict(image.tag_v2) if kind == "TIFF" else {}  # type: ignore[attr-defined]
        if not {1, 4} >= set(tags.get(_SAMPLE_FORMAT, (1,))):
            raise ValueError("its values are signed or floating-point ones, of no known range")
        depth = content[_PNG_DEPTH] if kind == "PNG" else 8
        if "transparency" in image.info and image.mode != "P" and depth not in (1, 8):
            raise ValueError(f"it has a transparent colour in {depth} bits per value; convert it to an alpha channel")
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
            return _deep_grey(ImageOps.exif_transpose(image), tags, color)
        if image.mode in ("I", "F"):
            raise ValueError(f"its values, of Pillow's mode {image.mode}, are of no known range")
        shown = _in_srgb(_on_white(ImageOps.exif_transpose(image)))
        values = np.asarray(shown.convert("RGB" if color else "L"))
    return values.transpose(2, 0, 1) if color else values[np.newaxis]


_SAMPLE_FORMAT, _PHOTOMETRIC, _BITS_PER_SAMPLE = 339, 262, 258  # tags of TIFF; the first: 1 unsigned, 4 not said
_PNG_DEPTH = 24  # where the byte is: behind the signature and the start and the sizes of the header


def _deep_grey(image: Any, tags: dict[int, Any], color: bool) -> np.ndarray:
    """Grey values of more than 8 bits, which Pillow's conversion to 8 would cut off at 255."""
    (bits,) = tags.get(_BITS_PER_SAMPLE, (16,))
    values = np.asarray(image).astype(np.float32) / (2**bits - 1)
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0
        values = 1 - values
    return values[np.newaxis].repeat(3 if color else 1, 0)


def _on_white(image: Any) -> Any:
    """The image without transparency, which viewers show on a ground of their own: here on white."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    base = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    layer = image.convert(f"{base}A")
    shown = Image.composite(layer.convert(base), Image.new(base, image.size, "white"), layer.getchannel("A"))
    shown.info["icc_profile"] = image.info.get("icc_profile")
    return shown


def _in_srgb(image: Any) -> Any:
    """The image without a colour profile of its own. A profile that makes no sense is passed over, as by viewers."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        plain = image if image.mode in ("L", "RGB", "CMYK", "LAB") else image.convert("RGB")
        return ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image
