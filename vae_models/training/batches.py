"""Images in batches, shared out between processes."""

import math
from collections.abc import Iterator, Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from vae_models.data.loading import Images
from vae_models.model.vae import VAE
from vae_models.training.seeds import Stream, derived_seed

__all__ = ["ImageData", "ShardedBatches", "check_batches"]

# Validation images per step, over all devices together.
_VALIDATION_BATCH = 500


class ShardedBatches(Sampler[Tensor]):
    """Indices of batches, each shared out between the processes of a distributed run.

    Every index is in exactly one batch of one process. The sizes of the batches differ by 1 at most, and so do a
    batch's shares: no step is taken on a few left-over images, all processes take equally many steps, and the images of
    a step are the same for any number of processes.

    Example:

        >>> [index.tolist() for index in ShardedBatches(7, 3)]
        [[0, 1, 2], [3, 4], [5, 6]]
        >>> [index.tolist() for index in ShardedBatches(7, 3, rank=1, world_size=2)]
        [[2], [4], [6]]

    Args:
        size (int): number of images.
        batch_size (int): greatest number of images per step, over all processes together.
        seed (int): of the order, which is another one in every epoch, or None for the natural order.
        rank (int): which process.
        world_size (int): number of processes.

    Raises:
        ValueError: if there are fewer images in a batch than processes.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size = size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_batches = math.ceil(size / batch_size)
        self.epoch = 0
        if size // max(self.num_batches, 1) < world_size:
            raise ValueError(f"{size} images in batches of {batch_size} can't be shared by {world_size} processes")

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Tensor]:
        if self.seed is None:
            order = torch.arange(self.size)
        else:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, Stream.ORDER, self.epoch))
            order = torch.randperm(self.size, generator=generator)
        for batch in order.tensor_split(self.num_batches):
            yield batch.tensor_split(self.world_size)[self.rank]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order. Lightning calls this."""
        self.epoch = epoch


def check_batches(vae: VAE, size: int, batch_size: int, world_size: int = 1) -> None:
    """See that a network with batch normalisation gets two images or more at a time, since one has no variance.

    Args:
        vae (VAE): with the network.
        size, batch_size, world_size (int): as of :class:`ShardedBatches`.

    Raises:
        ValueError: if not.
    """
    least = size // math.ceil(size / batch_size) // world_size
    if least == 1 and any(isinstance(module, torch.nn.BatchNorm1d) for module in vae.modules()):
        shared = f" shared by {world_size} processes" if world_size > 1 else ""
        raise ValueError(
            f"batch normalisation needs two images or more at a time, and {size} training images in batches of "
            f"{batch_size}{shared} leave one alone; choose another batch size or network"
        )


class ImageData(pl.LightningDataModule):
    """Images in memory, shuffled anew every epoch and shared out between the processes by :class:`ShardedBatches`.

    Args:
        images (Images): whose training and validation images are used.
        batch_size (int): greatest number of training images per step, over all processes together.
        seed (int): of the order of the training images.
        binarize (bool): draw every training image anew from its grey values whenever it is used.

    Note:
        A trainer of one's own needs ``use_distributed_sampler=False``.
    """

    def __init__(self, images: Images, batch_size: int = 128, *, seed: int = 0, binarize: bool = False) -> None:
        super().__init__()
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.binarize = binarize

    def setup(self, stage: str) -> None:
        """See that the images are such as the module's VAE takes, and give them its floating-point type."""
        assert self.trainer is not None
        vae = getattr(self.trainer.lightning_module, "vae", None)
        if isinstance(vae, VAE):
            for name in ("train", "validation"):
                vae.check_images(getattr(self.images, name), f"images.{name}")
            check_batches(vae, len(self.images.train), self.batch_size, self.trainer.world_size)
            self.images = Images(*(images.to(vae.prior_loc.dtype) for images in self.images))

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.images.train, self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.images.validation, _VALIDATION_BATCH, None)

    def _loader(self, images: Tensor, batch_size: int, seed: int | None) -> DataLoader:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        batches = ShardedBatches(len(images), batch_size, seed=seed, rank=rank, world_size=world_size)
        # A batch is one indexing of the tensor. The loader draws a seed for workers, which it has none of, and gets
        # a generator for that: the noise must not depend on how often Lightning makes an iterator.
        return DataLoader(TensorDataset(images), sampler=batches, batch_size=None, generator=torch.Generator())

    def on_after_batch_transfer(self, batch: Sequence[Tensor], dataloader_idx: int) -> Sequence[Tensor]:
        assert self.trainer is not None
        return [torch.bernoulli(x) for x in batch] if self.binarize and self.trainer.training else batch
