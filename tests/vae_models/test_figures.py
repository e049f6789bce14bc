import pytest
import torch
from PIL import Image

from vae_models import figures

RUNS = {"diagonal": [9.0, 5.0, 4.0], "ar1": [8.0, 5.0, 3.0]}
TEST = {"diagonal": [9.5, 5.5, 4.5], "ar1": [8.5, 5.5, 3.5]}


def overlaps(figure) -> list:
    """Pairs of texts of a figure that overlap."""
    figure.canvas.draw()
    texts = [figure._suptitle] if figure._suptitle else []
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    return [(a, b) for i, (a, first) in enumerate(boxes) for b, second in boxes[i + 1 :] if first.overlaps(second)]


def test_curves():
    figure = figures.curves(RUNS, TEST, title="a title")
    (axes,) = figure.axes
    assert axes.get_title() == "a title"
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "negative ELBO (nats per image)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["diagonal", "ar1", "test", "training"]
    drawn = {(tuple(line.get_ydata()), line.get_linestyle()) for line in axes.get_lines()}
    assert drawn == {(tuple(values), style) for runs, style in ((RUNS, "--"), (TEST, "-")) for values in runs.values()}
    assert all(list(line.get_xdata()) == [1, 2, 3] for line in axes.get_lines())
    low, high = axes.get_ylim()
    assert low < 3
    assert high > 9.5
    assert overlaps(figure) == []


def test_curves_of_one_epoch_are_visible():
    (axes,) = figures.curves({"ar1": [3.0]}, {"ar1": [3.0]}, title="").axes
    assert all(line.get_marker() == "o" for line in axes.get_lines())
    low, high = axes.get_ylim()
    assert low < 3 < high


def test_long_curves_leave_out_the_first_fall():
    run = {"ar1": [1000.0, 500.0, *(20.0 + i % 2 for i in range(98))]}
    (axes,) = figures.curves(run, run, title="").axes
    assert 21 < axes.get_ylim()[1] < 22


@pytest.mark.parametrize("channels", [1, 3])
def test_samples(channels):
    images = torch.rand(4, channels, 2, 3)
    figure = figures.samples({"diagonal": images, "ar1": 1 - images}, title="a title")
    assert figure.get_suptitle() == "a title"
    assert [axes.get_title() for axes in figure.axes] == ["diagonal", "ar1"]
    sheet = torch.tensor(figure.axes[0].images[0].get_array()).reshape(5, 7, channels)
    for i, (row, column) in enumerate([(0, 0), (0, 4), (3, 0), (3, 4)]):
        assert torch.equal(sheet[row : row + 2, column : column + 3], images[i].movedim(0, -1))
    assert (sheet[2] == 1).all()
    assert overlaps(figure) == []


def test_reconstructions():
    originals = torch.rand(5, 1, 4, 4)
    figure = figures.reconstructions(originals, {"ar1": originals / 2, "markov": originals / 3}, title="a title")
    assert [axes.get_ylabel() for axes in figure.axes] == ["original", "ar1", "markov"]
    for axes, factor in zip(figure.axes, (1, 2, 3), strict=True):
        row = torch.tensor(axes.images[0].get_array())
        torch.testing.assert_close(row[:4, 5:9], originals[1, 0] / factor)
    assert overlaps(figure) == []


def test_png(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(figures.png(figures.curves(RUNS, TEST, title="")))
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.size == (1050, 675)
