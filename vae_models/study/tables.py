"""The study's tables, in Markdown, made of its rows. Every figure is a mean over seeds ± its standard error; a single
seed has none. Differences are of runs with the same seed, which share the images and their order, and but for those of
the reference's objective the starting weights of what they have in common; they are bold where
:attr:`Estimate.differs_from_zero`."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from vae_models.study.plan import MORE_SAMPLES, PARTS, POSTERIORS, Part, Variant, plan

__all__ = [
    "BASELINE",
    "HEADLINE",
    "TITLES",
    "Estimate",
    "Setting",
    "baseline_of",
    "difference",
    "estimate",
    "headline_settings",
    "headline_table",
    "part_table",
    "progress_table",
    "settings",
    "status_table",
    "summary_tables",
]

Row = Mapping[str, Any]

BASELINE = Variant("diagonal").name
HEADLINE = "vanilla"
"""The part that is shown first."""

_DATASETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "digits": "digits"}
_METRICS = (("negative ELBO", "negative_elbo"), ("NLL", "nll"), ("gap", "gap"))


def baseline_of(name: str) -> str:
    """The name of the diagonal posterior that a variant is compared with: evaluated by as many samples as it is."""
    more = "-more-samples"
    return BASELINE + more if name.endswith(more) else BASELINE


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    error: float | None
    """Its standard error; None for one seed."""
    seeds: int

    @property
    def differs_from_zero(self) -> bool:
        """Whether 0 lies outside the 95 per cent confidence interval of Student's t."""
        from scipy.special import stdtrit

        return self.error is not None and abs(self.mean) > self.error * stdtrit(self.seeds - 1, 0.975)

    def __str__(self) -> str:
        return self.text()

    def text(self, places: int = 2, *, signed: bool = False) -> str:
        number = f"{self.mean:{'+' if signed else ''}.{places}f}".replace("-", "\N{MINUS SIGN}")
        return number if self.error is None else f"{number} ± {self.error:.{places}f}"


class Setting(NamedTuple):
    """What runs share that are compared with each other."""

    preset: str
    dataset: str
    binarize: str
    latent_dim: int
    epochs: int

    def short(self, part: str = "") -> str:
        """In few words, beside the name of a part."""
        return f"{part + ': ' if part else ''}{_DATASETS[self.dataset]}, {self.latent_dim} latents"

    def __str__(self) -> str:
        pixels = {"none": "grey values", "dynamic": "binary, drawn anew", "static": "binary, drawn once"}[self.binarize]
        return f"{self.dataset}, {pixels}, {self.latent_dim} latents, {self.epochs} epochs"


def estimate(values: Iterable[float]) -> Estimate | None:
    """The mean of values and its standard error, the root of the unbiased variance over their number; None of none.

    Example:

        >>> print(estimate([1.0, 2.0, 3.0]))
        2.00 ± 0.58
    """
    values = list(values)
    if not values:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(statistics.fmean(values), error, len(values))


def difference(rows: Sequence[Row], others: Sequence[Row], value: Callable[[Row], float | None]) -> Estimate | None:
    """The mean of the differences of a value between rows and others of the same seed; None if no seed has both."""
    by_seed = {row["seed"]: value(row) for row in others}
    pairs = [(value(row), by_seed.get(row["seed"])) for row in rows]
    return estimate(a - b for a, b in pairs if a is not None and b is not None)


def variant_name(row: Row) -> str:
    return Variant(row["posterior"], row["change"], row["rank"] or 0, row["order"] or 0).name


def setting_of(row: Row) -> Setting:
    return Setting(*(row[name] for name in Setting._fields))


def settings(part: Part, rows: Sequence[Row]) -> dict[Setting, dict[str, list[Row]]]:
    """The rows of a part by setting and, in the order of display, by name of the variant. Beside those of a part that
    changes the posteriors of another there are the posteriors that it changes."""
    found: dict[Setting, dict[str, list[Row]]] = {}
    for setting in dict.fromkeys(setting_of(row) for row in rows if row["part"] == part.name):
        here = [row for row in rows if row["part"] in (part.name, part.preset) and setting_of(row) == setting]
        by_name = {name: [row for row in here if variant_name(row) == name] for name in _display(part)}
        found[setting] = {name: same for name, same in by_name.items() if same}
    return found


def _display(part: Part) -> list[str]:
    own = [variant.name for variant in part.variants]
    if part.as_published:
        return [BASELINE, "ar1", *own]
    if part.name == "ablation":
        first = [BASELINE, "markov-shared", "markov", "ar1-rho-zero", "ar1", "ar1-per-pair"]
        return list(dict.fromkeys([*first, *own]))
    if part.name == "tightness":
        return [name for variant in part.variants for name in (variant.posterior, variant.name)]
    return own


