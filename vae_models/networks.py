"""Bodies of encoders and decoders. They know the shape of the images, and nothing of the posterior."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

__all__ = ["NETWORKS", "Network", "mlp"]


class Network(NamedTuple):
    """An encoder body and the decoder that mirrors it."""

    encoder: nn.Module
    """From images ``(N, C, H, W)`` to features ``(N, num_features)``."""
    decoder: nn.Module
    """From latent vectors ``(N, latent_dim)`` to logits ``(N, C, H, W)``."""
    num_features: int


def mlp(image_shape: tuple[int, int, int], latent_dim: int, hidden: int = 400) -> Network:
    """One hidden layer of ReLU units on either side: the network of the paper's vanilla VAE (arXiv:1909.06236).

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
    return Network(encoder, decoder, hidden)


NETWORKS: dict[str, Callable[[tuple[int, int, int], int], Network]] = {"mlp": mlp}
