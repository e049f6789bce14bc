"""A run of the study: trained in a folder of its own, evaluated, and recorded as a row.

The folders of the runs are in ``runs/`` in the study's folder. A run that was stopped goes on from its last finished
epoch; what has a row is not run again. Of a finished run the checkpoints are deleted, the weights are kept.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from vae_models.files import write_json
from vae_models.model.vae import VAE
from vae_models.results import evaluation
from vae_models.settings.config import Config
from vae_models.study import records
from vae_models.study.as_published import SAMPLERS, AsPublished, as_sampled, printed_loss
from vae_models.study.permutation import permuted, random_order
from vae_models.study.plan import StudyRun
from vae_models.training import runs
from vae_models.training.module import VAEModule

__all__ = ["execute"]


def execute(
    run: StudyRun,
    folder: Path,
    data_root: Path,
    *,
    on_evaluation: Callable[[], object] = lambda: None,
    callbacks: Sequence[Callback] = (),
    **trainer_options: Any,
) -> dict[str, Any] | None:
    """Train and evaluate a run, or go on with that, and add its row.

    Args:
        run (StudyRun): which.
        folder (Path): of the study.
        data_root (Path): of the data sets.
        on_evaluation (callable): is called when the training is done, or was.
        callbacks, trainer_options: as in :func:`vae_models.training.runs.train`.

    Returns:
        dict: its row, or None if it has one already or another process is at it.

    Raises:
        FileError: if a file is damaged or can't be written.
        FloatingPointError: if a loss or a figure is NaN or infinite.
    """
    place = folder / "runs" / run.trained.name
    with records.locked(place, wait=False) as mine:
        if not mine or run.name in records.finished(folder):
            return None
        config = run.config(data_root)
        make_module = _module(run.trained.variant.change, config)
        trained = runs.train(
            config, place, resume=True, callbacks=callbacks, make_module=make_module, **trainer_options
        )
        on_evaluation()
        figures = _evaluate(run, config, trained)
        history = runs.read_metrics(place)
        epochs = []
        if run.trained == run:
            write_json(place / "metrics.json", figures)
            epochs = [_epoch(each) for each in history]
        row = _row(run, config, trained.vae, history, figures)
        records.append(folder, row, epochs)
        for name in ("best.ckpt", "last.ckpt"):
            (place / name).unlink(missing_ok=True)
    return row


def _evaluate(run: StudyRun, config: Config, trained: runs.Run) -> dict[str, Any]:
    """The figures on the test images, with the same noise for all that draw as much of it."""
    vae = trained.vae if run.trained == run else _changed(run, trained.vae)
    images = (trained.images or runs.load_images(config, trained.folder)).test[:: run.test_stride]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        figures: dict[str, Any] = evaluation.evaluate(vae, images, num_samples=run.importance_samples)
        if run.variant.change in SAMPLERS:
            figures["printed_loss"] = printed_loss(vae, images, run.variant.change)
    for name, value in figures.items():
        if value is not None and not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value} on the test images")
    return figures


def _row(
    run: StudyRun, config: Config, vae: VAE, history: Sequence[Mapping[str, float]], figures: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "run": run.name,
        "part": run.part,
        "preset": run.preset,
        "dataset": run.dataset,
        "binarize": run.binarize,
        "likelihood": config.likelihood,
        "posterior": run.variant.posterior,
        "rank": run.variant.rank or None,
        "order": run.variant.order or None,
        "change": run.variant.change,
        "latent_dim": run.latent_dim,
        "seed": run.seed,
        "epochs": run.epochs,
        "epochs_trained": len(history),
        "best_epoch": runs.best_epoch(history),
        **{name: figures[name] for name in records.RUN_COLUMNS if name in figures},
        "head_parameters": sum(parameter.numel() for parameter in vae.posterior.parameters()),
        "seconds": sum(epoch["seconds"] for epoch in history),
        "seconds_per_epoch": statistics.median(epoch["seconds"] for epoch in history),
        "torch": torch.__version__,
    }


def _changed(run: StudyRun, vae: VAE) -> VAE:
    """What a run evaluates that it does not train."""
    if run.variant.change == "permuted":
        return permuted(vae, random_order(run.latent_dim, run.seed))
    sampler = run.trained.variant.change
    return as_sampled(vae, sampler) if sampler else vae


def _epoch(row: Mapping[str, float]) -> dict[str, Any]:
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
