import struct
import sys
import urllib.error
from types import SimpleNamespace

import pytest
import torch

from vae_models.data import DATASETS, DataError, batches, load


def write_idx(path, array: torch.Tensor) -> None:
    """Write a tensor of bytes in the format of the MNIST files."""
    header = struct.pack(f">HBB{array.dim()}I", 0, 8, array.dim(), *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.to(torch.uint8).numpy().tobytes())


@pytest.fixture(params=["MNIST", "FashionMNIST"])
def mnist_like(request, tmp_path):
    """A data root with a few images of known content, the name of the data set, and its images."""
    raw = tmp_path / request.param / "raw"
    expected = {}
    for part, n in [("train", 7), ("t10k", 5)]:
        expected[part] = torch.randint(256, (n, 28, 28))
        write_idx(raw / f"{part}-images-idx3-ubyte", expected[part])
        write_idx(raw / f"{part}-labels-idx1-ubyte", torch.arange(n) % 10)
    name = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist"}[request.param]
    return SimpleNamespace(root=tmp_path, raw=raw, name=name, **expected)


def test_digits(digits):
    assert digits.train.shape == (1437, 1, 8, 8)
    assert digits.test.shape == (360, 1, 8, 8)
    for images in digits:
        assert images.dtype == torch.float32
        assert images.min() == 0
        assert images.max() == 1
        assert torch.equal((images * 16).round(), images * 16)


def test_digits_are_split_the_same_way_every_time(digits):
    again = load("digits")
    assert torch.equal(again.train, digits.train)
    assert torch.equal(again.test, digits.test)
    everything = torch.cat([digits.train, digits.test]).flatten(1)
    from sklearn.datasets import load_digits

    original = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    # Sums of columns and of squares are the same only if no image is lost or taken twice.
    torch.testing.assert_close(everything.sum(0), original.sum(0))
    torch.testing.assert_close(everything.T @ everything, original.T @ original)


def test_torchvision_layout_is_read_without_a_download(mnist_like, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("tried to download"))
    images = load(mnist_like.name, mnist_like.root)
    assert images.train.dtype == torch.float32
    torch.testing.assert_close(images.train, mnist_like.train.unsqueeze(1) / 255)
    torch.testing.assert_close(images.test, mnist_like.t10k.unsqueeze(1) / 255)


def test_unknown_name_lists_the_known():
    with pytest.raises(DataError, match="cifar.*digits, mnist, fashion-mnist"):
        load("cifar")
    assert list(DATASETS) == ["digits", "mnist", "fashion-mnist"]


def test_missing_data_set_and_no_network(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match="could not be downloaded") as info:
        load("mnist", tmp_path)
    assert str(tmp_path / "MNIST") in str(info.value)
    assert "\n" not in str(info.value)


def test_root_that_is_a_file(tmp_path):
    root = tmp_path / "file"
    root.write_text("")
    with pytest.raises(DataError, match=f"{root} is not a folder"):
        load("mnist", root)


def test_root_under_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/below"):
        load("mnist", tmp_path / "file" / "below")


def test_truncated_file(mnist_like):
    path = mnist_like.raw / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=mnist_like.raw.parent.name):
        load(mnist_like.name, mnist_like.root)


@pytest.mark.parametrize(
    "images", [torch.zeros(5, 20, 20), torch.zeros(0, 28, 28), torch.zeros(28, 28)], ids=["size", "none", "flat"]
)
def test_file_of_other_content(mnist_like, images):
    write_idx(mnist_like.raw / "t10k-images-idx3-ubyte", images)
    with pytest.raises(DataError, match=mnist_like.raw.parent.name):
        load(mnist_like.name, mnist_like.root)


def test_torchvision_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
    with pytest.raises(DataError, match="torchvision does not import beside torch") as info:
        load("mnist")
    assert "\n" not in str(info.value)
    assert load("digits").train.shape[0] == 1437


def test_torchvision_was_built_for_another_torch(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist\\nmore")'
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"torchvision::nms does not exist.*pip install") as info:
        load("fashion-mnist")
    assert "\n" not in str(info.value)


def test_batches_in_order():
    images = torch.arange(10.0).reshape(10, 1, 1, 1).expand(10, 1, 2, 2)
    got = [batch for (batch,) in batches(images, 4)]
    assert [len(batch) for batch in got] == [4, 4, 2]
    assert torch.equal(torch.cat(got), images)


def test_batches_shuffled_anew_every_epoch_and_repeatably():
    images = torch.arange(50.0).reshape(50, 1, 1, 1)

    def two_epochs(seed):
        loader = batches(images, 8, generator=torch.Generator().manual_seed(seed))
        return [torch.cat([batch for (batch,) in loader]).flatten() for _ in range(2)]

    first, second = two_epochs(0)
    assert torch.equal(first.sort().values, images.flatten())
    assert not torch.equal(first, images.flatten())
    assert not torch.equal(first, second)
    assert torch.equal(torch.stack(two_epochs(0)), torch.stack([first, second]))
    assert not torch.equal(two_epochs(1)[0], first)
