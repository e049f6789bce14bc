import pytest
import scipy.stats

from vae_models.study import tables
from vae_models.study.plan import PARTS, plan


def row(part="vanilla", posterior="diagonal", change="", rank=None, order=None, seed=0, **figures):
    made = {"part": part, "preset": "vanilla", "dataset": "mnist", "binarize": "none", "latent_dim": 20, "epochs": 15}
    made |= {"posterior": posterior, "change": change, "rank": rank, "order": order, "seed": seed, "printed_loss": None}
    for name in ("negative_elbo", "nll", "gap", "kl", "total_correlation", "mean_abs_rho", "effective_sample_size"):
        made[name] = 1.0
    return {**made, "active_units": 20, "run": f"{part} {posterior} {change} {seed} {made['dataset']}", **figures}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


def test_estimate():
    assert tables.estimate([]) is None
    assert tables.estimate([3.0]) == (3.0, None, 1)
    mean, error, seeds = tables.estimate([1.0, 2.0, 4.0, 5.0])
    assert (mean, seeds) == (3.0, 4)
    assert error == pytest.approx((10 / 3) ** 0.5 / 2)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_differs_from_zero(seeds):
    """As SciPy's t test says, of values on both sides of its level."""
    for shift in (0.1, 1.0, 2.0, 5.0, 50.0):
        values = [shift + i for i in range(seeds)]
        expected = scipy.stats.ttest_1samp(values, 0.0).pvalue < 0.05
        assert tables.estimate(values).differs_from_zero == expected
    assert not tables.estimate([100.0]).differs_from_zero


def test_difference_is_of_the_same_seeds():
    """The seeds differ by far more than the posteriors, and the second has one seed more."""
    rows = [row(seed=seed, nll=100.0 * seed + 1 + 0.1 * seed) for seed in (0, 1, 2)]
    others = [row(seed=seed, nll=100.0 * seed) for seed in (2, 1, 0, 3)]
    mean, error, seeds = tables.difference(rows, others, lambda row: row["nll"])
    assert (mean, seeds) == (pytest.approx(1.1), 3)
    assert error == pytest.approx(0.1 / 3**0.5)
    assert tables.difference(rows[:1], others[:1], lambda row: row["nll"]) is None


def test_comparison():
    rows = [row(seed=s, nll=100.0 + s, mean_abs_rho=None, fastest_epoch=4.0) for s in (0, 1)]
    rows += [row(posterior="ar1", seed=s, nll=99.5 + s, mean_abs_rho=0.25) for s in (0, 1)]
    rows += [row(posterior="low_rank", rank=2, nll=98.0), row(dataset="fashion-mnist", nll=200.0)]
    text = tables.part_table(PARTS["vanilla"], rows)
    assert "**mnist, grey values, 20 latents, 15 epochs**" in text
    assert "**fashion-mnist, grey values, 20 latents, 15 epochs**" in text
    first = text.split("**fashion")[0]
    header, _, diagonal, ar1, low_rank = cells(first)
    nll = header.index("NLL")
    assert diagonal[:2] == ["diagonal", "2"]
    assert diagonal[nll : nll + 2] == ["100.50 ± 0.50", "–"]
    assert ar1[nll : nll + 2] == ["100.00 ± 0.50", "**−0.50 ± 0.00**"]
    assert low_rank[:2] == ["low_rank, rank 2", "1"]
    assert low_rank[nll : nll + 2] == ["98.00", "−2.00"]
    rho = header.index("mean abs. ρ")
    assert (diagonal[rho], ar1[rho]) == ("–", "0.250 ± 0.000")
    seconds = header.index("seconds of the fastest epoch")
    assert (diagonal[seconds], ar1[seconds]) == ("4.0 ± 0.0", "–")
    assert all(len(line) == len(header) for line in (diagonal, ar1, low_rank))


