"""The variational auto-encoder as a Pyro model and guide."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from vae_models.files import FileError, first_line, reason, write_whole
from vae_models.model.likelihoods import LIKELIHOODS, Bernoulli
from vae_models.model.mmd import mmd
from vae_models.model.networks import NETWORKS
from vae_models.model.posteriors import POSTERIORS
from vae_models.settings.config_file import read_config_file, write_config_file
from vae_models.settings.objectives import Objective

__all__ = ["VAE"]


class VAE(nn.Module):
    r"""A variational auto-encoder (Kingma & Welling, arXiv:1312.6114): for every image x,

    .. math::

        z \sim \mathcal{N}(0, I_d), \qquad x \mid z \sim \mathrm{likelihood}(\mathrm{decoder}(z)), \qquad
        q(z \mid x) = \mathrm{posterior}(\mathrm{encoder}(x)),

    trained by an objective of the form :math:`\mathbb{E}_q \log p(x \mid z) - \beta \operatorname{KL}(q(z \mid x)
    \Vert p(z)) - \gamma \operatorname{MMD}^2(q(z), p(z))`, by default the evidence lower bound. The prior is such that
    :class:`pyro.infer.TraceMeanField_ELBO` finds the divergence in closed form for every posterior.

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
        decoder (Module): from latent vectors ``(N, latent_dim)`` to the likelihood's parameter ``(N, C, H, W)``.
        latent_dim (int): size d of the latent vector.
        likelihood (Module): from that to a distribution over images; the Bernoulli by default. Its attribute
            ``support`` is the constraint on pixels, any finite number without it.
        objective (Objective): what ``model`` and ``guide`` train. Their current weight of the divergence is the
            attribute ``beta``, which a warm-up may set.

    Raises:
        ValueError: by every method that takes images, if they are not floating point and of the VAE's shape, or, where
            torch validates arguments, as it does by default, if a value is not finite or not in the likelihood's
            support; by ``decode`` if the latent vectors are of another size.

    Note:
        ``model`` and ``guide`` register their parameters in Pyro's parameter store, which is global, under
        ``encoder``, ``posterior``, ``decoder`` and ``likelihood``. A store that already holds another VAE's raises
        ``RuntimeError``: Pyro would go on to train those. Call :func:`pyro.clear_param_store` between two VAEs, or
        keep each in its own ``with pyro.get_param_store().scope():``.

    Note:
        Networks with batch normalisation depend on the mode, as everywhere in torch: call ``eval()`` before ``sample``,
        ``reconstruct`` and ``log_likelihood``.
    """

    prior_loc: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        posterior: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        *,
        likelihood: nn.Module | None = None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.posterior = posterior
        self.decoder = decoder
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        self.objective = Objective() if objective is None else objective
        self.beta = self.objective.beta
        self.config: dict[str, Any] | None = None
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)

    @classmethod
    def build(
        cls,
        image_shape: tuple[int, int, int],
        *,
        latent_dim: int = 20,
        network: str = "mlp",
        network_options: Mapping[str, Any] | None = None,
        posterior: str = "ar1",
        posterior_options: Mapping[str, Any] | None = None,
        likelihood: str = "bernoulli",
        likelihood_options: Mapping[str, Any] | None = None,
        objective: Objective | None = None,
    ) -> "VAE":
        """A VAE out of named parts, which can be saved by :meth:`save_pretrained`.

        Example:

            >>> vae = VAE.build((1, 28, 28), network="cnn", posterior="low_rank", posterior_options={"rank": 2})
            >>> vae.encode(torch.rand(3, 1, 28, 28)).cov_factor.shape
            torch.Size([3, 20, 2])

        Args:
            image_shape (tuple of int): ``(C, H, W)``.
            latent_dim (int): size of the latent vector.
            network (str): one of :data:`vae_models.model.networks.NETWORKS`.
            network_options (mapping): further arguments of its function: ``hidden``, the number of units in the hidden
                layer, for all; ``channels``, the number of filters of each convolution, and ``batch_norm`` for those
                that have them.
            posterior (str): one of :data:`vae_models.model.posteriors.POSTERIORS`.
            posterior_options (mapping): further arguments of its class: ``rank`` of ``low_rank``; ``order`` of
                ``banded``; ``per_pair`` of ``ar1``, for a correlation for each pair; ``shared_rho`` of ``markov``, for
                one for all.
            likelihood (str): one of :data:`vae_models.model.likelihoods.LIKELIHOODS`.
            likelihood_options (mapping): further arguments of its class: ``scale`` of ``gaussian``, the standard
                deviation of a pixel, and ``learn_scale``, whether it is trained.
            objective (Objective): the evidence lower bound by default.

        Raises:
            ValueError: if a name or an option is unknown, or the network can't take the images.

        Note:
            Under one seed, VAEs that differ in the posterior alone start with the same encoder, decoder and means.
        """
        network_options, posterior_options, likelihood_options = (
            dict(options or {}) for options in (network_options, posterior_options, likelihood_options)
        )
        image_shape = (image_shape[0], image_shape[1], image_shape[2])
        encoder, decoder, num_features = _part("network", NETWORKS, network, network_options, image_shape, latent_dim)
        vae = cls(
            encoder,
            _part("posterior", POSTERIORS, posterior, posterior_options, num_features, latent_dim),
            decoder,
            latent_dim,
            likelihood=_part("likelihood", LIKELIHOODS, likelihood, likelihood_options),
            objective=objective,
        )
        vae.config = {
            "image_shape": list(image_shape),
            "latent_dim": latent_dim,
            "network": network,
            "network_options": network_options,
            "posterior": posterior,
            "posterior_options": posterior_options,
            "likelihood": likelihood,
            "likelihood_options": likelihood_options,
            "objective": dataclasses.asdict(vae.objective),
        }
        return vae

    def save_pretrained(self, folder: Path | str) -> None:
        """Write ``config.json``, whose entry ``"vae"`` says how to build the VAE and whose others are kept, and
        ``model.safetensors`` to a folder, which is made if it is not there.

        Example:

            >>> import tempfile
            >>> vae = VAE.build((1, 8, 8), posterior="markov").eval()
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     vae.save_pretrained(folder)
            ...     again = VAE.from_pretrained(folder)
            >>> x = torch.rand(3, 1, 8, 8)
            >>> torch.equal(again.reconstruct(x), vae.reconstruct(x))
            True

        Args:
            folder (Path or str): which.

        Raises:
            FileError: if they can't be written, or the folder holds a VAE in another format.
            ValueError: if the VAE was not made by :meth:`build`.
        """
        from safetensors.torch import save

        if self.config is None:
            raise ValueError("only a VAE made by VAE.build can be saved: its parts have names")
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make the folder {folder}: {reason(error)}") from error
        config = folder / "config.json"
        write_config_file(config, {**(read_config_file(config) if config.exists() else {}), "vae": self.config})
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_whole(folder / "model.safetensors", save(state))

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "VAE":
        """The VAE that :meth:`save_pretrained` wrote to a folder, in evaluation mode. Nothing in it is executed.

        Args:
            folder (Path or str): which.

        Raises:
            FileError: if a file is missing, damaged, in another format or belongs to another VAE; the message names
                it.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        config_file, weights_file = Path(folder) / "config.json", Path(folder) / "model.safetensors"
        try:
            config = dict(read_config_file(config_file)["vae"])
            objective = Objective(**config.pop("objective"))
            vae = cls.build(config.pop("image_shape"), objective=objective, **config)
        except FileError:
            raise
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise FileError(f"{config_file} does not describe a VAE: {first_line(error)}") from error
        try:
            vae.load_state_dict(load(weights_file.read_bytes()))
        except FileNotFoundError:
            raise FileError(f"{weights_file} does not exist") from None
        except (OSError, SafetensorError) as error:
            raise FileError(f"{weights_file} is damaged: {reason(error)}") from error
        except RuntimeError as error:
            raise FileError(f"{weights_file} does not fit the VAE that {config_file} describes") from error
        return vae.eval()

    @property
    def prior(self) -> TorchDistributionMixin:
        """The standard normal distribution over the latent vector, of empty batch shape."""
        return dist.Normal(self.prior_loc, 1.0, validate_args=False).to_event(1)  # NaN is to reach the loss

    def check_images(self, x: Tensor, name: str = "images") -> None:
        """See that images, of a whole data set or of a batch, are such as the VAE takes.

        Example:

            >>> VAE.build((1, 8, 8)).check_images(255 * torch.ones(5, 1, 8, 8))
            Traceback (most recent call last):
            ValueError: images must be finite and within Interval(lower_bound=0.0, upper_bound=1.0), got 255

        Args:
            x (Tensor): to be floating point and of shape ``(N, C, H, W)``, N at least 1.
            name (str): what a message calls them.

        Raises:
            ValueError: if they are not, or a value is not finite or not in the likelihood's support.

        Note:
            It takes a pass over the values, for which a GPU is waited.
        """
        self._check_shape(x, name)
        support = getattr(self.likelihood, "support", constraints.real)
        valid = support.check(x) & x.isfinite()
        if not valid.all():
            raise ValueError(f"{name} must be finite and within {support}, got {x[~valid][0]:g}")

    def _check_shape(self, x: Tensor, name: str, *, minimum: int = 1) -> None:
        shape = tuple(self.config["image_shape"]) if self.config else None  # of parts of one's own it is not known
        fits = isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 4 and len(x) >= minimum
        if not fits or shape not in (None, x.shape[1:]):
            wanted = "(N, {}, {}, {})".format(*(shape or "CHW"))
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} must be a floating-point tensor of shape {wanted}, N > 0, got {got}")

    def _check(self, x: Tensor, *, minimum: int = 1) -> None:
        """:meth:`check_images`, but of values only where torch validates them, and they can be looked at."""
        transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if Distribution._validate_args and not transformed and len(x) > 0:
            self.check_images(x)
        else:
            self._check_shape(x, "images", minimum=minimum)

    def encode(self, x: Tensor) -> TorchDistributionMixin:
        """The posterior of images ``(N, C, H, W)``: a distribution of batch shape ``(N,)`` and event shape ``(d,)``."""
        self._check(x, minimum=0)
        features = self.encoder(x)
        # Under mixed precision the networks run in half precision; parameters of distributions are not to be rounded.
        with torch.autocast(features.device.type, enabled=False):
            return self.posterior(features.to(self.prior_loc.dtype))

    def decode(self, z: Tensor) -> TorchDistributionMixin:
        """The likelihood given latent vectors ``(..., d)``: a distribution over images, of batch shape ``(...)``."""
        if z.shape[-1:] != self.prior_loc.shape or not z.is_floating_point():
            wanted = f"(..., {len(self.prior_loc)})"
            got = f"{z.dtype} of shape {tuple(z.shape)}"
            raise ValueError(f"latent vectors must be a floating-point tensor of shape {wanted}, got {got}")
        output = self.decoder(z.reshape(-1, z.shape[-1])).to(self.prior_loc.dtype)
        return self.likelihood(output.reshape(z.shape[:-1] + output.shape[1:]))

    def _likelihood(self, z: Tensor, x: Tensor) -> TorchDistributionMixin:
        """:meth:`decode` for the log-density of these images, which is not to broadcast them."""
        likelihood = self.decode(z)
        if likelihood.event_shape != x.shape[1:]:
            decoded = tuple(likelihood.event_shape)
            raise ValueError(f"the decoder gives images of shape {decoded}, x is of shape {tuple(x.shape)}")
        return likelihood

    def model(self, x: Tensor) -> None:
        """The joint distribution of latent vectors and images ``(N, C, H, W)``, as a Pyro program."""
        self._check(x)
        _register("decoder", self.decoder)
        _register("likelihood", self.likelihood)
        with pyro.plate("images", len(x)):
            with self._weighted():
                z = pyro.sample("z", self.prior)
            pyro.sample("x", self._likelihood(z, x), obs=x)
        if self.objective.mmd_weight > 0 and len(x) > 1:
            discrepancy = mmd(z, torch.randn_like(z)).unsqueeze(-1)  # at the plate's place, of size 1
            pyro.factor("mmd", -self.objective.mmd_weight * len(x) * discrepancy)

    def guide(self, x: Tensor) -> None:
        """The posterior of images ``(N, C, H, W)``, as a Pyro program."""
        self._check_shape(x, "images")
        _register("encoder", self.encoder)
        _register("posterior", self.posterior)
        with pyro.plate("images", len(x)), self._weighted():
            pyro.sample("z", self.encode(x))

    def _weighted(self) -> AbstractContextManager:
        """Weigh the divergence by beta. Pyro's ELBOs need that around the site in the model and in the guide."""
        return poutine.scale(scale=self.beta) if self.beta > 0 else poutine.mask(mask=False)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Means of the likelihood at n latent vectors from the prior, of shape ``(n, C, H, W)``."""
        return self.decode(self.prior.sample((n,))).mean

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Means of the likelihood at the posteriors' means, of the shape of x, ``(N, C, H, W)``."""
        return self.decode(self.encode(x).mean).mean

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, num_samples: int, *, chunk_size: int = 512) -> Tensor:
        r"""The importance-weighted bound on the log-likelihood of each image (Burda et al., arXiv:1509.00519),

        .. math:: \log \frac1K \sum_{k=1}^K \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}, \qquad
            z_k \sim q(z \mid x),

        a lower bound in expectation, which rises to :math:`\log p(x)` with K.

        Example:

            >>> VAE.build((1, 8, 8)).log_likelihood(torch.rand(3, 1, 8, 8), num_samples=100).shape
            torch.Size([3])

        Args:
            x (Tensor): images, of shape ``(N, C, H, W)``.
            num_samples (int): K, latent vectors per image.
            chunk_size (int): greatest number of latent vectors that are decoded at once, which bounds the memory.

        Returns:
            Tensor: of shape ``(N,)``, in nats, without gradients.

        Raises:
            ValueError: if ``num_samples`` or ``chunk_size`` is less than 1, or of the images as said above.
        """
        self._check_shape(x, "images")
        if num_samples < 1 or chunk_size < 1:
            raise ValueError(f"num_samples and chunk_size must be at least 1, got {num_samples} and {chunk_size}")
        return torch.cat([self._log_likelihood(images, num_samples, chunk_size) for images in x.split(chunk_size)])

    def _log_likelihood(self, x: Tensor, num_samples: int, chunk_size: int) -> Tensor:
        log_sum = x.new_full((len(x),), -math.inf)
        for _, log_weight in self.log_weights(x, self.encode(x), num_samples, chunk_size):
            log_sum = torch.logaddexp(log_sum, log_weight.logsumexp(0))
        return log_sum - math.log(num_samples)

    def log_weights(
        self, x: Tensor, q: TorchDistributionMixin, num_samples: int, chunk_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        r"""Draw K latent vectors per image from q and give :math:`\log p(x \mid z_k)` and the logarithm of the
        importance weight :math:`p(x \mid z_k)\, p(z_k) / q(z_k)`, in pieces of shape ``(k, N)``.

        Args:
            x (Tensor): images, of shape ``(N, C, H, W)``.
            q (Distribution): of batch shape ``(N,)``.
            num_samples (int): K, latent vectors per image.
            chunk_size (int): greatest number of latent vectors that are decoded at once, but at least one per image.
        """
        step = max(1, chunk_size // max(1, len(x)))
        for start in range(0, num_samples, step):
            z = q.sample(torch.Size([min(step, num_samples - start)]))
            log_likelihood = self._likelihood(z, x).log_prob(x)
            yield log_likelihood, log_likelihood + self.prior.log_prob(z) - q.log_prob(z)


def _part(kind: str, parts: Mapping[str, Any], name: str, options: Mapping[str, Any], *arguments: Any) -> Any:
    """The part of that name, made from the arguments and options."""
    if name not in parts:
        raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(parts)}")
    try:
        return parts[name](*arguments, **options)
    except TypeError as error:
        raise ValueError(f"{kind} {name!r} does not take the options {options}: {reason(error)}") from error


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
