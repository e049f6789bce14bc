"""The expected arrays are worked out by hand; files that Pillow doesn't write are put together byte by byte."""

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from vae_models.data.image_files import find_images, list_images, read_image
from vae_models.files import DataError, DataWarning
from vae_models.results import figures

GREY = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
RGB = np.random.default_rng(0).integers(256, size=(2, 3, 3), dtype=np.uint8)
DEEP = np.array([[0, 1, 300], [4660, 40_000, 65_535]], np.uint16)


def saved(path: Path, image: Image.Image | np.ndarray, **options) -> Path:
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def png(path: Path, size: tuple[int, int], depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG file of width and height, bits per value, kind of colour, and rows that each start with a 0."""
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)
    return path


def tiff(path: Path, values: np.ndarray, **tags: int) -> Path:
    """A grey TIFF file of one strip."""
    numbers = {"bits": 258, "photometric": 262, "sample_format": 339}
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    entries = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    entries |= {279: len(data)} | {numbers[name]: value for name, value in tags.items()}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    header = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    path.write_bytes(header + data + struct.pack("<H", len(entries)) + directory + bytes(4))
    return path


def shown(path: Path, color: bool = False) -> np.ndarray:
    """Values of 0 to 255, of shape (H, W) or (H, W, 3)."""
    values = read_image(path, color)
    assert values.dtype in (torch.uint8, torch.float32)
    assert values.shape[0] == (3 if color else 1)
    return values.permute(1, 2, 0).numpy() if color else values[0].numpy()


def fault(path: Path) -> str:
    with pytest.raises(DataError) as info:
        read_image(path, False)
    message = str(info.value)
    assert message.startswith(f"cannot read the image {path}: ")
    assert "\n" not in message
    assert "0x" not in message
    return message


# Which files are images


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_images(root)]


@pytest.fixture
def tree(tmp_path):
    for i, name in enumerate(["a/1.png", "a/deep/2.JPG", "b/3.webp", "4.tiff"]):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        saved(path, GREY + i)
    return tmp_path / "tree"


HERE = ["4.tiff", "a/1.png", "a/deep/2.JPG", "b/3.webp"]


def test_names_are_in_order_and_in_any_case(tree):
    (tree / "labels.csv").write_text("x")
    assert names(tree) == HERE
    assert [image.name for image in find_images(tree, list_images(tree))] == HERE


@pytest.mark.parametrize(
    "folder",
    [
        ".ipynb_checkpoints",
        ".thumbnails",
        "@eaDir",
        "a/@eaDir/1.png",
        "__MACOSX/a",
        ".git",
        "a/.hidden/deeper",
        "#recycle",
    ],
)
def test_folders_of_previews_and_hidden_ones_are_passed_over(folder, tree):
    (tree / folder).mkdir(parents=True)
    saved(tree / folder / "1.png", GREY)
    saved(tree / "a" / "._1.png", GREY)
    saved(tree / ".5.png", GREY)
    assert names(tree) == HERE


def test_root_may_be_hidden(tmp_path):
    (tmp_path / ".cache").mkdir()
    saved(tmp_path / ".cache" / "1.png", GREY)
    assert names(tmp_path / ".cache") == ["1.png"]


def test_every_folder_is_entered_once_under_its_own_name(tree, tmp_path):
    (tree / "a" / "up").symlink_to(tree)
    (tree / "a" / "deep" / "self").symlink_to(".")
    (tree / "0").symlink_to(tree / "b")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    saved(elsewhere / "5.png", GREY)
    (elsewhere / "back").symlink_to(tree)
    (tree / "z").symlink_to(elsewhere)
    (tree / "zz").symlink_to(elsewhere)
    saved(tmp_path / "other.png", GREY)
    (tree / "b" / "above").symlink_to(tmp_path)
    assert names(tree) == [*HERE, "z/5.png"]


def test_folder_that_is_named_like_an_image(tree):
    (tree / "c.png").mkdir()
    saved(tree / "c.png" / "5.png", GREY)
    assert names(tree) == [*HERE, "c.png/5.png"]


def test_folder_that_cannot_be_read_is_named(tree, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=f"cannot read the folder {tree / 'a'}: Permission denied"):
        list_images(tree)


def test_other_image_files_are_counted(tree):
    for name in ("x.gif", "y.HEIC", "z.heic"):
        (tree / name).write_bytes(b"")
    with pytest.warns(DataWarning, match=f"files in {tree} that are not read: 1 .gif, 2 .heic; convert them to .png"):
        assert names(tree) == HERE


def test_copies_are_left_out(tree):
    (tree / "c.jpg").write_bytes((tree / "a" / "1.png").read_bytes())
    with pytest.warns(DataWarning, match="c.jpg is a copy .* there are 4"):
        assert [image.name for image in find_images(tree, list_images(tree))] == HERE


def test_pictures_that_were_made_of_a_model_are_no_images(tree):
    sheet = figures.samples({"ar1": torch.rand(64, 1, 8, 8)}, title="Samples")
    (tree / "samples.png").write_bytes(figures.png(sheet))
    assert [image.name for image in find_images(tree, list_images(tree))] == HERE


def test_pipe_in_place_of_a_file_is_named_not_waited_for(tree):
    os.mkfifo(tree / "5.png")
    assert "it is not a file" in fault(tree / "5.png")
    with pytest.raises(DataError, match="5.png: it is not a file"):
        find_images(tree, list_images(tree))


def test_link_to_nothing_is_named(tree):
    (tree / "5.png").symlink_to("gone")
    assert "No such file" in fault(tree / "5.png")


def test_name_that_is_no_utf8(tree):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        saved(tree / name, GREY + 9)
    except OSError:
        pytest.skip("the file system takes no such names")
    assert name in [image.name for image in find_images(tree, list_images(tree))]


# What is read of a file: values


@pytest.mark.parametrize("kind", ["png", "bmp", "tif", "pgm"])
def test_grey(kind, tmp_path):
    path = saved(tmp_path / f"x.{kind}", GREY)
    np.testing.assert_array_equal(shown(path), GREY)
    np.testing.assert_array_equal(shown(path, color=True), np.stack([GREY] * 3, -1))


@pytest.mark.parametrize("kind", ["png", "bmp", "tif", "ppm"])
def test_colours(kind, tmp_path):
    path = saved(tmp_path / f"x.{kind}", RGB)
    np.testing.assert_array_equal(shown(path, color=True), RGB)
    np.testing.assert_allclose(shown(path), RGB @ [0.299, 0.587, 0.114], atol=0.51)


def test_kind_is_that_of_the_content(tmp_path):
    path = saved(tmp_path / "x.png", RGB, format="BMP")
    np.testing.assert_array_equal(shown(path, color=True), RGB)


@pytest.mark.parametrize(("depth", "row"), [(1, 0b0101_0000), (2, 0b0001_1011)])
def test_few_bits(depth, row, tmp_path):
    path = png(tmp_path / "x.png", (4, 1), depth, 0, bytes([0, row]))
    expected = [0, 255, 0, 255] if depth == 1 else [0, 85, 170, 255]
    np.testing.assert_array_equal(shown(path), [expected])


def test_palette(tmp_path):
    colours = bytes([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    path = png(tmp_path / "x.png", (4, 1), 2, 3, b"\0\x1b", (b"PLTE", colours))
    assert shown(path, color=True).tolist() == [[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]]


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_scaled_not_cut_off(kind, tmp_path):
    path = saved(tmp_path / f"x.{kind}", DEEP)
    np.testing.assert_allclose(shown(path), DEEP / 65_535, rtol=1e-6)
    np.testing.assert_allclose(shown(path, color=True), np.stack([DEEP] * 3, -1) / 65_535, rtol=1e-6)


def test_grey_of_16_bits_with_the_larger_byte_first(tmp_path):
    path = saved(tmp_path / "x.tif", Image.frombytes("I;16B", (3, 2), DEEP.astype(">u2").tobytes()))
    np.testing.assert_allclose(shown(path), DEEP / 65_535, rtol=1e-6)


def test_grey_of_odd_scales(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5 2 1 1000\n" + struct.pack(">HH", 500, 1000))
    np.testing.assert_allclose(shown(tmp_path / "x.pgm"), [[0.5, 1.0]], atol=1e-4)
    (tmp_path / "y.pgm").write_bytes(b"P5 2 1 15\n" + bytes([5, 15]))
    np.testing.assert_array_equal(shown(tmp_path / "y.pgm"), [[85, 255]])


def test_tiff_whose_white_is_zero(tmp_path):
    np.testing.assert_array_equal(shown(tiff(tmp_path / "8.tif", GREY, photometric=0)), 255 - GREY)
    np.testing.assert_allclose(shown(tiff(tmp_path / "16.tif", DEEP, photometric=0)), 1 - DEEP / 65_535, atol=1e-6)


def test_colours_of_16_bits(tmp_path):
    path = png(tmp_path / "x.png", (1, 1), 16, 2, b"\0" + struct.pack(">HHH", 0x12FF, 0x8000, 0xFFFF))
    assert shown(path, color=True).tolist() == [[[0x12, 0x80, 0xFF]]]


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        (GREY.astype(np.int8), {"sample_format": 2}),
        (DEEP.astype(np.int16), {"sample_format": 2}),
        (DEEP.astype(np.uint32), {}),
        (DEEP.astype(np.int32), {"sample_format": 2}),
        (DEEP.astype(np.float32), {"sample_format": 3}),
    ],
    ids=["int8", "int16", "uint32", "int32", "float32"],
)
def test_values_of_no_known_range_are_refused(values, tags, tmp_path):
    assert "no known range" in fault(tiff(tmp_path / "x.tif", values, **tags))


# Transparency


LAYERS = {
    "LA": ([(0, 255), (0, 0), (100, 51)], [0, 255, 224]),
    "RGBA": ([(9, 9, 9, 255), (0, 0, 0, 0), (100, 100, 100, 51)], [9, 255, 224]),
}


@pytest.mark.parametrize("mode", LAYERS)
@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
def test_transparent_pixels_are_on_white(kind, mode, tmp_path):
    pixels, expected = LAYERS[mode]
    image = Image.new(mode, (3, 1))
    image.putdata(pixels)
    path = saved(tmp_path / f"x.{kind}", image, **({"lossless": True} if kind == "webp" else {}))
    np.testing.assert_allclose(shown(path), [expected], atol=1)
    np.testing.assert_allclose(shown(path, color=True), np.array(expected)[None, :, None].repeat(3, 2), atol=1)


def test_transparent_colours(tmp_path):
    """PNG's chunk tRNS, for a palette, for grey values of one and of eight bits, and for colours."""
    palette = [(b"PLTE", bytes(12)), (b"tRNS", b"\0\xff")]
    assert shown(png(tmp_path / "p.png", (4, 1), 2, 3, b"\0\x1b", *palette)).tolist() == [[255, 0, 0, 0]]
    for depth, row, key in [(1, b"\0\x50", 0), (8, b"\0\0\xff\0\xff", 0)]:
        path = png(tmp_path / f"{depth}.png", (4, 1), depth, 0, row, (b"tRNS", struct.pack(">H", key)))
        assert shown(path).tolist() == [[255] * 4]
    path = png(tmp_path / "rgb.png", (2, 1), 8, 2, b"\0\1\2\3\4\5\6", (b"tRNS", struct.pack(">HHH", 1, 2, 3)))
    assert shown(path, color=True).tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize(
    ("depth", "kind", "row", "key"),
    [(2, 0, b"\x1b", (1,)), (4, 0, b"\x12\x34", (1,)), (16, 0, bytes(8), (0,)), (16, 2, bytes(24), (0, 0, 0))],
)
def test_transparent_colour_that_pillow_misses_is_refused(depth, kind, row, key, tmp_path):
    path = png(tmp_path / "x.png", (4, 1), depth, kind, b"\0" + row, (b"tRNS", struct.pack(f">{len(key)}H", *key)))
    assert f"it has a transparent colour in {depth} bits per value" in fault(path)


# Tags


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("deep", [False, True])
def test_orientation(kind, deep, tmp_path):
    """One half is white. The eight orientations put it left, right, right, left, top, top, bottom, bottom."""
    if deep and kind in ("jpg", "webp"):
        pytest.skip("has no 16 bits")
    values = np.zeros((16, 32), np.uint16 if deep else np.uint8)
    values[:, :16] = np.iinfo(values.dtype).max
    sides = {"left": np.s_[4:-4, :8], "right": np.s_[4:-4, -8:], "top": np.s_[:8, 4:-4], "bottom": np.s_[-8:, 4:-4]}
    for orientation, side in enumerate(["left", "right", "right", "left", "top", "top", "bottom", "bottom"], start=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = shown(saved(tmp_path / f"{orientation}.{kind}", values, exif=exif))
        assert image.shape == ((16, 32) if orientation < 5 else (32, 16))
        assert image[sides[side]].min() > 0.9 * image.max()
        opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[side]
        assert image[sides[opposite]].max() < 0.1 * image.max()


def test_colour_profile(tmp_path):
    """That of sRGB changes nothing; L*a*b* values become colours by theirs; and one that is no profile is ignored."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(shown(saved(tmp_path / "s.png", RGB, icc_profile=srgb), color=True), RGB)
    np.testing.assert_array_equal(shown(saved(tmp_path / "n.png", RGB, icc_profile=b"none"), color=True), RGB)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    grey = Image.new("LAB", (2, 1))
    grey.putdata([(255, 128, 128), (0, 128, 128)])
    path = saved(tmp_path / "x.tif", grey, icc_profile=lab)
    np.testing.assert_allclose(shown(path, color=True), [[[255] * 3, [0] * 3]], atol=3)
    assert "LAB" in fault(saved(tmp_path / "y.tif", grey))


def test_printing_inks(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("jpg", "tif"):
        red = shown(saved(tmp_path / f"x.{kind}", image), color=True)
        np.testing.assert_allclose(red, np.full((16, 16, 3), [255, 0, 0]), atol=3)


# Files that are refused


FRAMES = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]


@pytest.mark.parametrize(("name", "kind"), [("x.png", "PNG"), ("x.tif", "TIFF"), ("x.webp", "WEBP"), ("x.png", "GIF")])
def test_several_frames_are_refused(name, kind, tmp_path):
    path = saved(tmp_path / name, FRAMES[0], format=kind, save_all=True, append_images=FRAMES[1:])
    assert "it has 2 frames" in fault(path)


def test_photo_with_a_preview_is_a_photo(tmp_path):
    """Telephones put several pictures into one JPEG file, of which viewers show the first."""
    path = saved(tmp_path / "x.jpg", FRAMES[0], format="MPO", save_all=True, append_images=FRAMES[1:], quality=100)
    np.testing.assert_allclose(shown(path), GREY, atol=30)


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: b"text", lambda content: content[:-30], lambda content: content[:200]],
    ids=["empty", "foreign", "end", "middle"],
)
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "tif", "ppm"])
def test_damaged_file_is_refused(kind, damage, tmp_path):
    image = np.random.default_rng(1).integers(256, size=(16, 20, 3), dtype=np.uint8)
    path = saved(tmp_path / f"x.{kind}", image)
    read_image(path, True)
    path.write_bytes(damage(path.read_bytes()))
    fault(path)


def test_no_program_is_run_for_a_file(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert "none of BMP, GIF, JPEG, PNG" in fault(tmp_path / "x.png")


def test_too_many_pixels(tmp_path, monkeypatch):
    """Some hundred million are a bomb to Pillow; of half of that it warns, which is a good photo."""
    path = saved(tmp_path / "x.png", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(shown(path), GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    assert "exceeds limit of 4 pixels" in fault(path)


def test_what_pillow_remarks_is_said_with_the_name(tmp_path):
    entry = struct.pack("<HHHII", 1, 0x010E, 2, 60, 9999)  # a description of 60 letters that lie outside
    path = saved(tmp_path / "x.jpg", GREY, quality=100, exif=b"Exif\0\0II*\0" + struct.pack("<I", 8) + entry + bytes(4))
    with pytest.warns(DataWarning, match=f"the image {path}: Tag data larger than file"):
        np.testing.assert_allclose(shown(path), GREY, atol=30)
