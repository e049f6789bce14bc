import pytest

from tests.vae_models.study.test_tables import row
from vae_models.study import curves
from vae_models.study.plan import PARTS


def epochs_of(rows, losses):
    return [
        {"run": each["run"], "epoch": epoch + 1, "validation_loss": loss}
        for each, values in zip(rows, losses, strict=True)
        for epoch, loss in enumerate(values)
    ]


def test_loss_curves_are_means_over_seeds():
    rows = [row(seed=0), row(seed=1), row(posterior="ar1")]
    epochs = epochs_of(rows, [[4.0, 2.0], [6.0, 3.0], [5.0, 1.0]])
    (axes,) = curves.loss_curves(PARTS["vanilla"], rows, epochs).axes
    assert [(line.get_label(), list(line.get_ydata())) for line in axes.lines] == [
        ("diagonal", [5.0, 2.5]),
        ("ar1", [5.0, 1.0]),
    ]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (2.0, 6.0)


def test_panel_for_every_setting_and_no_curve_for_what_was_not_trained():
    rows = [
        row(),
        row(latent_dim=10, run="ten"),
        row("ablation", "ar1", "permuted"),
        row("ablation", "ar1", "per-pair"),
    ]
    vanilla = curves.loss_curves(PARTS["vanilla"], rows, epochs_of(rows[:2], [[1.0], [2.0]]))
    titles = ["mnist, grey values, 20 latents, 15 epochs", "mnist, grey values, 10 latents, 15 epochs"]
    assert [axes.get_title() for axes in vanilla.axes] == titles
    (axes,) = curves.loss_curves(PARTS["ablation"], rows, epochs_of([rows[0], rows[3]], [[1.0], [2.0]])).axes
    assert [line.get_label() for line in axes.lines] == ["diagonal", "ar1-per-pair"]


def test_no_panel_for_a_setting_of_which_nothing_was_trained():
    rows = [row("ablation", "ar1", "rho-zero"), row("ablation", "ar1", "permuted", latent_dim=10)]
    (axes,) = curves.loss_curves(PARTS["ablation"], rows, epochs_of(rows[:1], [[1.0, 2.0]])).axes
    assert axes.get_title() == "mnist, grey values, 20 latents, 15 epochs"


def test_differences_are_paired():
    rows = [row(seed=s, nll=100.0 * s, negative_elbo=0.0, gap=0.0) for s in (0, 1)]
    rows += [row(posterior="ar1", seed=s, nll=100.0 * s + 2 + s, negative_elbo=-1.0, gap=0.0) for s in (0, 1)]
    figure = curves.differences(PARTS["vanilla"], rows)
    (axes,), (legend,) = figure.axes, figure.legends
    titles = [text.get_text() for text in legend.get_texts()]
    assert titles == ["negative ELBO", "NLL", "gap"]
    points = dict(zip(titles, axes.containers, strict=True))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ar1"]
    assert points["negative ELBO"].lines[0].get_xdata() == pytest.approx([-1.0])
    assert points["NLL"].lines[0].get_xdata() == pytest.approx([2.5])
    (error,) = points["NLL"].lines[2][0].get_segments()
    assert sorted(error[:, 0]) == pytest.approx([2.0, 3.0])


def test_headline_has_a_panel_for_each_data_set():
    """And a row for each posterior but the diagonal one, whether it was run on both or on one."""
    rows = [row(seed=s, dataset=name) for s in (0, 1) for name in ("mnist", "fashion-mnist")]
    rows += [row(posterior="ar1", seed=s, negative_elbo=2.0 + s, nll=0.5) for s in (0, 1)]
    rows += [row(posterior="full", dataset="fashion-mnist", negative_elbo=-1.0), row(posterior="full", latent_dim=10)]
    mnist, fashion = curves.headline(rows).axes
    assert [axes.get_title() for axes in (mnist, fashion)] == ["MNIST, 20 latents", "Fashion-MNIST, 20 latents"]
    assert [label.get_text() for label in mnist.get_yticklabels()] == ["ar1", "full"]
    assert [each.lines[0].get_xdata()[0] for each in mnist.containers] == pytest.approx([1.5, -0.5])
    (error,) = mnist.containers[0].lines[2][0].get_segments()
    assert sorted(error[:, 0]) == pytest.approx([1.0, 2.0])
    assert [each.lines[0].get_xdata()[0] for each in fashion.containers] == pytest.approx([-2.0, 0.0])


def test_more_samples_are_compared_with_as_many():
    rows = [row(), row(posterior="ar1"), row("tightness", "diagonal", "more-samples", nll=5.0)]
    rows += [row("tightness", "ar1", "more-samples", nll=7.0)]
    (axes,) = curves.differences(PARTS["tightness"], rows).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ar1", "ar1-more-samples"]
    assert [each.lines[0].get_xdata()[0] for each in axes.containers[2:4]] == [0.0, 2.0]


def test_legend_where_the_first_has_no_seed_in_common():
    rows = [row(seed=0), row(posterior="ar1", seed=1), row(posterior="markov", seed=0)]
    (legend,) = curves.differences(PARTS["vanilla"], rows).legends
    assert len(legend.get_texts()) == 3
