"""The study's page: its tables are those of its rows, the rows are those of the plan, and what it says in words holds
of them."""

import statistics
from pathlib import Path

import pytest

from vae_models.settings.config import PRESETS
from vae_models.study import records, tables
from vae_models.study.plan import PARTS, plan
from vae_models.study.report import write_report

STUDY = Path(__file__).parents[3] / "docs" / "study"
ROWS = records.read_runs(STUDY)
EPOCHS = records.read_epochs(STUDY)


def test_tables_are_those_of_the_rows(tmp_path, blank_pictures):
    for name in ("runs.csv", "epochs.csv"):
        (tmp_path / name).write_bytes((STUDY / name).read_bytes())
    write_report(tmp_path)
    made, shown = (
        {path.name: path.read_text(encoding="utf-8") for path in (folder / "results").glob("*.md")}
        for folder in (tmp_path, STUDY)
    )
    shown.pop("parametrisations.md")  # of tests/test_benchmarks.py
    assert made == shown


def test_rows_are_of_the_plan():
    names = [row["run"] for row in ROWS]
    assert len(set(names)) == len(names)
    assert set(names) <= {run.name for run in plan()}


def test_every_epoch_has_a_row():
    """But for runs that evaluate what another one trained."""
    trained = {run.name: run.epochs for run in plan() if run.trained == run}
    counts = dict.fromkeys((row["run"] for row in ROWS if row["run"] in trained), 0)
    for row in EPOCHS:
        counts[row["run"]] += 1
    assert counts == {name: trained[name] for name in counts}


def test_the_page_shows_every_part():
    page = (STUDY / "index.md").read_text(encoding="utf-8")
    for name in (*PARTS, "headline", "parametrisations", "status", "summary", "progress"):
        assert f"{{include}} results/{name}.md" in page


def test_nothing_had_converged_after_fifteen_epochs():
    """As the page says: the plateau never came, the last epoch was the best, and the loss was still falling."""
    short = [row for row in ROWS if row["epochs"] == 15 and row["preset"] == "vanilla"]
    names = {row["run"] for row in short}
    assert {row["learning_rate"] for row in EPOCHS if row["run"] in names} == {0.001}
    assert sum(row["best_epoch"] == 15 for row in short) / len(short) > 0.9
    losses = {(row["run"], row["epoch"]): row["validation_loss"] for row in EPOCHS}
    elbos = [row["run"] for row in short if not row["change"]]
    assert 0.4 < statistics.fmean(losses[name, 13] - losses[name, 15] for name in elbos) < 0.7


# --- What the page says in words ---


def compared(name, dataset, latent_dim=20, *, part="vanilla", other="diagonal", metric="negative_elbo"):
    """The difference of two variants of a setting, of which there is one in the part."""
    (variants,) = (
        variants
        for setting, variants in tables.settings(PARTS[part], ROWS).items()
        if (setting.dataset, setting.latent_dim) == (dataset, latent_dim)
    )
    found = tables.difference(variants[name], variants[other], lambda row: row[metric])
    assert found is not None
    return found


def minus(*arguments, **options):
    return compared(*arguments, **options).mean


def mean_of(name, dataset, metric):
    """Over the seeds of a vanilla variant with 20 latents."""
    (variants,) = (
        variants
        for setting, variants in tables.settings(PARTS["vanilla"], ROWS).items()
        if (setting.dataset, setting.latent_dim) == (dataset, 20)
    )
    return statistics.fmean(row[metric] for row in variants[name])


def ahead(name, dataset, epoch, part="vanilla"):
    """The difference from the diagonal posterior in the validation loss after so many epochs."""
    losses = {(row["run"], row["epoch"]): row["validation_loss"] for row in EPOCHS}
    (variants,) = (
        variants
        for setting, variants in tables.settings(PARTS[part], ROWS).items()
        if (setting.dataset, setting.latent_dim) == (dataset, 20)
    )
    return tables.difference(variants[name], variants["diagonal"], lambda row: losses[row["run"], epoch]).mean


def says(text: str) -> bool:
    return " ".join(text.split()) in " ".join((STUDY / "index.md").read_text(encoding="utf-8").split())


SETTINGS = [(dataset, latent_dim) for dataset in ("mnist", "fashion-mnist") for latent_dim in (20, 10)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ar1", SETTINGS),
        ("markov", [("mnist", 20), ("fashion-mnist", 10)]),
        ("low_rank-1", []),
        ("low_rank-2", []),
        ("full", SETTINGS),
    ],
)
def test_what_is_called_a_gain_or_a_loss(name, expected):
    assert [setting for setting in SETTINGS if compared(name, *setting).differs_from_zero] == expected


