"""``report.html``: final metrics, pictures and settings of a run or a comparison, on a page that needs nothing else."""

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from vae_models.files import is_number, write_whole

__all__ = ["Picture", "render", "write_report"]


class Picture(NamedTuple):
    """A figure on the page."""

    png: bytes
    """The content of a PNG file, with the 150 dots per inch of :func:`vae_models.results.figures.png`."""
    caption: str
    alt: str
    """What a reader who does not see the figure is told."""


class Metric(NamedTuple):
    """One of the final metrics."""

    heading: str
    meaning: str = ""
    better: int = 0
    """-1 where less is better, 1 where more is, 0 where neither is."""


class Cell(NamedTuple):
    """A number as text."""

    value: str
    error: str = ""
    best: bool = False


METRICS = {
    "negative_elbo": Metric(
        "Negative ELBO",
        "Reconstruction plus KL, in nats: an upper bound on −log p(x), unless the note above says that it is none.",
        -1,
    ),
    "reconstruction": Metric("Reconstruction", "Distortion: the mean of −log p(x | z) under the posterior, in nats."),
    "kl": Metric("KL", "Rate: the KL divergence of the posterior from the prior, in nats."),
    "nll": Metric(
        "NLL", "Importance-weighted, in nats: a bound on the same that is tighter than the negative ELBO.", -1
    ),
    "gap": Metric(
        "Gap",
        "Negative ELBO minus NLL, in nats: in expectation, the KL divergence of the posterior from the true one is at "
        "least so much. The more effective samples there are, the less is missing.",
        -1,
    ),
    "effective_sample_size": Metric(
        "Effective samples",
        "How many equally weighted samples the importance-weighted ones are worth, from 1 to their number. Near 1 one "
        "alone decides, and NLL and gap may be far from what they bound.",
        1,
    ),
    "total_correlation": Metric(
        "Total correlation", "The KL divergence of the posterior from the product of its marginals, in nats."
    ),
    "mean_abs_rho": Metric("Mean |ρ|", "The absolute correlation of neighbouring latents, over the pairs of them."),
    "active_units": Metric(
        "Active units", "Latents whose posterior mean varies over images with a variance above 0.01."
    ),
    "num_images": Metric("Images", "How many test images the means are over."),
    "num_samples": Metric("Importance samples", "Latent vectors that are drawn for each of them."),
    "head_parameters": Metric(
        "Head parameters", "Those of the linear layers from the encoder's features to the posterior."
    ),
    "epochs": Metric("Epochs", "How many were trained."),
    "best_epoch": Metric("Best epoch", "The one of the least validation loss, whose weights are evaluated."),
    "seconds_per_epoch": Metric("Seconds per epoch", "The median over epochs, without the validation."),
}


# Below so many effective samples the report says that the importance-weighted bound is loose.
_FEW = 2


def render(
    title: str, settings: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], pictures: Sequence[Picture]
) -> str:
    """The page, as HTML.

    Args:
        title (str): its heading.
        settings (mapping): from names to values; a value may be a mapping again.
        results (mapping): from the name of each run to its final metrics, as
            :func:`vae_models.results.evaluation.evaluate` gives them. With one run they are listed; with several they
            are compared, and a value is bold if it is better than every other by more than two standard errors of their
            difference. Further numbers are shown under their own names, and whatever is no number is left out.
        pictures (sequence of Picture): in the order of display.
    """
    known = [name for name in METRICS if any(name in result for result in results.values())]
    others = dict.fromkeys(
        name
        for result in results.values()
        for name, value in result.items()
        if name not in METRICS and not name.endswith("_se") and is_number(value)
    )
    metrics = {name: METRICS.get(name, Metric(name.replace("_", " ").capitalize())) for name in (*known, *others)}
    note = "Means over images ± their standard errors."
    if len(results) > 1:
        note += (
            " Bold: better than every other by more than two standard errors of the difference, taken as if the images"
            " were not the same ones. The errors say nothing about other training seeds."
        )
    few = [name for name, result in results.items() if (_number(result, "effective_sample_size") or _FEW) < _FEW]
    if few:
        note += f" Of {', '.join(few)} NLL and gap are loose: there are less than {_FEW} effective samples per image."
    if settings.get("likelihood") == "bernoulli" and settings.get("binarize") == "none":
        note += (
            " The images were not binarised: of grey values the Bernoulli likelihood is no probability but a"
            " cross-entropy, so that negative ELBO and NLL are no bounds on −log p(x), but for images of pure black and"
            " white."
        )
    return _template().render(
        title=title,
        names=list(results),
        rows=[
            {**metric._asdict(), "cells": _cells(name, list(results.values()), metric.better)}
            for name, metric in metrics.items()
        ],
        note=note,
        pictures=[_picture(each) for each in pictures],
        settings={name: _text(value) for name, value in settings.items()},
    )


def write_report(
    path: Path,
    *,
    title: str,
    settings: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
    pictures: Sequence[Picture],
) -> None:
    """Write the page that :func:`render` gives to a file, whole.

    Raises:
        FileError: if it can't be written.
    """
    write_whole(path, render(title, settings, results, pictures).encode(errors="backslashreplace"))


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(
        files("vae_models.results").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )


def _cells(name: str, results: Sequence[Mapping[str, Any]], better: int) -> list[Cell]:
    """One metric of every run."""
    values, errors = ([_number(result, key) for result in results] for key in (name, f"{name}_se"))
    # Two significant digits of the smallest error, and all else to the same place.
    smallest = min((error for error in errors if error), default=0.01)
    places = min(max(1 - math.floor(math.log10(smallest)), 0), 4)
    best = _best(values, errors, better)
    cells = []
    for i, (value, error) in enumerate(zip(values, errors, strict=True)):
        if value is None:
            cells.append(Cell("–"))
        elif error is None:
            cells.append(Cell(_minus(f"{value:,}" if isinstance(value, int) else f"{value:.4g}")))
        else:
            cells.append(Cell(_minus(f"{value:,.{places}f}"), f"{error:,.{places}f}", i == best))
    return cells


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}", 1) if number.startswith("-") else number


def _best(values: Sequence[float | None], errors: Sequence[float | None], better: int) -> int | None:
    """Which is better than every other by more than two standard errors of the difference of independent means."""
    known = [
        (better * v, e, i)
        for i, (v, e) in enumerate(zip(values, errors, strict=True))
        if v is not None and e is not None
    ]
    if len(known) < 2:
        return None
    (value, error, best), *others = sorted(known, reverse=True)
    clear = all(value - other_value > 2 * math.hypot(error, other_error) for other_value, other_error, _ in others)
    return best if clear else None


def _number(result: Mapping[str, Any], name: str) -> Any:
    """The number of that name, or None."""
    value = result.get(name)
    return value if is_number(value) else None


def _text(value: object) -> str:
    """A setting in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _picture(picture: Picture) -> dict[str, str | int]:
    """What the template needs. The size in CSS pixels, of which there are 96 to an inch, keeps the page from jumping
    while it loads."""
    width, height = struct.unpack(">II", picture.png[16:24])  # the header that begins every PNG file
    return {
        "data": base64.b64encode(picture.png).decode(),
        "width": round(width * 96 / 150),
        "height": round(height * 96 / 150),
        "caption": picture.caption,
        "alt": picture.alt,
    }
