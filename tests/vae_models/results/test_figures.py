import pytest
import torch
from PIL import Image

from vae_models.model.posteriors import POSTERIORS
from vae_models.results import figures

TRAIN = {"diagonal": [9.0, 5.0, 4.0], "ar1": [8.0, 5.0, 3.0]}
VALIDATION = {"diagonal": [9.5, 5.5, 4.5], "ar1": [8.5, 5.5, 3.5]}

numbers_of_posteriors = pytest.mark.parametrize("n", [1, 3, 5])
shapes = pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28)])


def texts(figure) -> list:
    """Every text of a figure that can be seen, once the figure is laid out, with its box."""
    figure.draw_without_rendering()
    found = [figure._suptitle] if figure._suptitle else []
    for axes in figure.axes:
        found += [
            axes.title,
            axes.xaxis.label,
            axes.yaxis.label,
            *(axes.get_legend().texts if axes.get_legend() else []),
        ]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            found += [label for place, label in labels if low <= place <= high]
    return [(text.get_text(), text.get_window_extent()) for text in found if text.get_text()]


def overlaps(figure) -> list:
    """Pairs of texts of a figure that overlap."""
    boxes = texts(figure)
    return [(a, b) for i, (a, first) in enumerate(boxes) for b, second in boxes[i + 1 :] if first.overlaps(second)]


def outside(figure) -> list:
    """Texts of a figure that its edge cuts."""
    width, height = figure.bbox.size
    return [text for text, box in texts(figure) if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]