def test_what_ar1_loses():
    mnist, mnist_10, fashion, fashion_10 = (minus("ar1", *setting) for setting in SETTINGS)
    assert says(
        f"with 20 latents (by {mnist:.1f} nats of the bound on MNIST, by {fashion:.1f} on Fashion-MNIST), less with 10 "
        f"(by {mnist_10:.1f} and {fashion_10:.1f})"
    )
    assert all(minus("ar1", *setting, metric="nll") > 0 for setting in SETTINGS)
    single = [minus("ar1", dataset, part="binary") for dataset in ("mnist", "fashion-mnist")]
    single += [minus("ar1", "mnist", part=part) for part in ("cnn", "info")]
    assert says(f"by {min(single):.1f} to {max(single):.1f} nats")


def test_what_beta_gives_ar1():
    elbo, nll = (minus("ar1", "mnist", part="beta", metric=metric) for metric in ("negative_elbo", "nll"))
    kl = minus("ar1", "mnist", part="beta", metric="kl")
    objective = elbo + (PRESETS["beta"]["objective"].beta - 1) * kl
    assert abs(elbo) < 0.15
    assert says(f"an NLL lower by {-nll:.1f}")
    assert says(f"{objective:.0f} nats more of what was minimised")


def test_what_the_published_objective_trains():
    printed, elbo, kl = [], [], []
    for dataset in ("mnist", "fashion-mnist"):
        (variants,) = (v for s, v in tables.settings(PARTS["published"], ROWS).items() if s.dataset == dataset)
        for name in ("ar1-walk", "ar1-rho"):
            loss = tables.difference(
                variants[name], variants["diagonal"], lambda row: row["printed_loss"] or row["negative_elbo"]
            )
            printed.append(loss.mean)
            elbo += [minus(each, dataset, part="published") for each in (name, f"{name}-sampled")]
            means = [statistics.fmean(row["kl"] for row in variants[each]) for each in (name, "diagonal")]
            kl.append(means[0] / means[1])
            assert statistics.fmean(row["mean_abs_rho"] for row in variants[name]) < 0.1
            assert abs(elbo[-1] - elbo[-2]) < 0.2
        correlated = statistics.fmean(row["mean_abs_rho"] for row in variants["ar1-walk-sampled"])
        assert says(f"correlated by {correlated:.2f}")
    assert {f"{-loss:.0f}" for loss in printed} == {"33", "25"}
    assert says("33 nats below that of `diagonal` on MNIST and 25 on Fashion-MNIST")
    assert says(f"is {min(elbo):.0f} to {max(elbo):.0f} nats above diagonal's")
    assert says(f"is {min(kl):.1f} to {max(kl):.1f} times diagonal's")


def test_what_correlation_gains():
    settings = [(dataset, latent_dim) for dataset in ("mnist", "fashion-mnist") for latent_dim in (20, 10)]
    bound, nll = ([-minus("full", *each, metric=metric) for each in settings] for metric in ("negative_elbo", "nll"))
    assert says(
        f"`full` gains {bound[0]:.1f} nats of the bound on MNIST with 20 latents and {bound[1]:.1f} with 10, "
        f"{bound[2]:.1f} on Fashion-MNIST with 20 and {bound[3]:.1f} with 10; of the NLL {nll[0]:.1f}, {nll[1]:.1f}, "
        f"{nll[2]:.1f} and {nll[3]:.1f}."
    )
    chains = ("markov", "banded-2", "banded-3", "banded-8", "full")
    mnist, fashion = ([-minus(name, dataset) for name in chains] for dataset in ("mnist", "fashion-mnist"))
    assert says(
        f"it is {mnist[0]:.1f}, {mnist[1]:.1f}, {mnist[2]:.1f} and {mnist[3]:.1f} on MNIST for `markov` and for "
        f"`banded` of orders 2, 3 and 8; on Fashion-MNIST it is {fashion[3]:.1f} for order 8, in the NLL "
        f"{-minus('banded-8', 'fashion-mnist', metric='nll'):.1f}, and nothing that is certain for the lower ones"
    )
    assert mnist == sorted(mnist)
    assert fashion[4] > fashion[3] > max(fashion[:3])
    assert compared("banded-8", "fashion-mnist", metric="nll").differs_from_zero
    for name in ("markov", "banded-2", "banded-3"):
        for metric in ("negative_elbo", "nll"):
            assert not compared(name, "fashion-mnist", metric=metric).differs_from_zero
    low_rank = [-minus(f"low_rank-{rank}", dataset) for dataset in ("mnist", "fashion-mnist") for rank in (1, 2)]
    assert says(
        f"gains {low_rank[0]:.1f} and {low_rank[1]:.1f} on MNIST with 20 latents, {low_rank[2]:.1f} and "
        f"{low_rank[3]:.1f} on Fashion-MNIST, in three seeds of each"
    )
    assert {
        compared(f"low_rank-{rank}", dataset).seeds for rank in (1, 2) for dataset in ("mnist", "fashion-mnist")
    } == {3}


