"""The ablation that runs the chain of a trained posterior through the latents in another order."""

import torch
from torch import Tensor, nn

from ar1_dist import AR1Normal
from vae_models.model.vae import VAE

__all__ = ["permuted", "random_order"]


def permuted(vae: VAE, order: Tensor) -> VAE:
    r"""The same encoder, decoder and marginals, but the chain of the posterior runs through the latents in the order
    :math:`\pi`. With :math:`q(z \mid x)` of mean :math:`\mu`, scales :math:`\sigma` and correlations
    :math:`\rho_2, \dots, \rho_d`,

    .. math:: z'_t = z_{\pi_t}, \qquad z' \sim \mathrm{AR1}(\mu_\pi, \sigma_\pi, \rho), \qquad
        x \mid z' \sim p(x \mid z = z'_{\pi^{-1}}) .

    With the identity it is the same VAE. With one rho and one scale the divergence from the prior is the same for every
    order; what changes is how well the posterior fits.

    Args:
        vae (VAE): whose posterior gives an :class:`ar1_dist.AR1Normal`. It is not changed, and shares its weights.
        order (Tensor): :math:`\pi`, counted from 0, of shape ``(d,)``.
    """
    other = VAE(
        vae.encoder,
        _Reordered(vae.posterior, order),
        nn.Sequential(_Take(order.argsort()), vae.decoder),
        len(order),
        likelihood=vae.likelihood,
        objective=vae.objective,
    )
    return other.to(vae.prior_loc.device).train(vae.training)


class _Reordered(nn.Module):
    def __init__(self, posterior: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.posterior = posterior
        self.take = _Take(order)

    def forward(self, features: Tensor) -> AR1Normal:
        q = self.posterior(features)
        scale = q.scale if q.scale.shape[-1] == 1 else self.take(q.scale)
        return AR1Normal(self.take(q.loc), scale, atanh_rho=q.atanh_rho, validate_args=False)


class _Take(nn.Module):
    """The last dimension in another order."""

    order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        return values.index_select(-1, self.order)


def random_order(latent_dim: int, seed: int) -> Tensor:
    """An order that the seed determines."""
    return torch.randperm(latent_dim, generator=torch.Generator().manual_seed(seed))
