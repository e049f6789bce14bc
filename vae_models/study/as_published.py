r"""The published reference's own objective. **It is wrong**, and exists for the study alone, which measures what it
trains: no option of ``train`` or ``compare`` leads here.

Of a batch of B images, with :math:`\mu_i`, :math:`s_i = \mathrm{scale}_i^2` (a variance) and :math:`\rho_i` from the
encoder, the reference code of the ρ-VAE (S. Ferdowsi et al., github.com/sssohrab/rho_VAE) minimises

.. math:: \mathcal{L} = -\sum_i \log p(x_i \mid z_i) + \frac12 \sum_i \lVert \mu_i \rVert^2 + \frac1{2B} \sum_i
    \big( d\,(s_i - 1 - \log s_i) - (d - 1) \log(1 - \rho_i^2 + \epsilon) \big) .

It takes the sum of :math:`\mu^2` over the batch into the divergence of every image, and then the mean over the batch:
the terms of variance and correlation weigh 1/B of what they do in the divergence of eq. (6) of the paper. The noise
is that of :data:`SAMPLERS`, neither of which has the covariance :math:`s\,\rho^{|t - u|}` of the paper's eq. (4):

- ``walk``, the sampler of the published models: :math:`z_t - \mu_t = (z_{t-1} - \mu_{t-1}) + \sqrt s\, \epsilon_t`, a
  random walk, whose variance is :math:`t s` and in which :math:`\rho` does not occur; and :math:`\epsilon = 0`;
- ``rho``, that of the later notebook: :math:`z_t - \mu_t = \rho\, (z_{t-1} - \mu_{t-1}) + \sqrt s\, \epsilon_t`,
  whose variance :math:`s (1 - \rho^{2t}) / (1 - \rho^2)` still grows; and :math:`\epsilon = 10^{-7}`.

Both start at :math:`z_1 - \mu_1 = \sqrt s\, \epsilon_1`. The loss that is printed is :math:`\mathcal{L}` summed over
the batches and divided by the number of images, with one latent vector for each.

The head starts as the reference's does, with Xavier's weights for all of :math:`\mu`, :math:`\log s` and
:math:`\operatorname{artanh} \rho`. What is not reproduced:

- the networks are those of this package, of which only ``mlp`` is the reference's (docs/vae_models.md);
- the InfoVAE of the reference gives the loss its sample in place of :math:`\mu`, and takes for :math:`\log s` the
  sigmoid of a linear unit, at least 0.02, so that :math:`s > 1`; here it has :math:`\mu` and :math:`s` as the others;
- where its ``walk`` has :math:`\log 0`, because a tanh has rounded to 1, this has the true value;
- it chooses epochs and learning rate by its test images; here they are chosen by the same loss on the validation
  images;
- its ``main.py`` divides by 128 times the number of batches, which for 10,000 images is 1.1 per cent more than their
  number; its notebook, and this, by their number.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ar1_dist import AR1Normal
from ar1_dist.recurrence import linear_recurrence
from vae_models.model.vae import VAE
from vae_models.results.evaluation import eval_mode
from vae_models.training.module import VAEModule

__all__ = ["BATCH_SIZE", "SAMPLERS", "AsPublished", "as_sampled", "batch_loss", "printed_loss"]

SAMPLERS = ("walk", "rho")

# Of the training and of the test images; what is printed depends on it.
BATCH_SIZE = 128


def batch_loss(vae: VAE, x: Tensor, sampler: str) -> tuple[Tensor, Tensor]:
    r"""Both parts of :math:`\mathcal{L}`, the reconstruction and the rest, for one batch.

    Args:
        vae (VAE): with the posterior ``ar1``.
        x (Tensor): the batch, of shape ``(B, C, H, W)``.
        sampler (str): one of :data:`SAMPLERS`.

    Returns:
        tuple: of two tensors of no dimensions, in nats, summed over the batch.

    Raises:
        ValueError: if the sampler is unknown.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
    q = vae.encode(x)
    d = q.event_shape[0]
    coefficient = torch.ones_like(q.scale) if sampler == "walk" else q.rho
    z = q.loc + linear_recurrence(coefficient, q.scale * torch.randn_like(q.loc))
    reconstruction = -vae.decode(z).log_prob(x).sum()
    log_s = 2 * q.scale.log()
    if sampler == "walk":
        log_conditional = 2 * (math.log(2) - torch.logaddexp(q.atanh_rho, -q.atanh_rho))  # log(1 - rho^2)
    else:
        log_conditional = (1 - q.rho.square() + 1e-7).log()
    per_image = d * (log_s.exp() - 1 - log_s) - (d - 1) * log_conditional
    return reconstruction, 0.5 * q.loc.square().sum() + 0.5 * per_image.mean()