def image_at(axes, row: int, column: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """An image of a sheet, of shape ``(C, H, W)``."""
    channels, height, width = shape
    sheet = torch.tensor(axes.images[0].get_array())
    sheet = sheet.reshape(*sheet.shape[:2], channels)
    top, left = row * (height + 1), column * (width + 1)
    return sheet[top : top + height, left : left + width].movedim(-1, 0)


def test_curves():
    figure = figures.curves(TRAIN, VALIDATION, title="a title")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "a title"
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "negative ELBO (nats per image)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["diagonal", "ar1", "validation", "training"]
    drawn = {(tuple(line.get_ydata()), line.get_linestyle()) for line in axes.get_lines()}
    runs = ((TRAIN, "--"), (VALIDATION, "-"))
    assert drawn == {(tuple(values), style) for each, style in runs for values in each.values()}
    assert all(list(line.get_xdata()) == [1, 2, 3] for line in axes.get_lines())
    low, high = axes.get_ylim()
    assert low < 3
    assert high > 9.5
    assert overlaps(figure) == outside(figure) == []


def test_curves_of_one_posterior_share_a_colour_and_differ_between_posteriors():
    runs = {name: [3.0, float(i)] for i, name in enumerate(POSTERIORS)}
    (axes,) = figures.curves(runs, runs, title="").axes
    colours = [line.get_color() for line in axes.get_lines()]
    assert colours[::2] == colours[1::2]
    assert len(set(colours)) == len(POSTERIORS)


def test_curves_of_another_loss_and_of_different_lengths():
    (axes,) = figures.curves({"a": [3.0, 2.0], "b": [1.0]}, {"a": [3.0, 2.0], "b": [1.0]}, title="", label="loss").axes
    assert axes.get_ylabel() == "loss"
    assert {len(line.get_xdata()) for line in axes.get_lines()} == {1, 2}


def test_curves_of_one_epoch_are_visible():
    (axes,) = figures.curves({"ar1": [3.0]}, {"ar1": [3.0]}, title="").axes
    assert all(line.get_marker() == "o" for line in axes.get_lines())
    low, high = axes.get_ylim()
    assert low < 3 < high


def test_long_curves_leave_out_the_first_fall():
    run = {"ar1": [1000.0, 500.0, *(20.0 + i % 2 for i in range(98))]}
    (axes,) = figures.curves(run, run, title="").axes
    assert 21 < axes.get_ylim()[1] < 22


@numbers_of_posteriors
@shapes
def test_samples(n, shape):
    """A sheet of six has room for nine, of which the last row is left out."""
    images = {name: torch.rand(6, *shape) for name in list(POSTERIORS)[:n]}
    figure = figures.samples(images, title="a title of some length, as the command gives it")
    assert figure.get_suptitle() == "a title of some length, as the command gives it"
    assert [axes.get_title() for axes in figure.axes] == list(images)
    for axes, sheet in zip(figure.axes, images.values(), strict=True):
        assert axes.images[0].get_array().shape[:2] == (2 * shape[1] + 1, 3 * shape[2] + 2)
        for i in range(6):
            assert torch.equal(image_at(axes, *divmod(i, 3), shape), sheet[i])
        assert (axes.images[0].get_array()[shape[1]] == 1).all()
    assert overlaps(figure) == outside(figure) == []


def test_unfinished_sheet_ends_in_white():
    (axes,) = figures.samples({"ar1": torch.zeros(5, 1, 2, 2)}, title="").axes
    assert (image_at(axes, 1, 2, (1, 2, 2)) == 1).all()
    assert (image_at(axes, 1, 1, (1, 2, 2)) == 0).all()


@numbers_of_posteriors
@shapes
def test_reconstructions(n, shape):
    originals = torch.rand(5, *shape)
    images = {name: originals / (i + 2) for i, name in enumerate(list(POSTERIORS)[:n])}
    figure = figures.reconstructions(originals, images, title="a title")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "a title"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["original", *images]
    for row, tick in enumerate(axes.get_yticks()):
        assert int(tick) // (shape[1] + 1) == row
        for column in range(5):
            torch.testing.assert_close(image_at(axes, row, column, shape), originals[column] / (row + 1))
    assert overlaps(figure) == outside(figure) == []


@shapes
def test_traversals(shape):
    images = torch.rand(2, 3, *shape)
    figure = figures.traversals(images, [4, 0], [-3.0, 0.0, 1.5], title="a title")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "a title"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["latent 5", "latent 1"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["\N{MINUS SIGN}3", "0", "1.5"]
    assert [int(tick) // (shape[2] + 1) for tick in axes.get_xticks()] == [0, 1, 2]
    assert axes.get_xlabel() == "value of the latent"
    assert all(torch.equal(image_at(axes, i, j, shape), images[i, j]) for i in range(2) for j in range(3))
    assert overlaps(figure) == outside(figure) == []


@shapes
def test_interpolations(shape):
    first, images, second = torch.rand(2, *shape), torch.rand(2, 4, *shape), torch.rand(2, *shape)
    figure = figures.interpolations(first, images, second, title="a title")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "a title"
    labels = ["original", "decoded between posterior means", "original"]
    assert [text.get_text() for text in axes.get_xticklabels()] == labels
    for row in range(2):
        assert torch.equal(image_at(axes, row, 0, shape), first[row])
        assert (image_at(axes, row, 1, shape) == 1).all()
        assert all(torch.equal(image_at(axes, row, 2 + i, shape), images[row, i]) for i in range(4))
        assert torch.equal(image_at(axes, row, 7, shape), second[row])
    assert overlaps(figure) == outside(figure) == []


@numbers_of_posteriors
def test_correlations(n):
    matrices = {name: torch.full((4, 4), -0.2 * i) + torch.eye(4) for i, name in enumerate(list(POSTERIORS)[:n])}
    figure = figures.correlations(matrices, title="a title")
    *panels, bar = figure.axes
    assert figure.get_suptitle() == "a title"
    assert [axes.get_title() for axes in panels] == list(matrices)
    for axes, matrix in zip(panels, matrices.values(), strict=True):
        (image,) = axes.images
        assert torch.equal(torch.tensor(image.get_array()), matrix)
        assert image.get_clim() == (-1, 1)
        assert image.get_extent() == [0.5, 4.5, 4.5, 0.5]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("latent", "latent")
    assert bar.get_ylabel() == "correlation"
    assert bar.get_ylim() == (-1, 1)
    assert overlaps(figure) == outside(figure) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_values_outside_the_range_are_shown_as_its_ends(channels, caplog):
    """As a Gaussian likelihood's means may be. Of colours matplotlib itself would warn, in its log."""
    images = torch.tensor([-0.5, 0.25, 1.5]).reshape(3, 1, 1, 1).expand(3, channels, 2, 2)
    (axes,) = figures.reconstructions(images, {}, title="").axes
    assert [image_at(axes, 0, i, (channels, 2, 2)).unique().item() for i in range(3)] == [0, 0.25, 1]
    assert caplog.records == []


def test_names_are_not_formulas():
    """A title and names that mathtext can't parse are shown as they are."""
    name, image = r"$\nope{ $", torch.rand(1, 1, 2, 2)
    for figure in (
        figures.curves({name: [1.0]}, {name: [1.0]}, title=name),
        figures.samples({name: image}, title=name),
        figures.reconstructions(image, {name: image}, title=name),
        figures.correlations({name: torch.eye(2)}, title=name),
    ):
        assert figures.png(figure)


def test_long_title_is_wrapped():
    figure = figures.samples({"ar1": torch.rand(4, 1, 8, 8)}, title="many words " * 12)
    assert overlaps(figure) == outside(figure) == []


def test_png(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(figures.png(figures.curves(TRAIN, VALIDATION, title="")))
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.size == (1050, 675)


@pytest.mark.parametrize("x", [torch.rand(4, 8, 8), torch.rand(4, 8, 8, 1), torch.zeros(4, 1, 8, 8).byte()])
def test_images_of_the_wrong_meaning(x):
    with pytest.raises(ValueError, match="a figure needs floating-point images"):
        figures.samples({"ar1": x}, title="title")
    with pytest.raises(ValueError, match="a figure needs floating-point images"):
        figures.reconstructions(x, {"ar1": x}, title="title")
    with pytest.raises(ValueError, match="is not the originals' shape"):
        figures.reconstructions(torch.rand(4, 1, 8, 8), {"ar1": x[:2]}, title="title")