def part_table(part: Part, rows: Sequence[Row]) -> str:
    """The tables of a part, one for each setting that has a row."""
    columns = _PUBLISHED if part.as_published else _COLUMNS.get(part.name, _COMPARISON)
    tables = []
    for setting, variants in settings(part, rows).items():
        lines = [[cell(name, variants) for _, cell in columns] for name in variants]
        tables.append(f"**{setting}**\n\n{_markdown([header for header, _ in columns], lines)}")
    return "\n\n".join(tables) if tables else "Not run."


def headline_table(rows: Sequence[Row]) -> str:
    """The study at a glance: on each data set, at the first size of the latent vector, the diagonal posterior's bound
    and NLL, and every other one's minus those."""
    columns = [
        (f"{_DATASETS[setting.dataset]}: {title}", variants, metric)
        for setting, variants in headline_settings(rows).items()
        for title, metric in _METRICS[:2]
    ]
    return _side_by_side(columns)


def headline_settings(rows: Sequence[Row]) -> dict[Setting, dict[str, list[Row]]]:
    """Those of :func:`settings` that are shown first."""
    found = settings(PARTS[HEADLINE], rows)
    return {setting: each for setting, each in found.items() if setting.latent_dim == PARTS[HEADLINE].latent_dims[0]}


def summary_tables(rows: Sequence[Row]) -> str:
    """The diagonal posterior's negative ELBO, NLL and gap between them, and every other one's minus those, a setting to
    a column: for each a table of the part that is shown first, and one of the other parts that compare posteriors."""
    found = _comparisons(rows)
    tables = []
    for title, metric in _METRICS:
        for inside in (True, False):
            columns = [
                (setting.short("" if inside else part), variants, metric)
                for (part, setting), variants in found.items()
                if (part == HEADLINE) == inside
            ]
            if columns:
                where = HEADLINE if inside else "the other parts"
                tables.append(f"**{title}, {where}**\n\n{_side_by_side(columns)}")
    return "\n\n".join(tables) if tables else "Not run."