def printed_loss(vae: VAE, images: Tensor, sampler: str) -> float:
    """The loss that the reference prints, for images ``(N, C, H, W)`` in batches of :data:`BATCH_SIZE`."""
    with eval_mode(vae):
        total = 0.0
        for x in images.split(BATCH_SIZE):
            reconstruction, divergence = batch_loss(vae, x.to(vae.prior_loc.device), sampler)
            total += (reconstruction + divergence).item()
    return total / len(images)


def as_sampled(vae: VAE, sampler: str) -> VAE:
    """The same VAE, but its posterior is the distribution that the sampler has: also a Gauss–Markov chain, under which
    the bounds are those of what was trained, and not of what was meant.

    Args:
        vae (VAE): with the posterior ``ar1``. It is not changed, and shares its weights.
        sampler (str): one of :data:`SAMPLERS`.
    """
    posterior = _AsSampled(vae.posterior, sampler)
    latent_dim = len(vae.prior_loc)
    other = VAE(vae.encoder, posterior, vae.decoder, latent_dim, likelihood=vae.likelihood, objective=vae.objective)
    return other.to(vae.prior_loc.device).train(vae.training)


class _AsSampled(nn.Module):
    def __init__(self, posterior: nn.Module, sampler: str) -> None:
        super().__init__()
        self.posterior = posterior
        self.sampler = sampler

    def forward(self, features: Tensor) -> AR1Normal:
        q = self.posterior(features)
        coefficient = torch.ones_like(q.scale) if self.sampler == "walk" else q.rho
        return AR1Normal.from_transitions(q.loc, coefficient, q.scale, q.scale, validate_args=False)


class AsPublished(VAEModule):
    """Training by the reference's objective. What it logs as the negative ELBO and the KL divergence of the validation
    images, by which the best epoch is chosen, is the loss that the reference prints and what it takes for that
    divergence.

    Args:
        vae (VAE): with the posterior ``ar1``, whose head is initialised anew, as the reference's.
        learning_rate, plateau_patience: as in :class:`vae_models.training.module.VAEModule`.
        sampler (str): one of :data:`SAMPLERS`.
        seed (int): of the head's weights.
    """

    def __init__(
        self, vae: VAE, learning_rate: float, plateau_patience: int | None, *, sampler: str, seed: int
    ) -> None:
        super().__init__(vae, learning_rate, plateau_patience)
        self.sampler = sampler
        generator = torch.Generator().manual_seed(seed)
        for layer in vae.posterior.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)

    def training_loss(self, x: Tensor) -> Tensor:
        return torch.stack(batch_loss(self.vae, x, self.sampler)).sum() / len(x)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        (x,) = batch
        with self._finite("validation") as losses:
            parts = [torch.stack(batch_loss(self.vae, part, self.sampler)) for part in x.split(BATCH_SIZE)]
            reconstruction, divergence = torch.stack(parts).sum(0) / len(x)
            losses.append(reconstruction + divergence)
        self._log_mean("validation_negative_elbo", losses[0], len(x))
        self._log_mean("validation_reconstruction", reconstruction, len(x))
        self._log_mean("validation_kl", divergence, len(x))