def test_what_full_learns():
    totals = [mean_of("full", dataset, "total_correlation") for dataset in ("mnist", "fashion-mnist")]
    assert says(f"of `full` is {totals[0]:.1f} nats on MNIST and {totals[1]:.1f} on Fashion-MNIST")
    (early, late), (early_fashion, late_fashion) = (
        [-ahead("full", dataset, epoch) for epoch in (5, 15)] for dataset in ("mnist", "fashion-mnist")
    )
    assert says(
        f"it is {early:.1f} nats after 5 epochs and {late:.1f} after 15 on MNIST, {early_fashion:.1f} and "
        f"{late_fashion:.1f} on Fashion-MNIST"
    )


def test_what_the_scales_and_the_correlation_do():
    datasets = ("mnist", "fashion-mnist")
    without, one, each = (
        [minus(name, dataset, part="ablation", other=other) for dataset in datasets]
        for name, other in [("ar1-rho-zero", "diagonal"), ("ar1", "ar1-rho-zero"), ("ar1-per-pair", "ar1-rho-zero")]
    )
    assert says(f"loses {without[0]:.1f} nats on MNIST and {without[1]:.1f} on Fashion-MNIST")
    assert says(
        f"One ρ makes up {-one[1]:.1f} of that on Fashion-MNIST, and nothing that is certain on MNIST; a ρ for each "
        f"pair {-each[0]:.1f} and {-each[1]:.1f}"
    )
    assert not compared("ar1", "mnist", part="ablation", other="ar1-rho-zero").differs_from_zero
    for dataset in datasets:
        assert not compared("markov-shared", dataset, part="ablation").differs_from_zero
    assert not compared("ar1-per-pair", "fashion-mnist", part="ablation").differs_from_zero
    (ar1, markov), (ar1_fashion, markov_fashion) = (
        [minus(f"{name}-permuted", dataset, part="ablation", other=name) for name in ("ar1", "markov")]
        for dataset in datasets
    )
    assert says(
        f"both lose, {ar1:.1f} and {markov:.1f} nats of the bound on MNIST and {ar1_fashion:.0f} and "
        f"{markov_fashion:.0f} on Fashion-MNIST"
    )


def test_what_becomes_of_the_gap():
    assert all(minus("ar1", *setting, metric="gap") > 0.1 for setting in SETTINGS)
    mnist, mnist_10, fashion, fashion_10 = (minus("full", *setting, metric="gap") for setting in SETTINGS)
    assert says(
        f"the gap of `full` is {-fashion:.1f} nats narrower than diagonal's with 20 latents, {-fashion_10:.1f} with 10"
    )
    assert says(f"On MNIST it is the same within {max(abs(mnist), abs(mnist_10)):.1f} nats")
    assert all(compared("full", "fashion-mnist", d, metric="gap").differs_from_zero for d in (20, 10))
    assert all(abs(minus("markov", *setting, metric="gap")) < 0.1 for setting in SETTINGS)
    before = minus("ar1-rho-zero", "fashion-mnist", part="ablation", metric="gap")
    assert says(f"from {before:.1f} to {minus('ar1', 'fashion-mnist', metric='gap'):.1f} nats above diagonal's")


def test_what_more_samples_change():
    """Of the NLL, the gap and their differences from diagonal's."""
    wider, moved = [], []
    for setting, variants in tables.settings(PARTS["tightness"], ROWS).items():
        for name in ("diagonal", "ar1", "markov"):
            more = f"{name}-more-samples"
            wider.append(
                statistics.fmean(row["gap"] for row in variants[more])
                - statistics.fmean(row["gap"] for row in variants[name])
            )
            if name != "diagonal":
                moved += [
                    minus(more, setting.dataset, part="tightness", other="diagonal-more-samples", metric=metric)
                    - minus(name, setting.dataset, part="tightness", metric=metric)
                    for metric in ("gap", "nll")
                ]
    assert says(f"the gaps are {min(wider):.1f} to {max(wider):.1f} nats wider")
    assert says(f"move by at most {max(map(abs, moved)):.1f}")


def test_what_long_training_gives():
    """The NLLs, and the epochs at which the learning rate first fell."""
    (variants,) = tables.settings(PARTS["literature"], ROWS).values()
    rows = {name: row for name, (row,) in variants.items()}
    assert says(
        f"the NLL is {rows['diagonal']['nll']:.2f} with the diagonal posterior, {rows['ar1']['nll']:.2f} with `ar1` "
        f"and {rows['markov']['nll']:.2f} with `markov`"
    )
    lower = {
        name: [each["epoch"] for each in EPOCHS if each["run"] == row["run"] and each["learning_rate"] < 1e-3]
        for name, row in rows.items()
    }
    assert says(
        f"first fell at epoch {lower['diagonal'][0]} with `diagonal`, at {lower['ar1'][0]} with `ar1`, and never with "
        "`markov`"
    )
    assert lower["markov"] == []