def progress_table(rows: Sequence[Row], epochs: Sequence[Row]) -> str:
    """How the differences from the diagonal one go on: those of the validation loss after a third of the epochs, after
    two thirds, and after all, for the settings of :func:`summary_tables`."""
    losses = {(row["run"], row["epoch"]): row["validation_loss"] for row in epochs}
    tables = []
    for (part, setting), variants in _comparisons(rows).items():
        columns = []
        for epoch in sorted({-(-setting.epochs * third // 3) for third in (1, 2, 3)}):
            then = {
                name: [{**row, "loss": losses.get((row["run"], epoch))} for row in same]
                for name, same in variants.items()
            }
            columns.append((f"after {epoch} epochs", then, "loss"))
        tables.append(f"**{setting.short(part)}**\n\n{_side_by_side(columns)}")
    return "\n\n".join(tables) if tables else "Not run."


def _comparisons(rows: Sequence[Row]) -> dict[tuple[str, Setting], dict[str, list[Row]]]:
    """By name and setting, the rows of the parts that compare posteriors."""
    parts = [part for part in PARTS.values() if not any(variant.change for variant in part.variants)]
    return {(part.name, key): each for part in parts for key, each in settings(part, rows).items()}


def _side_by_side(columns: Sequence[tuple[str, Mapping[str, Sequence[Row]], str]]) -> str:
    """A row for each posterior of one of the columns: the diagonal one's mean, and the others' minus its. A column is
    what it is headed by, its rows by name of the variant, and what is shown of them."""
    names = [each.name for each in POSTERIORS if any(each.name in variants for _, variants, _ in columns)]
    if not names:
        return "Not run."
    lines = [
        [
            TITLES.get(name, name),
            *(
                (_mean(metric) if name == BASELINE else _minus(itemgetter(metric)))(name, variants)
                for _, variants, metric in columns
            ),
        ]
        for name in names
    ]
    lines.append(["seeds", *(_seed_counts(variants) for _, variants, _ in columns)])
    return _markdown(["posterior", *(header for header, _, _ in columns)], lines)


def _seed_counts(variants: Mapping[str, Sequence[Row]]) -> str:
    counts = sorted(map(len, variants.values()))
    return str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"


def status_table(rows: Sequence[Row]) -> str:
    """How much of the plan has been run, and how many rows are of other settings than those of the plan."""
    done = {row["run"] for row in rows}
    lines = []
    for part in PARTS.values():
        runs = plan([part.name])
        names = {run.name for run in runs}
        seeds = [sum(run.seed == seed for run in runs if run.name in done) for seed in range(part.seeds)]
        full = sum(n == len(runs) // part.seeds for n in seeds)
        beside = sum(row["part"] == part.name and row["run"] not in names for row in rows)
        counts = [str(len(runs)), str(len(names & done)), f"{full} of {part.seeds}", str(beside)]
        lines.append([part.name, part.about, *counts])
    header = ["part", "what it is", "runs", "done", "seeds that are complete", "runs beside the plan"]
    return _markdown(header, lines, texts=2)


Variants = Mapping[str, Sequence[Row]]
Cell = Callable[[str, Variants], str]
Value = Callable[[Row], float | None]


def _mean(metric: str, places: int = 2) -> Cell:
    def cell(name: str, variants: Variants) -> str:
        found = estimate(row[metric] for row in variants.get(name, ()) if row.get(metric) is not None)
        return "–" if found is None else found.text(places)

    return cell


def _minus(value: Value, other: str | None = None) -> Cell:
    """The difference from another variant of the setting, by default from the diagonal posterior."""

    def cell(name: str, variants: Variants) -> str:
        less = other or baseline_of(name)
        found = None if name == less else difference(variants.get(name, ()), variants.get(less, ()), value)
        if found is None:
            return "–"
        text = found.text(signed=True)
        return f"**{text}**" if found.differs_from_zero else text

    return cell


def _effect(name: str, variants: Variants) -> str:
    """The difference from the variant without what this one has, and the name of that one."""
    if name not in _WITHOUT:
        return "–"
    other = _WITHOUT[name]
    return f"{_minus(_elbo, other)(name, variants)} ({TITLES.get(other, other)})"


def _elbo(row: Row) -> float | None:
    return row["negative_elbo"]


def _printed(row: Row) -> float | None:
    """The loss that an objective prints: of the bound, the bound."""
    return row["printed_loss"] if row["change"] else row["negative_elbo"]


def _name(name: str, variants: Variants) -> str:
    return TITLES.get(name, name)


def _seeds(name: str, variants: Variants) -> str:
    return str(len(variants[name]))


def _printed_mean(name: str, variants: Variants) -> str:
    return str(estimate(value for value in map(_printed, variants[name]) if value is not None) or "–")


TITLES = {
    "low_rank-1": "low_rank, rank 1",
    "low_rank-2": "low_rank, rank 2",
    **{f"banded-{order}": f"banded, order {order}" for order in (2, 3, 8)},
    "ar1-walk": "as published, random walk",
    "ar1-walk-sampled": "the same, evaluated as it samples",
    "ar1-rho": "as published, later sampler",
    "ar1-rho-sampled": "the same, evaluated as it samples",
    "ar1-rho-zero": "ar1, ρ held at 0",
    "ar1-per-pair": "ar1, a ρ per pair",
    "markov-shared": "markov, one ρ",
    "ar1-permuted": "ar1, latents permuted",
    "markov-permuted": "markov, latents permuted",
    **{f"{each.name}-more-samples": f"{each.name}, {MORE_SAMPLES:,} samples" for each in POSTERIORS},
}
# What each variant of the ablation is compared with beside the baseline: the same chain without correlation, or with
# the latents in their own order.
_WITHOUT = {
    "ar1": "ar1-rho-zero",
    "ar1-per-pair": "ar1-rho-zero",
    "ar1-permuted": "ar1",
    "markov-permuted": "markov",
}
_Columns = tuple[tuple[str, Cell], ...]
_BOUNDS: _Columns = (
    ("negative ELBO", _mean("negative_elbo")),
    ("minus diagonal's", _minus(_elbo)),
    ("NLL", _mean("nll")),
    ("minus diagonal's", _minus(lambda row: row["nll"])),
)
_GAP_AND_MORE: _Columns = (
    ("gap", _mean("gap")),
    ("minus diagonal's", _minus(lambda row: row["gap"])),
    ("KL", _mean("kl")),
    ("total correlation", _mean("total_correlation")),
    ("mean abs. ρ", _mean("mean_abs_rho", 3)),
    ("effective samples", _mean("effective_sample_size", 1)),
    ("active units", _mean("active_units", 1)),
    ("seconds of the fastest epoch", _mean("fastest_epoch", 1)),
)
_COMPARISON: _Columns = (("posterior", _name), ("seeds", _seeds), *_BOUNDS, *_GAP_AND_MORE)
_ABLATION: _Columns = (
    ("posterior", _name),
    ("seeds", _seeds),
    *_BOUNDS[:2],
    ("minus that of", _effect),
    *_BOUNDS[2:],
    *_GAP_AND_MORE,
)
_TIGHTNESS: _Columns = (
    ("posterior", _name),
    ("seeds", _seeds),
    *_BOUNDS,
    *_GAP_AND_MORE[:2],
    ("effective samples", _mean("effective_sample_size", 1)),
)
_COLUMNS = {"ablation": _ABLATION, "tightness": _TIGHTNESS}
_PUBLISHED: _Columns = (
    ("trained by", lambda name, variants: TITLES.get(name, f"ELBO, {name}")),
    ("seeds", _seeds),
    ("the loss it prints", _printed_mean),
    ("minus diagonal's", _minus(_printed)),
    *_BOUNDS,
    ("KL", _mean("kl")),
    ("mean abs. ρ", _mean("mean_abs_rho", 3)),
    ("effective samples", _mean("effective_sample_size", 1)),
    ("active units", _mean("active_units", 1)),
)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table whose first columns are texts and whose others are numbers."""
    rule = [*["---"] * texts, *["---:"] * (len(header) - texts)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))
