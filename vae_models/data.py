"""Named image data sets, held in memory as tensors of shape ``(N, C, H, W)`` with grey values in [0, 1]."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

__all__ = ["DATASETS", "DataError", "Images", "batches", "load"]


class DataError(ValueError):
    """A data set that is unknown, missing or damaged, or a library that is needed to read it and does not import."""


class Images(NamedTuple):
    """The training and the test images of a data set, float32, of shapes ``(N, C, H, W)`` and ``(M, C, H, W)``."""

    train: Tensor
    test: Tensor


def load(name: str, data_root: Path = Path("data")) -> Images:
    """The images of a data set.

    Example:

        >>> train, test = load("digits")
        >>> train.shape, test.shape
        (torch.Size([1437, 1, 8, 8]), torch.Size([360, 1, 8, 8]))

    Args:
        name (str): one of :data:`DATASETS`.
        data_root (Path): the folder that holds, or is to hold, torchvision's data sets in torchvision's layout
            (``data_root/MNIST/raw``). What is not there is downloaded. ``digits`` does not need it.

    Raises:
        DataError: if the data set is unknown, is neither there nor can be downloaded, or is damaged.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; choose from {', '.join(DATASETS)}")
    return DATASETS[name](data_root)


def batches(images: Tensor, batch_size: int, *, generator: torch.Generator | None = None) -> DataLoader:
    """A loader of one-element tuples of batches, in order or, with a generator, shuffled anew every epoch.

    A batch is one indexing of the tensor by a list; no image is touched on its own in Python.
    """
    dataset = TensorDataset(images)
    order = SequentialSampler(dataset) if generator is None else RandomSampler(dataset, generator=generator)
    return DataLoader(dataset, sampler=BatchSampler(order, batch_size, drop_last=False), batch_size=None)


def _digits(data_root: Path) -> Images:
    """Scikit-learn's 1797 handwritten digits of 8×8 pixels and 17 grey values, of which 360 are for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images = load_digits().images[:, None] / 16
    train, test = train_test_split(images, test_size=360, random_state=0)
    return Images(torch.tensor(train, dtype=torch.float32), torch.tensor(test, dtype=torch.float32))


def _torchvision(class_name: str, data_root: Path) -> Images:
    datasets = _import_torchvision_datasets()
    folder = data_root / class_name
    if data_root.exists() and not data_root.is_dir():
        raise DataError(f"the data root {data_root} is not a folder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train, test = (
                getattr(datasets, class_name)(data_root, train=train, download=True) for train in (True, False)
            )
    except Exception as error:  # a failed download and a damaged file raise whatever their readers stumble over
        raise DataError(
            f"{class_name} is not whole in {folder} and could not be downloaded to it: {_first_line(error)}"
        ) from error
    for images in (train.data, test.data):
        if images.dim() != 3 or images.dtype != torch.uint8 or images.numel() == 0:
            raise DataError(f"the files in {folder} do not hold grey images of 8 bits; delete them to download anew")
    if train.data.shape[1:] != test.data.shape[1:]:
        raise DataError(f"the training and the test images in {folder} differ in size; delete them to download anew")
    return Images(train.data.unsqueeze(1) / 255, test.data.unsqueeze(1) / 255)


def _import_torchvision_datasets():
    try:
        import torchvision.datasets
    except (ImportError, RuntimeError) as error:  # the latter is what a torchvision built for another torch raises
        raise DataError(
            f"torchvision does not import beside torch {torch.__version__} ({_first_line(error)}); "
            "install the two together: pip install --upgrade torch torchvision"
        ) from error
    return torchvision.datasets


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _mnist(data_root: Path) -> Images:
    """60,000 and 10,000 handwritten digits of 28×28 pixels (LeCun et al., 1998)."""
    return _torchvision("MNIST", data_root)


def _fashion_mnist(data_root: Path) -> Images:
    """60,000 and 10,000 articles of clothing of 28×28 pixels (Xiao et al., arXiv:1708.07747)."""
    return _torchvision("FashionMNIST", data_root)


DATASETS: dict[str, Callable[[Path], Images]] = {"digits": _digits, "mnist": _mnist, "fashion-mnist": _fashion_mnist}
