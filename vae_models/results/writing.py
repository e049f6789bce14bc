"""What is made of runs whose training has ended: final figures, pictures and the report."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from vae_models.data.loading import Images
from vae_models.files import FileError, is_number, read_json, write_json, write_whole
from vae_models.model.vae import VAE
from vae_models.results import evaluation, figures
from vae_models.results.report import Picture, write_report
from vae_models.settings.config import Config
from vae_models.training.runs import Run, best_epoch, read_metrics

__all__ = ["compare", "finish"]


class _Shown(NamedTuple):
    figure: Figure
    caption: str
    alt: str


def finish(run: Run, config: Config) -> dict[str, Any]:
    """Evaluate a run on the test images and write its pictures, ``report.html`` and, last, ``metrics.json``. A finished
    run is not changed.

    Returns:
        dict: the content of ``metrics.json``: the figures of :func:`vae_models.results.evaluation.evaluate`, the number
        of parameters of the posterior's head and the epochs that were trained, of which one was the best.

    Raises:
        FileError: if a file can't be read or written.
    """
    if run.images is None:
        return read_final(run.folder)
    history = read_metrics(run.folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the same noise for every posterior
        metrics = {
            **evaluation.evaluate(run.vae, run.images.test, num_samples=config.importance_samples),
            "head_parameters": sum(parameter.numel() for parameter in run.vae.posterior.parameters()),
            "epochs": len(history),
            "best_epoch": best_epoch(history),
        }
        shown = _pictures({config.posterior: run.vae}, {config.posterior: history}, run.images, config)
    _write(run.folder, f"{config.posterior}: {_described(config)}", config, {config.posterior: metrics}, shown)
    write_json(run.folder / "metrics.json", metrics)
    return metrics


def read_final(folder: Path) -> dict[str, Any]:
    """The content of the ``metrics.json`` of a run, as :func:`finish` gives it.

    Raises:
        FileError: if it is missing, damaged or something else.
    """
    path = folder / "metrics.json"
    metrics = read_json(path)
    figures = {*evaluation.FIGURES, "head_parameters", "epochs", "best_epoch"}
    if not isinstance(metrics, dict) or not figures <= metrics.keys():
        raise FileError(f"{path} does not hold the final figures of a run")
    for name in figures:
        if not is_number(metrics[name]) and not (metrics[name] is None and name.startswith("mean_abs_rho")):
            raise FileError(f"{path} has {name} = {metrics[name]!r}, which is no number")
    return metrics


def compare(folder: Path, runs: Mapping[str, Run], config: Config, images: Images) -> dict[str, dict[str, Any]]:
    """Write the pictures, ``report.html`` and ``metrics.json`` of finished runs that differ in the posterior alone.

    Args:
        folder (Path): where to.
        runs (mapping): from posteriors to finished runs.
        config (Config): the settings that the runs share.
        images (Images): their data.

    Returns:
        dict: from posteriors to their final figures and the median of the seconds per epoch.

    Raises:
        FileError: if a file can't be read or written.
    """
    histories = {name: read_metrics(run.folder) for name, run in runs.items()}
    results = {
        name: {
            **read_final(run.folder),
            "seconds_per_epoch": statistics.median(row["seconds"] for row in histories[name]),
        }
        for name, run in runs.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        shown = _pictures({name: run.vae for name, run in runs.items()}, histories, images, config)
    _write(folder, f"Comparison of posteriors: {_described(config)}", config, results, shown)
    settings = {name: value for name, value in config.to_json().items() if not _differs(name)}
    write_json(folder / "metrics.json", {**settings, "posteriors": results})
    return results


def _differs(setting: str) -> bool:
    """Whether a setting is another one for each of the runs that are compared."""
    return setting.startswith("posterior")


def _described(config: Config) -> str:
    return f"{config.dataset}, {config.preset} preset, {config.latent_dim} latents"


def _pictures(
    vaes: Mapping[str, VAE], histories: Mapping[str, Sequence[Mapping[str, float]]], images: Images, config: Config
) -> dict[str, _Shown]:
    """The pictures of some VAEs side by side and, of a single one, those of its latent space."""
    described = _described(config)
    names = ", ".join(vaes)
    first = images.test[:12]
    train, validation = (
        {name: [row[column] for row in rows] for name, rows in histories.items()}
        for column in ("train_loss", "validation_negative_elbo")
    )
    seed = torch.initial_seed()
    samples = {}
    for name, vae in vaes.items():
        torch.manual_seed(seed)  # the same latent vectors for every VAE
        samples[name] = vae.sample(64).cpu()
    shown = {
        "curves.png": _Shown(
            figures.curves(train, validation, title=f"Loss: {described}"),
            "Loss per epoch: the training objective and the negative ELBO of the validation images.",
            f"Curves of the loss by epoch for {names}.",
        ),
        "samples.png": _Shown(
            figures.samples(samples, title=f"Samples from the prior: {described}"),
            "Means of the likelihood at latent vectors drawn from the prior, the same ones for every posterior.",
            f"Sheets of 64 generated images for {names}.",
        ),
        "reconstructions.png": _Shown(
            figures.reconstructions(
                first,
                {name: vae.reconstruct(first.to(vae.prior_loc.device)).cpu() for name, vae in vaes.items()},
                title=f"Reconstructions of test images: {described}",
            ),
            "Test images, and the means of the likelihood at their posterior means.",
            f"A row of originals and a row of reconstructions for {names}.",
        ),
        "correlations.png": _Shown(
            figures.correlations(
                {name: evaluation.mean_correlation(vae, images.test) for name, vae in vaes.items()},
                title=f"Mean posterior correlation: {described}",
            ),
            "The posterior's correlation matrix, averaged over the test images.",
            f"Heat maps of the mean posterior correlation matrix for {names}.",
        ),
    }
    if len(vaes) > 1:
        return shown
    ((_, vae),) = vaes.items()
    latents = evaluation.most_active_latents(vae, images.test, 8)
    values = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    pairs = images.test[: 2 * min(6, len(images.test) // 2)]
    start, end = pairs[0::2], pairs[1::2]
    shown["traversals.png"] = _Shown(
        figures.traversals(
            evaluation.traverse(vae, images.test[0], latents, values),
            latents,
            values,
            title=f"Traversals of the most active latents: {described}",
        ),
        "One latent at a time is moved, the others stay at the posterior mean of the first test image.",
        "Rows of images, one for each of the most active latents.",
    )
    shown["interpolations.png"] = _Shown(
        figures.interpolations(
            start, evaluation.interpolate(vae, start, end, 9), end, title=f"Interpolations: {described}"
        ),
        "Between the posterior means of pairs of test images.",
        "Rows of images, each from one test image to another.",
    )
    return shown


def _write(
    folder: Path, title: str, config: Config, results: Mapping[str, Mapping[str, Any]], shown: Mapping[str, _Shown]
) -> None:
    pngs = {name: figures.png(each.figure) for name, each in shown.items()}
    for name, content in pngs.items():
        write_whole(folder / name, content)
    write_report(
        folder / "report.html",
        title=title,
        settings={name: value for name, value in config.to_json().items() if len(results) == 1 or not _differs(name)},
        results=results,
        pictures=[Picture(pngs[name], each.caption, each.alt) for name, each in shown.items()],
    )
