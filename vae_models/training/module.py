"""The loss of a VAE, and its Lightning module."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import pyro
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vae_models.model.vae import VAE

__all__ = ["VAEModule", "loss_per_image"]


def loss_per_image(vae: VAE, x: Tensor) -> Tensor:
    """The VAE's objective in nats, to be minimised, averaged over the images of x, with one latent vector for each.

    It is the loss of :class:`pyro.infer.TraceMeanField_ELBO`, in a parameter store of its own: any number of VAEs may
    be trained in one process. The posterior must have a divergence from the prior in closed form. Pyro's checks of
    model and guide, which take time in every step, are off.

    Example:

        >>> loss = loss_per_image(VAE.build((1, 8, 8)), torch.rand(16, 1, 8, 8))
        >>> loss.backward()

    Args:
        vae (VAE): with the objective and the current weight of its KL divergence, ``vae.beta``.
        x (Tensor): images, of shape ``(N, C, H, W)``. Their values are not checked, as
            :meth:`vae_models.model.vae.VAE.check_images` does.

    Returns:
        Tensor: a scalar.

    Raises:
        ValueError: if the images are not floating point and of the VAE's shape.
    """
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        return _ClosedFormELBO().differentiable_loss(vae.model, vae.guide, x) / len(x)


class _ClosedFormELBO(TraceMeanField_ELBO):
    """Without the densities of the latent vectors, which Pyro computes and, beside a closed form, does not use."""

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        guide_trace, model_trace = prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)
        model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        return model_trace, guide_trace


class VAEModule(pl.LightningModule):
    """Training of a VAE by Adam (arXiv:1412.6980) on its objective per image.

    It logs per epoch, in nats per image, ``train_loss``, the objective as the parameters moved through the epoch, and
    of the validation images ``validation_negative_elbo``, ``validation_reconstruction`` and ``validation_kl``, whatever
    the objective.

    Example:

        >>> from vae_models.data.loading import load
        >>> from vae_models.training.batches import ImageData
        >>> module = VAEModule(VAE.build((1, 8, 8)))
        >>> trainer = pl.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False)
        >>> trainer.fit(module, ImageData(load("digits"), batch_size=128))

    Args:
        vae (VAE): what to train, in place. Its ``beta`` follows the objective's warm-up.
        learning_rate (float): Adam's, at first.
        plateau_patience (int): epochs without a better validation loss after which the learning rate is divided by 10,
            or None for a constant one.

    Raises:
        FloatingPointError: as soon as a loss is NaN or infinite, or a posterior can't be factorised because of NaN.
        ValueError: if images are not such as the VAE takes: of an
            :class:`vae_models.training.batches.ImageData` any, before the first step; of other data those of an epoch's
            first batch.
    """

    def __init__(self, vae: VAE, learning_rate: float = 1e-3, plateau_patience: int | None = None) -> None:
        super().__init__()
        self.vae = vae
        self.learning_rate = learning_rate
        self.plateau_patience = plateau_patience

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        if batch_idx == 0:
            self.vae.check_images(x)
        self.vae.beta = self.vae.objective.beta_at(self.current_epoch + batch_idx / self.trainer.num_training_batches)
        with self._finite("training") as losses:
            losses.append(self.training_loss(x))
        # The epoch's mean, summed here: to log every step takes a fiftieth of the smallest network's time.
        if batch_idx == 0:
            self._total, self._count = torch.zeros((), device=x.device), 0
        self._total.add_(losses[0].detach(), alpha=len(x))
        self._count += len(x)
        if self.trainer.is_last_batch:
            self._log_mean("train_loss", self._total / self._count, self._count)
        return losses[0]

    def training_loss(self, x: Tensor) -> Tensor:
        """What a step on the images x minimises, per image."""
        return loss_per_image(self.vae, x)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        (x,) = batch
        with self._finite("validation") as losses:
            q = self.vae.encode(x)
            reconstruction = -self.vae.decode(q.rsample()).log_prob(x).mean()
            kl = kl_divergence(q, self.vae.prior).mean()
            losses.append(reconstruction + kl)
        self._log_mean("validation_negative_elbo", losses[0], len(x))
        self._log_mean("validation_reconstruction", reconstruction, len(x))
        self._log_mean("validation_kl", kl, len(x))

    @contextlib.contextmanager
    def _finite(self, kind: str) -> Iterator[list[Tensor]]:
        """See that the loss that is put on the list is finite, on every device: they stop together or not at all."""
        losses: list[Tensor] = []
        try:
            yield losses
            problem = "" if losses[0].isfinite() else f"is {losses[0].item()}"
        except torch.linalg.LinAlgError as error:
            problem = f"can't be computed: {str(error).splitlines()[0]}"
        if not self.trainer.strategy.reduce_boolean_decision(not problem):
            problem = problem or "of another process is not finite"
            where = f"in epoch {self.current_epoch + 1}, after {self.global_step} steps"
            raise FloatingPointError(f"the {kind} loss {problem}, {where}")

    def _log_mean(self, name: str, value: Tensor, count: int) -> None:
        # The weight is a float because Lightning averages the counts of several processes in integers, if they are.
        weight: Any = float(count)
        self.log(name, value.float(), on_step=False, on_epoch=True, sync_dist=True, batch_size=weight)

    def on_train_epoch_end(self) -> None:
        scheduler, loss = self.lr_schedulers(), self.trainer.callback_metrics.get("validation_negative_elbo")
        if isinstance(scheduler, ReduceLROnPlateau) and loss is not None:
            scheduler.step(loss)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Nothing. Lightning calls this after it wrote the epoch's checkpoint, so that a resumed run would miss a
        step; :meth:`on_train_epoch_end` comes before."""

    def on_train_end(self) -> None:
        self.vae.beta = self.vae.objective.beta

    def configure_optimizers(self) -> Any:
        # One operation for all parameters. Lightning can't clip the gradient of a fused optimiser in mixed precision.
        fused = self.device.type in ("cpu", "cuda", "mps") and self.trainer.gradient_clip_val is None
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=fused)
        if self.plateau_patience is None:
            return optimizer
        scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=self.plateau_patience)
        monitor = {"scheduler": scheduler, "monitor": "validation_negative_elbo", "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": monitor}
