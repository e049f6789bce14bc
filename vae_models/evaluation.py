"""Final figures of a trained VAE on images that it was not trained on."""

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ar1_dist import AR1Normal
from vae_models.vae import VAE

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(vae: VAE, images: Tensor, *, num_samples: int = 100, batch_size: int = 1000) -> dict[str, float | None]:
    r"""Means over images of the following, in nats but for the last, each with its standard error over images under
    the same name with ``_se`` appended:

    - ``reconstruction``: :math:`-\log p(x \mid z)` for one :math:`z \sim q(z \mid x)`;
    - ``kl``: :math:`\operatorname{KL}(q(z \mid x) \Vert p(z))`, in closed form;
    - ``negative_elbo``: their sum;
    - ``nll``: the negative of :meth:`vae_models.vae.VAE.log_likelihood`, the importance-weighted bound;
    - ``mean_abs_rho``: :math:`|\rho|`, averaged over the pairs of neighbouring latents; None where the posterior has
      no such parameter.

    Args:
        vae (VAE): the model.
        images (Tensor): of shape ``(N, C, H, W)``, at least two.
        num_samples (int): importance samples per image.
        batch_size (int): images that are encoded at once.
    """
    parts = [_per_image(vae, x, num_samples) for x in images.split(batch_size)]
    metrics: dict[str, float | None] = {"mean_abs_rho": None, "mean_abs_rho_se": None}
    for name in parts[0]:
        values = torch.cat([part[name] for part in parts]).double()
        metrics[name] = values.mean().item()
        metrics[f"{name}_se"] = (values.std() / len(values) ** 0.5).item()
    return metrics


def _per_image(vae: VAE, x: Tensor, num_samples: int) -> dict[str, Tensor]:
    q = vae.encode(x)
    reconstruction = -vae.decode(q.sample()).log_prob(x)
    kl = kl_divergence(q, vae.prior)
    figures = {
        "negative_elbo": reconstruction + kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "nll": -vae.log_likelihood(x, num_samples),
    }
    if isinstance(q, AR1Normal) and q.event_shape[0] > 1:
        figures["mean_abs_rho"] = q.rho.abs().mean(-1)
    return figures
