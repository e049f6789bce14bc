"""A training step with each posterior, as a ratio to the diagonal one.

A step is what the command's training does between two batches: the loss of
:func:`vae_models.training.module.loss_per_image`, its gradient and Adam's update, for the mlp on images of 28×28, on
one thread. The posteriors take turns step by step.

    python benchmarks/vae_step.py [--rounds 300] [--batch-size 128] [--latent-dim 20]
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from common import interleaved, print_table, ratio
from torch import Tensor

from vae_models.model.posteriors import POSTERIORS
from vae_models.model.vae import VAE
from vae_models.training.module import loss_per_image

__all__ = ["HEADER", "step_rows"]

HEADER = ["posterior", "parameters of its head", "ms per step", "ratio to diagonal"]


def step_rows(rounds: int, batch_size: int, latent_dim: int) -> list[list[str]]:
    """A row for each posterior."""
    torch.manual_seed(0)
    x = torch.rand(batch_size, 1, 28, 28)
    vaes = {name: VAE.build((1, 28, 28), posterior=name, latent_dim=latent_dim) for name in POSTERIORS}
    seconds = interleaved({name: training_step(vae, x) for name, vae in vaes.items()}, rounds)
    return [
        [
            name,
            f"{sum(parameter.numel() for parameter in vaes[name].posterior.parameters()):,}",
            f"{1e3 * statistics.median(values):.2f}",
            f"{ratio(values, seconds['diagonal']):.2f}",
        ]
        for name, values in seconds.items()
    ]


def training_step(vae: VAE, x: Tensor) -> Callable[[], None]:
    """A function that takes one step of training."""
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss_per_image(vae, x).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--latent-dim", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    numbers = f"batch {arguments.batch_size}, {arguments.latent_dim} latents"
    title = f"Training step of the mlp, {numbers}, one thread, median of {arguments.rounds}"
    print_table(title, HEADER, step_rows(arguments.rounds, arguments.batch_size, arguments.latent_dim))


if __name__ == "__main__":
    main()
