"""A run of the study: trained in a folder of its own, evaluated, and recorded as a row.

The folders of the runs are in ``runs/`` in the study's folder. A run that was stopped goes on from its last finished
epoch; what has a row is not run again. Of a finished run the checkpoints are deleted, the weights are kept.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from vae_models import evaluation, runs
from vae_models.config import Config
from vae_models.files import read_json, write_json
from vae_models.study import records
from vae_models.study.as_published import SAMPLERS, AsPublished, as_sampled, printed_loss
from vae_models.study.permutation import permuted, random_order
from vae_models.study.plan import StudyRun
from vae_models.training import VAEModule
from vae_models.vae import VAE

__all__ = ["execute"]


def execute(
    run: StudyRun, folder: Path, data_root: Path, *, callbacks: Sequence[Callback] = (), **trainer_options: Any
) -> dict[str, Any] | None:
    """Train and evaluate a run, or go on with that, and add its row.

    Args:
        run (StudyRun): which.
        folder (Path): of the study.
        data_root (Path): of the data sets.
        callbacks, trainer_options: as in :func:`vae_models.runs.train`.

    Returns:
        dict: its row, or None if it has one already or another process is at it.

    Raises:
        FileError: if a file is damaged or can't be written.
        FloatingPointError: if a loss is NaN or infinite.
    """
    place = folder / "runs" / run.trained.name
    with records.locked(place, wait=False) as mine:
        if not mine or run.name in records.finished(folder):
            return None
        config = run.config(data_root)
        variant = run.trained.variant
        trained = runs.train(
            config,
            place,
            resume=True,
            callbacks=callbacks,
            make_module=_module(variant.change, config),
            **trainer_options,
        )
        history = runs.read_metrics(place)
        figures_file = place / "metrics.json"
        if run.trained != run:
            figures = _evaluate(run, _changed(run, trained.vae), config, trained)
        elif trained.finished:
            figures = read_json(figures_file)
        else:
            figures = _evaluate(run, trained.vae, config, trained)
            write_json(figures_file, figures)
        row = {
            "run": run.name,
            "part": run.part,
            "preset": run.preset,
            "dataset": run.dataset,
            "binarize": run.binarize,
            "likelihood": config.likelihood,
            "posterior": run.variant.posterior,
            "rank": run.variant.rank or None,
            "change": run.variant.change,
            "latent_dim": run.latent_dim,
            "seed": run.seed,
            "epochs": run.epochs,
            "epochs_trained": len(history),
            "best_epoch": int(min(history, key=lambda epoch: epoch["validation_negative_elbo"])["epoch"]),
            **{name: figures.get(name) for name in records.RUN_COLUMNS if name in figures},
            "head_parameters": sum(parameter.numel() for parameter in trained.vae.posterior.parameters()),
            "seconds": sum(epoch["seconds"] for epoch in history),
            "seconds_per_epoch": statistics.median(epoch["seconds"] for epoch in history),
            "torch": torch.__version__,
        }
        records.append(folder, row, [_epoch(each) for each in history] if run.trained == run else [])
        for name in ("best.ckpt", "last.ckpt"):
            (place / name).unlink(missing_ok=True)
    return row


def _evaluate(run: StudyRun, vae: VAE, config: Config, trained: runs.Run) -> dict[str, Any]:
    """The figures on the test images, with the same noise for every posterior."""
    images = (trained.images or runs.load_images(config)).test[:: run.test_stride]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        figures: dict[str, Any] = evaluation.evaluate(vae, images, num_samples=config.importance_samples)
        if run.variant.change in SAMPLERS:
            figures["printed_loss"] = printed_loss(vae, images, run.variant.change)
    return figures


def _changed(run: StudyRun, vae: VAE) -> VAE:
    """What a run evaluates that it does not train."""
    if run.variant.change == "permuted":
        return permuted(vae, random_order(run.latent_dim, run.seed))
    return as_sampled(vae, run.trained.variant.change)


def _epoch(row: dict[str, float]) -> dict[str, Any]:
    row = {("validation_loss" if name == "validation_negative_elbo" else name): value for name, value in row.items()}
    return {name: row[name] for name in records.EPOCH_COLUMNS if name in row}


def _module(change: str, config: Config) -> Callable[[VAE, float, int], VAEModule]:
    if change in SAMPLERS:
        return partial(AsPublished, sampler=change, seed=config.seed)
    return _without_rho if change == "rho-zero" else VAEModule


def _without_rho(vae: VAE, learning_rate: float, plateau_patience: int) -> VAEModule:
    """Training of an autoregressive posterior whose rho stays where it starts, at 0."""
    assert isinstance(vae.posterior.atanh_rho, torch.nn.Module)
    for parameter in vae.posterior.atanh_rho.parameters():
        parameter.register_hook(torch.zeros_like)  # of its gradient; Adam then takes no step
    return VAEModule(vae, learning_rate, plateau_patience)
