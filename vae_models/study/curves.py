"""The study's figures: the loss by epoch, as in the paper's, and what posteriors gain on the diagonal one."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vae_models.results.figures import PLAIN
from vae_models.study.plan import POSTERIORS, Part
from vae_models.study.tables import (
    BASELINE,
    TITLES,
    Estimate,
    Row,
    Setting,
    baseline_of,
    difference,
    estimate,
    headline_settings,
    settings,
)

__all__ = ["differences", "headline", "loss_curves"]

_METRICS = {"negative_elbo": "negative ELBO", "nll": "NLL", "gap": "gap"}


def loss_curves(part: Part, rows: Sequence[Row], epochs: Sequence[Row]) -> Figure:
    """The validation loss by epoch, a panel for each setting with a run that was trained: means over seeds, in a band
    of one standard error."""
    by_run: dict[str, list[Row]] = {}
    for row in epochs:
        by_run.setdefault(row["run"], []).append(row)
    found = {
        setting: variants
        for setting, variants in settings(part, rows).items()
        if any(row["run"] in by_run for same in variants.values() for row in same)
    }
    figure, panels = _panels(found, part, height=3.4)
    for axes, variants in zip(panels, found.values(), strict=True):
        ends = []
        for i, (name, same) in enumerate(variants.items()):
            curves = [[row["validation_loss"] for row in by_run[each["run"]]] for each in same if each["run"] in by_run]
            if not curves:  # evaluated, and not trained
                continue
            means = [estimate(values) for values in zip(*curves, strict=False)]
            known: list[Estimate] = [each for each in means if each is not None]
            numbers = range(1, len(known) + 1)
            axes.plot(numbers, [each.mean for each in known], color=f"C{i}", label=name)
            low, high = ([each.mean + sign * (each.error or 0) for each in known] for sign in (-1, 1))
            axes.fill_between(numbers, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
            ends += [each.mean for each in known[2 if len(known) > 5 else 0 :]]
        margin = 0.05 * (max(ends) - min(ends)) or 1.0
        axes.set_ylim(min(ends) - margin, max(ends) + margin)  # without the steep fall of the first two epochs
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="validation loss (nats per image)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def differences(part: Part, rows: Sequence[Row]) -> Figure:
    """Each variant's figures minus those of the diagonal posterior with the same seed, with standard errors."""
    found = {setting: each for setting, each in settings(part, rows).items() if BASELINE in each and len(each) > 1}
    figure, panels = _panels(found, part, height=2.6)
    points: dict[str, Any] = {}
    for axes, variants in zip(panels, found.values(), strict=True):
        names = [name for name in variants if name != baseline_of(name)]
        for i, (metric, title) in enumerate(_METRICS.items()):
            for place, name in enumerate(names):
                baseline = variants.get(baseline_of(name), [])
                value = difference(variants[name], baseline, itemgetter(metric))
                if value is not None:
                    y = place + 0.22 * (i - 1)
                    drawn = axes.errorbar(value.mean, y, xerr=value.error or 0, fmt="os^"[i], color=f"C{i}", ms=4)
                    points.setdefault(title, drawn)
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("nats minus diagonal's (negative: better)")
        axes.grid(alpha=0.3, axis="x")
    # The same for all panels, and points lie wherever a legend could.
    figure.legend(points.values(), points.keys(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def headline(rows: Sequence[Row]) -> Figure:
    """The bounds of all posteriors minus the diagonal one's, a panel for each setting of
    :func:`vae_models.study.tables.headline_settings`: what is to the left of the line gains."""
    found = headline_settings(rows)
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False).flatten()
    names = [each.name for each in POSTERIORS if each.name != BASELINE]
    names = [name for name in names if any(name in variants for variants in found.values())]
    points: dict[str, Any] = {}
    for axes, (setting, variants) in zip(panels, found.items(), strict=True):
        for i, (metric, title) in enumerate([*_METRICS.items()][:2]):
            for place, name in enumerate(names):
                value = difference(variants.get(name, []), variants.get(BASELINE, []), itemgetter(metric))
                if value is not None:
                    y = place + 0.3 * (i - 0.5)
                    drawn = axes.errorbar(value.mean, y, xerr=value.error or 0, fmt="os"[i], color=f"C{i}", ms=5)
                    points.setdefault(title, drawn)
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set_title(setting.short(), fontsize="medium", **PLAIN)
        axes.set_yticks(range(len(names)), [TITLES.get(name, name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(alpha=0.3, axis="x")
    figure.supxlabel("nats per image minus diagonal's (left: better)", fontsize="medium")
    figure.legend(points.values(), points.keys(), loc="outside upper center", ncols=2, fontsize="small")
    return figure


def _panels(found: Mapping[Setting, Any], part: Part, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(len(found), 2)
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(4.8 * columns, 0.4 + height * lines), layout="constrained")
    figure.suptitle(part.name, **PLAIN)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in panels[len(found) :]:
        axes.remove()
    for axes, setting in zip(panels, found, strict=False):
        axes.set_title(str(setting), fontsize="small", **PLAIN)
    return figure, list(panels[: len(found)])