def test_headline():
    """At the first size alone, a row for each posterior that was run, in the order of the plan."""
    rows = [row(seed=s, negative_elbo=100.0 + s) for s in (0, 1)]
    rows += [row(posterior="ar1", seed=s, negative_elbo=101.0 + s, nll=1.5) for s in (0, 1)]
    rows += [row(posterior="full", seed=1, negative_elbo=100.0), row(posterior="banded", order=8, seed=1, nll=0.5)]
    rows += [row(dataset="fashion-mnist", negative_elbo=200.0), row(latent_dim=10), row("ablation", "ar1", "rho-zero")]
    header, _, *lines = cells(tables.headline_table(rows))
    assert header == ["posterior", *(f"{x}: {y}" for x in ("MNIST", "Fashion-MNIST") for y in ("negative ELBO", "NLL"))]
    assert lines == [
        ["diagonal", "100.50 ± 0.50", "1.00 ± 0.00", "200.00", "1.00"],
        ["ar1", "**+1.00 ± 0.00**", "**+0.50 ± 0.00**", "–", "–"],
        ["banded, order 8", "−100.00", "−0.50", "–", "–"],
        ["full", "−1.00", "+0.00", "–", "–"],
        ["seeds", "1 to 2", "1 to 2", "1", "1"],
    ]
    assert tables.headline_table([row(latent_dim=10)]) == "Not run."


def test_summary():
    rows = [row(seed=s, negative_elbo=100.0 + s) for s in (0, 1)]
    rows += [row(posterior="ar1", seed=s, negative_elbo=101.0 + s, nll=1.5) for s in (0, 1)]
    rows += [row(latent_dim=10, gap=7.0), row("ablation", "ar1", "rho-zero")]
    rows += [row("cnn", preset="cnn", dataset="fashion-mnist", negative_elbo=200.0)]
    titles, found = zip(*(text.split("\n\n") for text in _pairs(tables.summary_tables(rows))), strict=True)
    metrics = ("negative ELBO", "NLL", "gap")
    assert list(titles) == [f"**{metric}, {where}**" for metric in metrics for where in ("vanilla", "the other parts")]
    elbo, others, nll, _, gap, _ = map(cells, found)
    assert elbo[0] == ["posterior", "MNIST, 20 latents", "MNIST, 10 latents"]
    assert elbo[2:] == [
        ["diagonal", "100.50 ± 0.50", "1.00"],
        ["ar1", "**+1.00 ± 0.00**", "–"],
        ["seeds", "2", "1"],
    ]
    assert others[0] == ["posterior", "cnn: Fashion-MNIST, 20 latents"]
    assert others[2] == ["diagonal", "200.00"]
    assert nll[3][1] == "**+0.50 ± 0.00**"
    assert gap[2][2] == "7.00"
    assert tables.summary_tables([row("ablation", "ar1", "rho-zero")]) == "Not run."


def _pairs(text: str) -> list[str]:
    """Each heading with its table."""
    parts = text.split("\n\n")
    return [f"{title}\n\n{table}" for title, table in zip(parts[::2], parts[1::2], strict=True)]


def test_progress():
    rows = [row(seed=s) for s in (0, 1)] + [row(posterior="ar1", seed=s) for s in (0, 1)]
    slope = {"diagonal": 1.0, "ar1": 2.0}
    epochs = [
        {"run": each["run"], "epoch": epoch, "validation_loss": 100.0 + each["seed"] - slope[each["posterior"]] * epoch}
        for each in rows
        for epoch in range(1, 16)
    ]
    (text,) = _pairs(tables.progress_table(rows, epochs))
    assert text.startswith("**vanilla: MNIST, 20 latents**\n\n")
    header, _, *lines = cells(text)
    assert header == ["posterior", *(f"after {n} epochs" for n in (5, 10, 15))]
    assert lines == [
        ["diagonal", "95.50 ± 0.50", "90.50 ± 0.50", "85.50 ± 0.50"],
        ["ar1", *(f"**−{n}.00 ± 0.00**" for n in (5, 10, 15))],
        ["seeds", "2", "2", "2"],
    ]
    assert tables.progress_table([], []) == "Not run."


