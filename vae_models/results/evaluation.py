"""Final metrics of a trained VAE on images that it was not trained on, and the tensors that its pictures show."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from ar1_dist import AR1Normal
from vae_models.model.vae import VAE

__all__ = [
    "FIGURES",
    "eval_mode",
    "evaluate",
    "interpolate",
    "mean_correlation",
    "most_active_latents",
    "total_correlation",
    "traverse",
]

_MEANS = (
    *("negative_elbo", "reconstruction", "kl", "nll", "effective_sample_size", "gap", "total_correlation"),
    "mean_abs_rho",
)
FIGURES = (*_MEANS, *(f"{name}_se" for name in _MEANS), "active_units", "num_images", "num_samples")
"""The names of what :func:`evaluate` gives."""

# An active latent's posterior mean varies more than this over images (Burda et al., arXiv:1509.00519, section 5.2).
ACTIVE_VARIANCE = 0.01


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Within it the module is in evaluation mode, and no gradients are recorded; after it every submodule is in the
    mode that it was in."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for each, training in modes:
            each.training = training


def evaluate(
    vae: VAE, images: Tensor, *, num_samples: int = 100, chunk_size: int = 512
) -> dict[str, float | int | None]:
    r"""The final figures, whatever the training objective was. With K latent vectors :math:`z_k \sim q(z \mid x)` per
    image and their importance weights :math:`w_k = p(x \mid z_k)\, p(z_k) / q(z_k \mid x)`, they are the means over
    images of

    - ``negative_elbo``: the sum of the next two;
    - ``reconstruction``: the distortion :math:`-\tfrac1K \sum_k \log p(x \mid z_k)`;
    - ``kl``: the rate :math:`\operatorname{KL}(q(z \mid x) \Vert p(z))`, in closed form;
    - ``nll``: :math:`-\log \tfrac1K \sum_k w_k`, the importance-weighted bound on :math:`-\log p(x)` (Burda et al.,
      arXiv:1509.00519);
    - ``effective_sample_size``: :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, between 1 and K (Kong, 1992): where it is
      small, ``nll`` is still far from :math:`-\log p(x)`;
    - ``gap``: ``negative_elbo`` minus ``nll``, which tends to :math:`\operatorname{KL}(q(z \mid x) \Vert p(z \mid x))`
      with K and is less than that in expectation;
    - ``total_correlation``: :func:`total_correlation` of the posterior;
    - ``mean_abs_rho``: :math:`|\rho|` over the pairs of neighbouring latents; None where there is no such parameter;

    each followed by its standard error over images under the same name with ``_se`` appended, and

    - ``active_units``: the number of latents whose posterior mean varies over images with a variance above 0.01
      (Burda et al., section 5.2);
    - ``num_images`` and ``num_samples``, K.

    Bounds, divergences and the total correlation are in nats.

    Example:

        >>> figures = evaluate(VAE.build((1, 8, 8)), torch.rand(10, 1, 8, 8), num_samples=5)
        >>> sorted(figures)[:4]
        ['active_units', 'effective_sample_size', 'effective_sample_size_se', 'gap']

    Args:
        vae (VAE): the model. It is evaluated in evaluation mode, on its own device.
        images (Tensor): of shape ``(N, C, H, W)``, N at least 2.
        num_samples (int): K, latent vectors per image.
        chunk_size (int): greatest number of images that are encoded, and of latent vectors that are decoded, at once,
            which bounds the memory. Where few of them fit into a processor's cache, fewer take less time.

    Returns:
        dict: of numbers, which JSON can hold if all of them are finite.

    Raises:
        ValueError: if there are fewer than two images, which have no standard error, if they are not such as
            :meth:`vae_models.model.vae.VAE.check_images` takes, or if ``num_samples`` or ``chunk_size`` is less than 1.

    Note:
        The same samples serve all figures, so that the gap's standard error is that of paired differences. The
        standard errors tell how far the images determine the figures of this very model; another training seed gives
        another model.
    """
    vae.check_images(images)
    if len(images) < 2:
        raise ValueError(f"standard errors over images need at least two of them, got {len(images)}")
    if num_samples < 1 or chunk_size < 1:
        raise ValueError(f"num_samples and chunk_size must be at least 1, got {num_samples} and {chunk_size}")
    parts, means = [], []
    with eval_mode(vae):
        for x in images.split(chunk_size):
            x = x.to(vae.prior_loc)
            q = vae.encode(x)
            parts.append(_per_image(vae, x, q, num_samples, chunk_size))
            means.append(q.mean)

    figures: dict[str, float | int | None] = {}
    for name in parts[0]:
        values = _gather([part[name] for part in parts])
        figures[name] = values.mean().item()
        figures[f"{name}_se"] = (values.std() / math.sqrt(len(values))).item()
    for name in ("mean_abs_rho", "mean_abs_rho_se"):
        figures.setdefault(name, None)
    figures["active_units"] = int((_gather(means).var(0) > ACTIVE_VARIANCE).sum())
    return figures | {"num_images": len(images), "num_samples": num_samples}


def _per_image(vae: VAE, x: Tensor, q: TorchDistributionMixin, num_samples: int, chunk_size: int) -> dict[str, Tensor]:
    """What :func:`evaluate` averages, each of shape ``(N,)``."""
    reconstruction = x.new_zeros(len(x))
    log_sum = log_sum_squares = x.new_full((len(x),), -math.inf)
    for log_likelihood, log_weight in vae.log_weights(x, q, num_samples, chunk_size):
        reconstruction = reconstruction - log_likelihood.sum(0) / num_samples
        log_sum = torch.logaddexp(log_sum, log_weight.logsumexp(0))
        log_sum_squares = torch.logaddexp(log_sum_squares, (2 * log_weight).logsumexp(0))
    kl = kl_divergence(q, vae.prior)
    nll = math.log(num_samples) - log_sum
    figures = {
        "negative_elbo": reconstruction + kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "nll": nll,
        "effective_sample_size": (2 * log_sum - log_sum_squares).exp(),
        "gap": reconstruction + kl - nll,
        "total_correlation": total_correlation(q),
    }
    if isinstance(q, AR1Normal) and q.event_shape[0] > 1:
        figures["mean_abs_rho"] = q.rho.abs().mean(-1)
    return figures


def _gather(parts: Sequence[Tensor]) -> Tensor:
    """In double precision and on the CPU, since not every device has the former."""
    return torch.cat(list(parts)).cpu().double()


def total_correlation(q: TorchDistributionMixin) -> Tensor:
    r"""The total correlation of a normal distribution over vectors: :math:`\sum_t H(q_t) - H(q)`, the KL divergence
    from the product of its marginals (S. Watanabe, *Information theoretical analysis of multivariate correlation*,
    1960), in nats, of shape ``batch_shape``.

    Example:

        >>> total_correlation(AR1Normal(torch.zeros(3), 1.0, 0.5))
        tensor(0.2877)
    """
    if isinstance(q, AR1Normal):
        return q.total_correlation
    if isinstance(q, Independent):
        return q.mean.new_zeros(q.batch_shape)
    marginals = Normal(q.mean, q.stddev, validate_args=False)
    return (marginals.entropy().sum(-1) - q.entropy()).clamp(min=0)  # rounding can leave it below


def mean_correlation(vae: VAE, images: Tensor, *, chunk_size: int = 2048) -> Tensor:
    """The correlation matrix of the posterior, averaged over images ``(N, C, H, W)``: of shape ``(d, d)``, on the
    CPU.

    Example:

        >>> mean_correlation(VAE.build((1, 8, 8), latent_dim=2), torch.rand(5, 1, 8, 8))
        tensor([[1., 0.],
                [0., 1.]])
    """
    vae.check_images(images)
    total = torch.zeros(())
    with eval_mode(vae):
        for x in images.split(chunk_size):
            q = vae.encode(x.to(vae.prior_loc))
            if isinstance(q, Independent):
                total = total + len(x) * torch.eye(q.event_shape[0])
            else:
                scale = q.stddev
                correlation = q.covariance_matrix / scale.unsqueeze(-1) / scale.unsqueeze(-2)
                total = total + correlation.sum(0).cpu()
    return total / len(images)


def most_active_latents(vae: VAE, images: Tensor, n: int, *, chunk_size: int = 2048) -> list[int]:
    """The n latents, counted from 0, whose posterior mean varies most over images ``(N, C, H, W)``, the most active
    first; all of them if there are fewer.

    Example:

        >>> len(most_active_latents(VAE.build((1, 8, 8)), torch.rand(5, 1, 8, 8), 3))
        3
    """
    vae.check_images(images)
    with eval_mode(vae):
        means = [vae.encode(x.to(vae.prior_loc)).mean for x in images.split(chunk_size)]
    return _gather(means).var(0).argsort(descending=True)[:n].tolist()


def traverse(vae: VAE, image: Tensor, latents: Sequence[int], values: Sequence[float]) -> Tensor:
    """Decoded means along single latents, while the others stay at the image's posterior mean.

    Example:

        >>> traverse(VAE.build((1, 8, 8)), torch.rand(1, 8, 8), [0, 3], [-2.0, 0.0, 2.0]).shape
        torch.Size([2, 3, 1, 8, 8])

    Args:
        vae (VAE): the model.
        image (Tensor): of shape ``(C, H, W)``.
        latents (sequence of int): which are moved, one at a time; counted from 0.
        values (sequence of float): what they are set to, in standard deviations of the prior.

    Returns:
        Tensor: of shape ``(len(latents), len(values), C, H, W)``, on the CPU.

    Raises:
        ValueError: if the image is not such as the VAE takes, or there is no such latent.
    """
    d = len(vae.prior_loc)
    if not all(0 <= latent < d for latent in latents):
        raise ValueError(f"latents must be from 0 to {d - 1}, got {list(latents)}")
    vae.check_images(image.unsqueeze(0), "the image, in a batch of one,")
    with eval_mode(vae):
        mean = vae.encode(image.unsqueeze(0).to(vae.prior_loc)).mean
        z = mean.repeat(len(latents), len(values), 1)
        for row, latent in enumerate(latents):
            z[row, :, latent] = z.new_tensor(values)
        return vae.decode(z).mean.cpu()


def interpolate(vae: VAE, first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Decoded means on the straight lines between the posterior means of pairs of images.

    Example:

        >>> first, second = torch.rand(2, 4, 1, 8, 8)
        >>> interpolate(VAE.build((1, 8, 8)), first, second, steps=5).shape
        torch.Size([4, 5, 1, 8, 8])

    Args:
        vae (VAE): the model.
        first, second (Tensor): of shape ``(N, C, H, W)``.
        steps (int): number of points on a line, both ends among them.

    Returns:
        Tensor: of shape ``(N, steps, C, H, W)``, on the CPU.

    Raises:
        ValueError: if the images are not such as the VAE takes, or not pairs, or there are no steps.
    """
    if first.shape != second.shape or steps < 1:
        raise ValueError(f"pairs and steps are needed, got {tuple(first.shape)}, {tuple(second.shape)} and {steps}")
    for name, images in (("first", first), ("second", second)):
        vae.check_images(images, name)
    with eval_mode(vae):
        start, end = (vae.encode(x.to(vae.prior_loc)).mean.unsqueeze(1) for x in (first, second))
        weight = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).unsqueeze(-1)
        return vae.decode(torch.lerp(start, end, weight)).mean.cpu()
