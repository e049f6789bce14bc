import contextlib
import gzip
import hashlib
import os
import re
import struct
import sys
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vae_models.data import loading
from vae_models.data.loading import DATASETS, DataError, DataWarning, load, load_folder, load_with_record
from vae_models.files import FileError

CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
HEADER = struct.pack(">4I", 0x803, 12, 28, 28)


@pytest.fixture(params=CLASSES)
def mnist_like(request, tmp_path, monkeypatch):
    """A data root with 12 training and 5 test images, where so many belong, and no way to download others."""
    monkeypatch.setattr(loading, "_COUNTS", (12, 5))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("tried to download"))
    raw = tmp_path / CLASSES[request.param] / "raw"
    raw.mkdir(parents=True)
    images = torch.randint(256, (17, 1, 28, 28), dtype=torch.uint8)
    train, test = images.split([12, 5])
    for part, values in [("train", train), ("t10k", test)]:
        header = struct.pack(">4I", 0x803, len(values), 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + values.numpy().tobytes())
    return SimpleNamespace(
        name=request.param, root=tmp_path, raw=raw, file=raw / "train-images-idx3-ubyte", train=train, test=test
    )


@pytest.fixture
def pictures(tmp_path):
    """A folder of eight coloured images of 6×10 in two class folders, and what they hold."""
    values = np.random.default_rng(0).integers(256, size=(8, 6, 10, 3), dtype=np.uint8)
    for i, value in enumerate(values):
        folder = tmp_path / ("cats" if i % 2 else "dogs/small")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(value).save(folder / f"{i}.{'png' if i < 4 else 'BMP'}")
    (tmp_path / "labels.csv").write_text("not an image")
    (tmp_path / "cats" / "._1.png").write_text("what a Mac leaves behind")
    return SimpleNamespace(root=tmp_path, values=torch.from_numpy(values).permute(0, 3, 1, 2) / 255)


def ordered(images: torch.Tensor) -> torch.Tensor:
    """The images, flat and in an order of their own."""
    return torch.tensor(sorted(images.flatten(1).tolist()))


def grey(path: Path, value: int) -> None:
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(path)


def error_of(name: str, *arguments, **keywords) -> str:
    """The message of loading, which is to be one line."""
    with pytest.raises(DataError) as info:
        load(name, *arguments, **keywords)
    assert "\n" not in str(info.value)
    return str(info.value)


# The split


def test_digits_are_in_memory_and_none_is_lost(digits):
    assert [images.shape for images in digits] == [(1257, 1, 8, 8), (180, 1, 8, 8), (360, 1, 8, 8)]
    assert all(images.dtype == torch.float32 for images in digits)
    original = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    assert torch.equal(ordered(torch.cat(digits)), ordered(original))


def test_images_print_their_shapes(digits):
    assert repr(digits) == "Images(train: (1257, 1, 8, 8), validation: (180, 1, 8, 8), test: (360, 1, 8, 8))"