def test_published_beside_what_it_changes():
    rows = [row(negative_elbo=100.0), row(posterior="ar1", negative_elbo=101.0), row(posterior="full")]
    rows += [row("published", "ar1", "walk", negative_elbo=120.0, printed_loss=90.0)]
    rows += [row("published", "ar1", "walk-sampled", negative_elbo=150.0)]
    header, _, *lines = cells(tables.part_table(PARTS["published"], rows))
    printed = header.index("the loss it prints")
    assert [[line[0], *line[printed : printed + 4]] for line in lines] == [
        ["ELBO, diagonal", "100.00", "–", "100.00", "–"],
        ["ELBO, ar1", "101.00", "+1.00", "101.00", "+1.00"],
        ["as published, random walk", "90.00", "−10.00", "120.00", "+20.00"],
        ["the same, evaluated as it samples", "–", "–", "150.00", "+50.00"],
    ]


def test_ablation_is_in_order_of_what_the_correlation_may_do():
    rows = [row(posterior=name) for name in ("diagonal", "ar1", "markov", "full")]
    rows += [row("ablation", "ar1", change) for change in ("permuted", "per-pair", "rho-zero")]
    _, _, *lines = cells(tables.part_table(PARTS["ablation"], rows))
    names = ["diagonal", "markov", "ar1, ρ held at 0", "ar1", "ar1, a ρ per pair", "ar1, latents permuted"]
    assert [line[0] for line in lines] == names


def test_ablation_tells_what_each_change_does():
    """Beside the difference from the diagonal posterior: from the chain without correlation, or in its own order."""
    rows = [row(seed=s, negative_elbo=100.0 + s) for s in (0, 1, 2)]
    rows += [row("ablation", "ar1", "rho-zero", seed=s, negative_elbo=104.0 + s) for s in (0, 1)]
    rows += [row(posterior="ar1", seed=s, negative_elbo=103.0 + s) for s in (0, 1, 2)]
    rows += [row("ablation", "ar1", "per-pair", seed=1, negative_elbo=102.0)]
    rows += [row("ablation", "ar1", "permuted", seed=s, negative_elbo=110.0 + 4 * s) for s in (0, 1)]
    header, _, *lines = cells(tables.part_table(PARTS["ablation"], rows))
    column = header.index("minus that of")
    assert [(line[0], line[column]) for line in lines] == [
        ("diagonal", "–"),
        ("ar1, ρ held at 0", "–"),
        ("ar1", "**−1.00 ± 0.00** (ar1, ρ held at 0)"),
        ("ar1, a ρ per pair", "−3.00 (ar1, ρ held at 0)"),
        ("ar1, latents permuted", "+8.50 ± 1.50 (ar1)"),
    ]


def test_more_samples_are_compared_with_as_many():
    rows = [row(nll=100.0), row(posterior="ar1", nll=101.0), row(posterior="full", nll=90.0)]
    rows += [row("tightness", posterior, "more-samples", nll=nll) for posterior, nll in (("diagonal", 98), ("ar1", 97))]
    header, _, *lines = cells(tables.part_table(PARTS["tightness"], rows))
    nll = header.index("NLL")
    assert [[line[0], *line[nll : nll + 2]] for line in lines] == [
        ["diagonal", "100.00", "–"],
        ["diagonal, 5,000 samples", "98.00", "–"],
        ["ar1", "101.00", "+1.00"],
        ["ar1, 5,000 samples", "97.00", "−1.00"],
        ["full", "90.00", "−10.00"],
    ]


def test_what_is_not_run_is_said_not_to_be():
    assert tables.part_table(PARTS["cnn"], [row()]) == "Not run."


def test_status():
    runs = plan(["vanilla"], seeds=2)[:-1] + plan(["vanilla"], datasets=["digits"], seeds=1, epochs=2)
    _, _, first, *others = cells(tables.status_table([{"run": run.name, "part": run.part} for run in runs]))
    assert first == ["vanilla", PARTS["vanilla"].about, "150", "59", "1 of 5", "15"]
    assert {line[3] for line in others} == {"0"}
    assert [line[0] for line in (first, *others)] == list(PARTS)
