"""Bodies of encoders and decoders. They know the shape of the images, and nothing of the posterior."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

__all__ = ["NETWORKS", "Network", "convolutional", "mlp"]

ImageShape = tuple[int, int, int]


class Network(NamedTuple):
    """An encoder body and the decoder that mirrors it."""

    encoder: nn.Module
    """From images ``(N, C, H, W)`` to features ``(N, num_features)``."""
    decoder: nn.Module
    """From latent vectors ``(N, latent_dim)`` to the likelihood's parameter ``(N, C, H, W)``."""
    num_features: int
    """The size of the features."""


def mlp(image_shape: ImageShape, latent_dim: int, *, hidden: int = 400) -> Network:
    """One hidden layer of ReLU units on either side: the network of the paper's vanilla VAE (arXiv:1909.06236).

    Example:

        >>> import torch
        >>> encoder, decoder, num_features = mlp((1, 8, 8), latent_dim=5, hidden=32)
        >>> encoder(torch.rand(2, 1, 8, 8)).shape, decoder(torch.randn(2, 5)).shape, num_features
        (torch.Size([2, 32]), torch.Size([2, 1, 8, 8]), 32)

    Args:
        image_shape (tuple of int): ``(C, H, W)``.
        latent_dim (int): size of the latent vector.
        hidden (int): number of hidden units.
    """
    size = math.prod(image_shape)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.ReLU())
    decoder = nn.Sequential(
        nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, size), nn.Unflatten(-1, image_shape)
    )
    return _initialised(Network(encoder, decoder, hidden))


def convolutional(
    image_shape: ImageShape,
    latent_dim: int,
    *,
    channels: Sequence[int],
    hidden: int,
    batch_norm: bool = False,
) -> Network:
    """Convolutions of 4×4 with stride 2 and padding 1, each of which halves the image, then one hidden layer; the
    decoder mirrors them by transposed convolutions. ReLU, or with batch normalisation leaky ReLU in the encoder, as in
    DCGAN (Radford et al., arXiv:1511.06434).

    Example:

        >>> import torch
        >>> encoder, decoder, num_features = convolutional((3, 32, 32), latent_dim=5, channels=(8, 16), hidden=64)
        >>> decoder(torch.randn(2, 5)).shape
        torch.Size([2, 3, 32, 32])

    Args:
        image_shape (tuple of int): ``(C, H, W)``; H and W must be divisible by 2 to the number of convolutions.
        latent_dim (int): size of the latent vector.
        channels (sequence of int): number of filters of each convolution.
        hidden (int): size of the hidden layer.
        batch_norm (bool): normalise every hidden activation over the batch, but that of the first convolution.

    Raises:
        ValueError: if the images can't be halved so often.
    """
    in_channels, height, width = image_shape
    stride = 2 ** len(channels)
    if height % stride or width % stride:
        raise ValueError(
            f"{len(channels)} convolutions of stride 2 need images whose sides are divisible by {stride}, "
            f"got {height}x{width}"
        )
    smallest = (channels[-1], height // stride, width // stride)
    size = math.prod(smallest)

    def activation(norm: nn.Module, leaky: bool) -> list[nn.Module]:
        return [norm, nn.LeakyReLU(0.2) if leaky else nn.ReLU()] if batch_norm else [nn.ReLU()]

    encoder: list[nn.Module] = []
    for i, (c, n) in enumerate(zip((in_channels, *channels), channels, strict=False)):
        norm = nn.BatchNorm2d(n) if i > 0 else nn.Identity()
        encoder += [nn.Conv2d(c, n, 4, stride=2, padding=1), *activation(norm, leaky=True)]
    encoder += [nn.Flatten(), nn.Linear(size, hidden), *activation(nn.BatchNorm1d(hidden), leaky=True)]

    decoder: list[nn.Module] = [nn.Linear(latent_dim, hidden), *activation(nn.BatchNorm1d(hidden), leaky=False)]
    decoder += [nn.Linear(hidden, size), *activation(nn.BatchNorm1d(size), leaky=False), nn.Unflatten(-1, smallest)]
    mirrored = tuple(reversed(channels))
    for c, n in zip(mirrored, mirrored[1:], strict=False):
        decoder += [
            nn.ConvTranspose2d(c, n, 4, stride=2, padding=1),
            *activation(nn.BatchNorm2d(n), leaky=False),
        ]
    decoder.append(nn.ConvTranspose2d(mirrored[-1], in_channels, 4, stride=2, padding=1))
    return _initialised(Network(nn.Sequential(*encoder), nn.Sequential(*decoder), hidden))


def _initialised(network: Network) -> Network:
    """With Xavier's weights (Glorot & Bengio, 2010), as in the paper, and zero biases."""
    for module in (*network.encoder.modules(), *network.decoder.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network


# cnn pads by 1. The reference code pads by 15, which blows the hidden layer up to over 100 million weights.
NETWORKS: dict[str, Callable[..., Network]] = {
    "mlp": mlp,
    "cnn": partial(convolutional, channels=(64, 128), hidden=1024),
    "conv64": partial(convolutional, channels=(32, 32, 64, 64), hidden=256),
    "dcgan": partial(convolutional, channels=(64, 128), hidden=1024, batch_norm=True),
}
"""The networks by name. Each value makes a :class:`Network` from ``image_shape``, ``latent_dim`` and the options
of its function:

- ``mlp``: :func:`mlp`, with 400 hidden units;
- ``cnn``: :func:`convolutional`, with 64 and 128 filters and 1024 hidden units;
- ``conv64``: the same with 32, 32, 64 and 64 filters and 256 hidden units;
- ``dcgan``: ``cnn`` with batch normalisation.

:meta hide-value:
"""