@pytest.mark.parametrize("binarize", ["none", "static", "dynamic"])
def test_one_seed_gives_the_same_images_and_another_gives_others(binarize):
    first, again, other = (load("digits", binarize=binarize, seed=seed) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_mnist_keeps_its_test_images_and_validates_on_a_sixth_of_the_others(mnist_like):
    images = load(mnist_like.name, mnist_like.root)
    assert [part.shape for part in images] == [(10, 1, 28, 28), (2, 1, 28, 28), (5, 1, 28, 28)]
    assert all(part.dtype == torch.float32 for part in images)
    assert torch.equal(images.test, mnist_like.test / 255)
    assert torch.equal(ordered(torch.cat(images[:2])), ordered(mnist_like.train / 255))
    other = load(mnist_like.name, mnist_like.root, seed=1)
    assert torch.equal(images.test, other.test)
    assert not torch.equal(ordered(images.validation), ordered(other.validation))


def test_unknown_names_list_the_known():
    assert error_of("cifar") == "unknown data set 'cifar'; choose from digits, mnist, fashion-mnist, folder"
    assert list(DATASETS) == ["digits", "mnist", "fashion-mnist", "folder"]
    assert "choose from none, static, dynamic" in error_of("digits", binarize="yes")
    assert "at least 1, got 0" in error_of("digits", image_size=0)
    assert issubclass(DataError, FileError)


# Resizing and binarisation


@pytest.mark.parametrize("size", [4, 8, 13])
def test_resizing_is_that_of_pillow(size, digits):
    got = load("digits", image_size=size)
    assert [images.shape[1:] for images in got] == [(1, size, size)] * 3
    for image, original in zip(got.test[:20, 0], digits.test[:20, 0], strict=True):
        expected = Image.fromarray(original.numpy()).resize((size, size), Image.Resampling.BILINEAR)
        torch.testing.assert_close(image, torch.tensor(np.asarray(expected)))


def test_resizing_stays_within_bounds(tmp_path):
    """The rounded weights of a pixel add up to more than 1 for some of these sizes."""
    for i in range(6):
        Image.fromarray(np.full((20, 20 + i), 255, np.uint8)).save(tmp_path / f"{i}.png")
    for size in (1, 2, 3, 5, 9, 13, 14, 19):
        assert 1 - 1e-6 < load("folder", tmp_path, image_size=size).train.max() <= 1


def test_binarisation_draws_from_the_grey_values(digits):
    images = load("digits", binarize="static")
    for drawn, grey in zip(images, digits, strict=True):
        assert torch.equal(drawn.unique(), torch.tensor([0.0, 1.0]))
        assert torch.equal(drawn[(grey == 0) | (grey == 1)], grey[(grey == 0) | (grey == 1)])
        for value in (0.25, 0.5, 0.75):
            few = drawn[grey == value]
            assert few.mean().item() == pytest.approx(value, abs=4 * (value * (1 - value) / len(few)) ** 0.5)


def test_dynamic_binarisation_leaves_training_images_to_the_training_step(digits):
    static, dynamic = (load("digits", binarize=name) for name in ("static", "dynamic"))
    assert torch.equal(dynamic.train, digits.train)
    assert torch.equal(dynamic.validation, static.validation)
    assert torch.equal(dynamic.test, static.test)


# The files of MNIST and Fashion-MNIST


def test_compressed_files_are_read(mnist_like):
    expected = load(mnist_like.name, mnist_like.root)
    mnist_like.file.with_suffix(".gz").write_bytes(gzip.compress(mnist_like.file.read_bytes()))
    mnist_like.file.unlink()
    assert torch.equal(load(mnist_like.name, mnist_like.root).train, expected.train)
    mnist_like.file.with_suffix(".gz").write_bytes(b"\x1f\x8b\x08 this is not gzip's")
    assert "train-images-idx3-ubyte.gz" in error_of(mnist_like.name, mnist_like.root)


def test_the_true_numbers_of_images(tmp_path):
    """With files of zeros that take no room on the disk."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in [("train", 60_000), ("t10k", 10_000)]:
        with open(raw / f"{part}-images-idx3-ubyte", "wb") as file:
            file.write(struct.pack(">4I", 0x803, count, 28, 28))
            file.truncate(16 + count * 784)
    assert [len(images) for images in load("mnist", tmp_path)] == [50_000, 10_000, 10_000]


DAMAGED = {
    "empty": (b"", "it has 0 bytes, less than a header"),
    "within the header": (HEADER[:15], "it has 15 bytes"),
    "no images": (HEADER, "it is truncated to 16 of 9,424 bytes"),
    "last byte": (HEADER + bytes(9407), "it is truncated to 9,423 of 9,424 bytes"),
    "too long": (HEADER + bytes(9409), "it is longer than the 9,424 bytes that its header says"),
    "labels": (struct.pack(">2I", 0x801, 12) + bytes(12), "it starts with 0x00000801, not 0x00000803"),
    "floats": (struct.pack(">4I", 0xD03, 12, 28, 28) + bytes(4 * 9408), "it starts with 0x00000d03"),
    "foreign": (b"<!DOCTYPE html><html>404</html>", "it starts with 0x3c21444f"),
    "count": (struct.pack(">4I", 0x803, 11, 28, 28) + bytes(11 * 784), "its header says 11 images of 28x28"),
    "size": (struct.pack(">4I", 0x803, 12, 20, 28) + bytes(12 * 560), "its header says 12 images of 20x28"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_file_is_named_and_kept(damage, mnist_like):
    content, fault = DAMAGED[damage]
    mnist_like.file.write_bytes(content)
    message = error_of(mnist_like.name, mnist_like.root)
    assert message.startswith(f"{mnist_like.file} does not hold 12 images of 28x28: {fault}")
    assert message.endswith("; move it away to download it anew")
    assert mnist_like.file.read_bytes() == content


def test_folder_in_place_of_a_file(mnist_like):
    mnist_like.file.unlink()
    mnist_like.file.mkdir()
    assert f"cannot read {mnist_like.file}" in error_of(mnist_like.name, mnist_like.root)


def test_only_what_is_missing_is_downloaded(mnist_like, monkeypatch):
    content = mnist_like.file.read_bytes()
    (mnist_like.raw / "t10k-images-idx3-ubyte").unlink()

    def torchvision_class(root, download):
        raw = Path(root, "raw")
        raw.mkdir()
        (raw / "train-images-idx3-ubyte").write_bytes(b"other")
        (raw / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 5, 28, 28) + bytes([51]) * 5 * 784)
        (raw / "t10k-images-idx3-ubyte.gz").write_bytes(b"compressed")
        return SimpleNamespace(raw_folder=str(raw))

    monkeypatch.setattr(f"torchvision.datasets.{CLASSES[mnist_like.name]}", torchvision_class)
    images = load(mnist_like.name, mnist_like.root)
    assert torch.equal(images.test, torch.full((5, 1, 28, 28), 0.2))
    assert mnist_like.file.read_bytes() == content
    assert sorted(os.listdir(mnist_like.raw)) == ["t10k-images-idx3-ubyte", "train-images-idx3-ubyte"]
    assert os.listdir(mnist_like.root) == [CLASSES[mnist_like.name]]


def test_no_download_to_where_a_file_says(tmp_path):
    """A stranger's settings name a folder: it is not written to."""
    with pytest.raises(DataError, match="FashionMNIST is not whole in .*: say by --data-root where it is"):
        load_with_record("fashion-mnist", tmp_path / "elsewhere", download=False)
    assert os.listdir(tmp_path) == []


def test_missing_data_set_and_no_network(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    for root in (tmp_path, tmp_path / "new" / "root"):
        message = error_of("mnist", root)
        assert f"MNIST is not whole in {root / 'MNIST'} and could not be downloaded to it" in message
        assert "no route to host" in message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["mnist", "folder"])
def test_root_that_is_a_file(name, tmp_path):
    root = tmp_path / "file"
    root.write_text("")
    assert error_of(name, root) == f"the data root {root} is not a folder"
    assert str(root / "below") in error_of(name, root / "below")


def test_torchvision_is_not_installed(mnist_like, monkeypatch):
    """It is needed to download, not to read what is there."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
    assert len(load(mnist_like.name, mnist_like.root).test) == 5
    assert "torchvision does not import beside torch" in error_of("mnist", mnist_like.root / "elsewhere")


def test_torchvision_was_built_for_another_torch(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist\\nmore")'
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    message = error_of("fashion-mnist", tmp_path)
    assert "torchvision::nms does not exist" in message
    assert "pip install" in message


# A folder of images


def test_folder_in_colour(pictures):
    images = load("folder", pictures.root, color=True)
    assert [part.shape for part in images] == [(5, 3, 6, 10), (1, 3, 6, 10), (2, 3, 6, 10)]
    assert torch.equal(ordered(torch.cat(images)), ordered(pictures.values))
    assert not torch.equal(images.test, load("folder", pictures.root, color=True, seed=1).test)


def test_split_of_a_folder_does_not_depend_on_the_order_of_its_files_on_the_disk(pictures, monkeypatch):
    expected = load("folder", pictures.root)
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: contextlib.nullcontext(reversed(list(scandir(path)))))
    for got, part in zip(load("folder", pictures.root), expected, strict=True):
        assert torch.equal(got, part)


def test_folder_of_links(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("links")
    for name in ("cats", "dogs"):
        (folder / name).symlink_to(pictures.root / name)
    assert torch.equal(load("folder", folder).train, load("folder", pictures.root).train)


def test_folder_turned_grey(pictures):
    images = torch.cat(load("folder", pictures.root))
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R 601
    expected = (pictures.values * luma).sum(1, keepdim=True)
    torch.testing.assert_close(ordered(images), ordered((expected * 255).round() / 255), atol=1.01 / 255, rtol=0)


def test_folder_without_classes_and_already_grey(tmp_path):
    for i in range(6):
        grey(tmp_path / f"{i}.png", 51 * i)
    images = torch.cat(load("folder", tmp_path))
    assert torch.equal(ordered(images), (torch.arange(6).view(6, 1) / 5).expand(6, 20))


def test_folder_of_several_sizes(pictures):
    """The central square of each is resized: here a white square between two black margins."""
    for i in range(3):
        values = np.zeros((8 + i, 20), np.uint8)
        values[:, (12 - i) // 2 : -((13 - i) // 2)] = 255
        Image.fromarray(values).save(pictures.root / f"wide{i}.png")
    assert re.search(
        r"/\w+\.\w+ is of size \d+x\d+ and .* of \d+x\d+; give an image size", error_of("folder", pictures.root)
    )
    images = torch.cat(load("folder", pictures.root, image_size=4))
    assert images.shape == (11, 1, 4, 4)
    assert sum(image.min().item() > 1 - 1e-6 for image in images) == 3


def test_image_that_cannot_be_read_is_named(pictures):
    path = pictures.root / "cats" / "damaged.png"
    path.write_bytes(b"")
    assert f"cannot read the image {path}" in error_of("folder", pictures.root)


def test_folder_with_too_few_images(tmp_path):
    """Before they are read: the last of the final metrics would be one over a single image."""
    for number in range(6):
        word = "image" if number == 1 else "images"
        assert error_of("folder", tmp_path) == (
            f"the folder {tmp_path} holds {number} {word}; 6 are needed: 3 to train on, 1 for validation and 2 for the "
            "final metrics"
        )
        grey(tmp_path / f"{number}.png", number)
    assert [len(part) for part in load("folder", tmp_path)] == [3, 1, 2]
    assert f"{tmp_path / 'none'} does not exist" in error_of("folder", tmp_path / "none")


def test_copies_are_one_image_and_the_user_is_told(tmp_path):
    for number in range(20):
        grey(tmp_path / f"{number:02}.png", number)
    expected = load("folder", tmp_path)
    for name in ("03", "07"):
        (tmp_path / f"{name} (copy).png").write_bytes((tmp_path / f"{name}.png").read_bytes())
    with pytest.warns(DataWarning, match=f"2 files are copies in {tmp_path}, .* there are 20"):
        images = load("folder", tmp_path)
    for got, part in zip(images, expected, strict=True):
        assert torch.equal(got, part)


def test_too_few_images_but_for_copies(tmp_path):
    for number in range(5):
        grey(tmp_path / f"{number}.png", number)
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    with pytest.warns(DataWarning, match="copy.png is a copy"):
        assert "holds 5 images; 6 are needed" in error_of("folder", tmp_path)


def test_all_images_of_a_folder(pictures):
    images, files = load_folder(pictures.root, color=True)
    assert [file.name for file in files] == [*(f"cats/{i}" for i in ("1.png", "3.png", "5.BMP", "7.BMP"))] + [
        *(f"dogs/small/{i}" for i in ("0.png", "2.png", "4.BMP", "6.BMP"))
    ]
    assert torch.equal(images, pictures.values[[1, 3, 5, 7, 0, 2, 4, 6]])
    drawn, _ = load_folder(pictures.root, binarize="dynamic", seed=3)
    assert torch.equal(drawn.unique(), torch.tensor([0.0, 1.0]))
    assert torch.equal(drawn, load_folder(pictures.root, binarize="static", seed=3)[0])
    (pictures.root / "dogs" / "empty").mkdir()
    with pytest.raises(DataError, match="holds 0 images; 2 are needed, for the standard errors"):
        load_folder(pictures.root / "dogs" / "empty")


# The record of what was loaded


def test_record_says_which_file_is_in_which_set(pictures):
    images, record = load_with_record("folder", pictures.root, color=True)
    for name, part in images._asdict().items():
        files = record["files"][name]
        numbers = [int(Path(each).stem) for each in files]
        assert torch.equal(ordered(part), ordered(pictures.values[numbers]))
        for each, checksum in files.items():
            assert checksum == hashlib.sha256((pictures.root / each).read_bytes()).hexdigest()


@pytest.mark.parametrize("options", [{"image_size": 4}, {"binarize": "static"}])
def test_record_is_that_of_the_values_as_they_are_kept(options, mnist_like):
    """What rounding makes of them on one machine or another is the same data set."""
    plain = load_with_record(mnist_like.name, mnist_like.root)[1]
    assert load_with_record(mnist_like.name, mnist_like.root, **options)[1] == plain
    assert load_with_record(mnist_like.name, mnist_like.root, seed=1)[1] != plain  # split otherwise
    assert plain["tensors"]["test"] == {
        "shape": [5, 1, 28, 28],
        "dtype": "uint8",
        "sha256": hashlib.sha256(mnist_like.test.numpy().tobytes()).hexdigest(),
    }


# Memory


def test_what_does_not_fit_in_memory_is_not_loaded(pictures, monkeypatch):
    reads = []
    read = loading.read_image
    monkeypatch.setattr(loading, "read_image", lambda *arguments: reads.append(arguments) or read(*arguments))
    message = error_of("folder", pictures.root, image_size=10**6)
    assert len(reads) == 1
    assert f"the 8 images in {pictures.root} take 29,802.3 GiB at 1000000x1000000" in message
    assert "the 1,797 images of digits take" in error_of("digits", image_size=10**6)
    needed = 4 * 8 * 60
    monkeypatch.setattr(loading, "_available_memory", lambda: needed)
    load("folder", pictures.root)
    monkeypatch.setattr(loading, "_available_memory", lambda: needed - 1)
    assert "choose a smaller image size" in error_of("folder", pictures.root)


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="reads /proc/meminfo")
def test_available_memory_is_part_of_all():
    assert 2**20 < loading._available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
