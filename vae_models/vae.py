"""The variational auto-encoder as a Pyro model and guide."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn

from vae_models.networks import NETWORKS
from vae_models.posteriors import POSTERIORS

__all__ = ["VAE"]


class VAE(nn.Module):
    r"""A variational auto-encoder (Kingma & Welling, arXiv:1312.6114): for every image x,

    .. math::

        z \sim \mathcal{N}(0, I_d), \qquad x \mid z \sim \prod_i \operatorname{Bernoulli}(x_i; \pi_i(z)), \qquad
        q(z \mid x) = \mathrm{posterior}(\mathrm{encoder}(x)),

    trained by the evidence lower bound :math:`\mathbb{E}_q \log p(x \mid z) - \operatorname{KL}(q(z \mid x) \Vert
    p(z))`. The prior is such that :class:`pyro.infer.TraceMeanField_ELBO` finds the divergence in closed form.

    Example:

        >>> vae = VAE.build((1, 8, 8), posterior="ar1", latent_dim=5)
        >>> x = torch.rand(3, 1, 8, 8)
        >>> vae.encode(x).rsample().shape
        torch.Size([3, 5])
        >>> svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.TraceMeanField_ELBO())
        >>> loss = svi.step(x)
        >>> vae.sample(2).shape
        torch.Size([2, 1, 8, 8])

    Args:
        encoder (Module): from images ``(N, C, H, W)`` to features ``(N, num_features)``.
        posterior (Module): from features to a distribution over the latent vector, of batch shape ``(N,)``.
        decoder (Module): from latent vectors ``(N, latent_dim)`` to logits ``(N, C, H, W)``.
        latent_dim (int): d.

    Note:
        Images are grey values in [0, 1], and the Bernoulli log-likelihood is used on them as it is, as in the ρ-VAE
        paper (arXiv:1909.06236): :math:`x \log \pi + (1 - x) \log(1 - \pi)`. On values between 0 and 1 it is not
        normalised, so that its bounds compare with each other but not with those on binarised images.

    Note:
        ``model`` and ``guide`` register their parameters in Pyro's parameter store, which is global, under
        ``encoder``, ``posterior`` and ``decoder``. A store that already holds another VAE's raises ``RuntimeError``:
        Pyro would go on to train those. Call :func:`pyro.clear_param_store` between two VAEs, or keep each in its
        own ``with pyro.get_param_store().scope():``.
    """

    prior_loc: Tensor

    def __init__(self, encoder: nn.Module, posterior: nn.Module, decoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.posterior = posterior
        self.decoder = decoder
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)

    @classmethod
    def build(
        cls, image_shape: tuple[int, int, int], *, posterior: str = "ar1", latent_dim: int = 20, network: str = "mlp"
    ) -> "VAE":
        """A VAE out of named parts.

        Args:
            image_shape (tuple of int): ``(C, H, W)``.
            posterior (str): one of :data:`vae_models.posteriors.POSTERIORS`.
            latent_dim (int): size of the latent vector.
            network (str): one of :data:`vae_models.networks.NETWORKS`.

        Raises:
            ValueError: if a name is unknown.

        Note:
            Under one seed, VAEs that differ in the posterior alone start with the same encoder, decoder and means.
        """
        if posterior not in POSTERIORS:
            raise ValueError(f"unknown posterior {posterior!r}; choose from {', '.join(POSTERIORS)}")
        if network not in NETWORKS:
            raise ValueError(f"unknown network {network!r}; choose from {', '.join(NETWORKS)}")
        encoder, decoder, num_features = NETWORKS[network](image_shape, latent_dim)
        return cls(encoder, POSTERIORS[posterior](num_features, latent_dim), decoder, latent_dim)

    @property
    def prior(self) -> TorchDistributionMixin:
        """The standard normal distribution over the latent vector, of empty batch shape."""
        return dist.Normal(self.prior_loc, 1.0, validate_args=False).to_event(1)  # NaN is to reach the loss

    def encode(self, x: Tensor) -> TorchDistributionMixin:
        """The posterior of images ``(N, C, H, W)``: a distribution of batch shape ``(N,)`` and event shape ``(d,)``."""
        return self.posterior(self.encoder(x))

    def decode(self, z: Tensor) -> TorchDistributionMixin:
        """The likelihood of latent vectors ``(..., d)``: a distribution over images ``(..., C, H, W)``."""
        logits = self.decoder(z.reshape(-1, z.shape[-1]))
        logits = logits.reshape(z.shape[:-1] + logits.shape[1:])
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(3)  # grey values are not 0 or 1

    def model(self, x: Tensor) -> None:
        """The joint distribution of latent vectors and images ``(N, C, H, W)``, as a Pyro program."""
        _register("decoder", self.decoder)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """The posterior of images ``(N, C, H, W)``, as a Pyro program."""
        _register("encoder", self.encoder)
        _register("posterior", self.posterior)
        with pyro.plate("images", len(x)):
            pyro.sample("z", self.encode(x))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Means of the likelihood at n latent vectors from the prior, of shape ``(n, C, H, W)``."""
        return self.decode(self.prior.sample((n,))).mean

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Means of the likelihood at the posteriors' means, of the shape of x, ``(N, C, H, W)``."""
        return self.decode(self.encode(x).mean).mean

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, num_samples: int, *, chunk_size: int = 4096) -> Tensor:
        r"""The importance-weighted bound on the log-likelihood of each image (Burda et al., arXiv:1509.00519),

        .. math:: \log \frac1K \sum_{k=1}^K \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}, \qquad
            z_k \sim q(z \mid x),

        a lower bound in expectation, which rises to :math:`\log p(x)` with K.

        Args:
            x (Tensor): images, of shape ``(N, C, H, W)``.
            num_samples (int): K.
            chunk_size (int): greatest number of latent vectors that are decoded at once, which bounds the memory.

        Returns:
            Tensor: of shape ``(N,)``, in nats, without gradients.

        Raises:
            ValueError: if ``num_samples`` or ``chunk_size`` is less than 1.
        """
        if num_samples < 1 or chunk_size < 1:
            raise ValueError(f"num_samples and chunk_size must be at least 1, got {num_samples} and {chunk_size}")
        return torch.cat([self._log_likelihood(images, num_samples, chunk_size) for images in x.split(chunk_size)])

    def _log_likelihood(self, x: Tensor, num_samples: int, chunk_size: int) -> Tensor:
        q, prior = self.encode(x), self.prior
        log_sum = x.new_full((len(x),), -math.inf)
        remaining = num_samples
        while remaining > 0:
            n = min(remaining, max(1, chunk_size // max(1, len(x))))
            z = q.sample((n,))
            log_weight = self.decode(z).log_prob(x) + prior.log_prob(z) - q.log_prob(z)
            log_sum = torch.logaddexp(log_sum, log_weight.logsumexp(0))
            remaining -= n
        return log_sum - math.log(num_samples)


def _register(name: str, module: nn.Module) -> None:
    """:func:`pyro.module`, but an error where that would silently go on with another module's parameters."""
    pyro.module(name, module)
    store = pyro.get_param_store()
    for parameter_name, parameter in module.named_parameters():
        if parameter.requires_grad and store[param_with_module_name(name, parameter_name)] is not parameter:
            raise RuntimeError(
                f"Pyro's parameter store already holds another module's parameters under the name {name!r}. Call "
                "pyro.clear_param_store() first, or work within `with pyro.get_param_store().scope():`."
            )
