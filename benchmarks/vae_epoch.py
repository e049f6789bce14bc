"""A training epoch on MNIST as the command trains, beside two loops in plain PyTorch over the same images and network.

All train the mlp with the diagonal posterior on 50,000 images of 28×28 in batches of 128, on one thread, in turns:

- *bare loop*: tensors in memory, the loss written out by hand, Adam;
- *vae-models train*: :func:`vae_models.training.runs.train`, its training steps; then the whole epoch, with the
  validation on 10,000 images and the checkpoints;
- *bare loop, torchvision*: the bare loop fed by ``torchvision.datasets.MNIST`` through a ``DataLoader`` and
  ``ToTensor``, in this process.

    python benchmarks/vae_epoch.py [--rounds 3] [--data-root data]

Without a data root the images are noise, written to a temporary folder in the format of MNIST.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from common import interleaved, print_table, ratio
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from vae_models.data.loading import load
from vae_models.model.networks import NETWORKS
from vae_models.settings.config import Config
from vae_models.training.runs import read_metrics, train

BATCH_SIZE = 128
LATENT_DIM = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-root", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        data_root = arguments.data_root or Path(temporary)
        if arguments.data_root is None:
            write_noise(data_root / "MNIST" / "raw")
        images = load("mnist", data_root).train
        dataset = Subset(MNIST(data_root, transform=ToTensor()), range(len(images)))
        loader = DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True)
        command = Command(data_root, Path(temporary, "run"))
        seconds = interleaved(
            {
                "bare loop": bare_loop(lambda: shuffled(images)),
                "command": command,
                "bare loop, torchvision": bare_loop(lambda: (x for x, _ in loader)),
            },
            arguments.rounds,
        )
    del seconds["command"]  # which holds the start and the end of the run
    seconds["vae-models train: training steps"] = command.steps[1:]
    seconds["vae-models train: whole epoch"] = command.epochs[1:]
    print_table(
        f"Training epoch of the mlp, {len(images):,} images of 28x28, one thread, median of {arguments.rounds}",
        ["loop", "s per epoch", "ratio to bare loop"],
        [
            [name, f"{statistics.median(values):.2f}", f"{ratio(values, seconds['bare loop']):.2f}"]
            for name, values in seconds.items()
        ],
    )


def bare_loop(batches: Callable[[], Iterable[Tensor]]) -> Callable[[], None]:
    """A function that trains for an epoch, with nothing but PyTorch."""
    encoder, decoder, num_features = NETWORKS["mlp"]((1, 28, 28), LATENT_DIM)
    head = nn.Linear(num_features, 2 * LATENT_DIM)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters(), *decoder.parameters()], lr=1e-3)

    def epoch() -> None:
        total = 0.0
        for x in batches():
            loc, log_variance = head(encoder(x)).chunk(2, -1)
            logits = decoder(loc + (0.5 * log_variance).exp() * torch.randn_like(loc))
            kl = 0.5 * (log_variance.exp() + loc.square() - 1 - log_variance).sum()
            loss = (binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)

    return epoch


def shuffled(images: Tensor) -> Iterator[Tensor]:
    return (images[index] for index in torch.randperm(len(images)).split(BATCH_SIZE))


class Command(Callback):
    """A run of the command for one epoch.

    Attributes:
        steps (list of float): seconds of the training steps of every run.
        epochs (list of float): seconds of its whole epoch.
    """

    def __init__(self, data_root: Path, folder: Path) -> None:
        self.config = Config(
            dataset="mnist",
            data_root=str(data_root),
            posterior="diagonal",
            latent_dim=LATENT_DIM,
            batch_size=BATCH_SIZE,
            epochs=1,
        )
        self.folder = folder
        self.steps: list[float] = []
        self.epochs: list[float] = []

    def __call__(self) -> None:
        train(self.config, self.folder, overwrite=True, callbacks=[self], accelerator="cpu")
        self.steps.append(read_metrics(self.folder)[0]["seconds"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append(time.perf_counter() - self.start)


def write_noise(folder: Path) -> None:
    """Files in the format and of the size of MNIST's, a fifth of whose pixels are not black."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        values = generator.integers(256, size=(count, 28, 28), dtype=np.uint8)
        values[generator.random(values.shape, dtype=np.float32) < 0.8] = 0
        for kind, array in (("images", values), ("labels", np.zeros(count, np.uint8))):
            header = np.array([0x800 + array.ndim, *array.shape], dtype=">u4").tobytes()
            (folder / f"{part}-{kind}-idx{array.ndim}-ubyte").write_bytes(header + array.tobytes())


if __name__ == "__main__":
    main()
