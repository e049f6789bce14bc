"""Figures of VAEs. Each function takes tensors and returns a :class:`matplotlib.figure.Figure`, without pyplot's global
state.

Mappings go from the name of a posterior to what belongs to it, in the order of display. Images are of shape
``(..., C, H, W)`` with one channel or three, else a ValueError; values outside [0, 1], such as a Gaussian likelihood's
means, are shown as the nearest inside.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vae_models.files import SOFTWARE

__all__ = ["correlations", "curves", "interpolations", "png", "reconstructions", "samples", "traversals"]

# The names and titles come from users: a dollar sign in them is no formula.
PLAIN = {"parse_math": False}


def curves(
    train: Mapping[str, Sequence[float]],
    validation: Mapping[str, Sequence[float]],
    *,
    title: str,
    label: str = "negative ELBO (nats per image)",
) -> Figure:
    """The loss by epoch, on the training images dashed and on the validation images solid.

    Example:

        >>> figure = curves({"ar1": [230.0, 160.0]}, {"ar1": [225.0, 165.0]}, title="Loss")

    Args:
        train (mapping): of figures per epoch.
        validation (mapping): the same, for the validation images.
        title (str): above the axes.
        label (str): of the vertical axis.
    """
    figure = _figure(7, 4.5, title)
    axes = figure.add_subplot()
    handles = []
    for i, (name, values) in enumerate(validation.items()):
        epochs = range(1, len(values) + 1)
        marker = "o" if len(values) == 1 else ""
        axes.plot(epochs, train[name], color=f"C{i}", linestyle="--", linewidth=1, marker=marker, fillstyle="none")
        handles += axes.plot(epochs, values, color=f"C{i}", label=name, marker=marker)
    handles += [
        Line2D([], [], color="0.4", label="validation"),
        Line2D([], [], color="0.4", linestyle="--", linewidth=1, label="training"),
    ]
    axes.set_ylim(*_limits([*train.values(), *validation.values()]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=label)
    axes.grid(alpha=0.3)
    for text in axes.legend(handles=handles).get_texts():
        text.set(**PLAIN)
    return figure


def _limits(runs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Limits that show all but the steep fall of the first twentieth of the epochs, where the curves do not differ."""
    lowest = min(min(values) for values in runs)
    highest = max(max(values[len(values) // 20 :]) for values in runs)
    margin = 0.05 * (highest - lowest) or 1.0
    return lowest - margin, highest + margin


def samples(images: Mapping[str, Tensor], *, title: str) -> Figure:
    """Sheets of samples, as near to square as their number allows, side by side.

    Example:

        >>> figure = samples({"ar1": torch.rand(64, 1, 8, 8)}, title="Samples from the prior")

    Args:
        images (mapping): of tensors ``(n, C, H, W)``.
        title (str): above the sheets.
    """
    rows, columns = _grid(len(images))
    size = 3 if len(images) > 1 else 4.5
    figure = _figure(0.5 + size * columns, 0.5 + size * rows, title)
    for axes, (name, sheet) in _panels(figure, rows, columns, images):
        _show(axes, sheet, columns=math.ceil(len(sheet) ** 0.5))
        axes.set_title(name, **PLAIN)
    return figure


def reconstructions(originals: Tensor, images: Mapping[str, Tensor], *, title: str) -> Figure:
    """A row of originals, and under it a row of reconstructions for every posterior.

    Example:

        >>> originals = torch.rand(12, 1, 8, 8)
        >>> figure = reconstructions(originals, {"ar1": torch.rand(12, 1, 8, 8)}, title="Reconstructions")

    Args:
        originals (Tensor): of shape ``(n, C, H, W)``.
        images (mapping): of tensors of that shape.
        title (str): above the rows.
    """
    for name, each in images.items():
        if each.shape != originals.shape:
            raise ValueError(f"{name}: {tuple(each.shape)} is not the originals' shape, {tuple(originals.shape)}")
    rows = torch.stack([each.cpu() for each in (originals, *images.values())])
    return _table(rows, ["original", *images], title)[0]


def traversals(images: Tensor, latents: Sequence[int], values: Sequence[float], *, title: str) -> Figure:
    """A row for every latent that is moved alone.

    Example:

        >>> figure = traversals(torch.rand(2, 3, 1, 8, 8), [4, 0], [-2.0, 0.0, 2.0], title="Traversals")

    Args:
        images (Tensor): of shape ``(len(latents), len(values), C, H, W)``, as
            :func:`vae_models.results.evaluation.traverse` gives them.
        latents (sequence of int): the latents, counted from 0. The figure counts from 1.
        values (sequence of float): what they are set to, which labels the columns.
        title (str): above the rows.
    """
    figure, axes = _table(images, [f"latent {latent + 1}" for latent in latents], title)
    axes.set_xticks(
        _centres(len(values), images.shape[-1]), [f"{value:g}".replace("-", "\N{MINUS SIGN}") for value in values]
    )
    axes.set_xlabel("value of the latent")
    return figure


def interpolations(first: Tensor, images: Tensor, second: Tensor, *, title: str) -> Figure:
    """A row for every pair of images: the first, what lies between them, and the second.

    Example:

        >>> first, second = torch.rand(2, 6, 1, 8, 8)
        >>> figure = interpolations(first, torch.rand(6, 9, 1, 8, 8), second, title="Interpolations")

    Args:
        first, second (Tensor): of shape ``(n, C, H, W)``.
        images (Tensor): of shape ``(n, steps, C, H, W)``, as :func:`vae_models.results.evaluation.interpolate` gives
            them.
        title (str): above the rows.
    """
    first, second = (each.cpu().unsqueeze(1) for each in (first, second))
    blank = torch.ones_like(first)
    rows = torch.cat([first, blank, images.cpu(), blank, second], dim=1)
    figure, axes = _table(rows, [""] * len(rows), title)
    centres = _centres(rows.shape[1], images.shape[-1])
    middle = (centres[0] + centres[-1]) / 2
    axes.set_xticks([centres[0], middle, centres[-1]], ["original", "decoded between posterior means", "original"])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    return figure


def correlations(matrices: Mapping[str, Tensor], *, title: str) -> Figure:
    """Heat maps of correlation matrices on one scale from -1 to 1.

    Example:

        >>> figure = correlations({"diagonal": torch.eye(20)}, title="Mean posterior correlation")

    Args:
        matrices (mapping): of tensors ``(d, d)``, as :func:`vae_models.results.evaluation.mean_correlation` gives them.
        title (str): above the heat maps.
    """
    rows, columns = _grid(len(matrices))
    size = 2.8 if len(matrices) > 1 else 4.5
    figure = _figure(1.3 + size * columns, 0.5 + size * rows, title)
    for axes, (name, matrix) in _panels(figure, rows, columns, matrices):
        extent = (0.5, len(matrix) + 0.5, len(matrix) + 0.5, 0.5)  # latents are counted from 1
        image = axes.imshow(matrix.cpu().numpy(), cmap="RdBu_r", vmin=-1, vmax=1, extent=extent)
        axes.set_title(name, **PLAIN)
        axes.set(xlabel="latent", ylabel="latent")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=5))
    figure.colorbar(image, ax=figure.axes, label="correlation", shrink=0.8, ticks=[-1, -0.5, 0, 0.5, 1])
    return figure


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as the content of a PNG file, with so many pixels to an inch.

    Example:

        >>> png(samples({"ar1": torch.rand(64, 1, 8, 8)}, title="Samples from the prior"))[1:4]
        b'PNG'
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": SOFTWARE})
    return buffer.getvalue()


def _figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of that size in inches."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    figure.suptitle(textwrap.fill(title, int(10 * width)), **PLAIN)  # ten characters or more to an inch
    return figure


def _grid(n: int) -> tuple[int, int]:
    """Rows and columns for n panels, at most three side by side."""
    rows = math.ceil(n / 3)
    return rows, math.ceil(n / rows)


def _panels(figure: Figure, rows: int, columns: int, contents: Mapping[str, Tensor]):
    """Pairs of axes and an entry of the mapping; axes that are left over are removed."""
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(contents) :]:
        axes.remove()
    return zip(panels, contents.items(), strict=False)


def _table(images: Tensor, names: Sequence[str], title: str) -> tuple[Figure, Axes]:
    """Rows of images ``(rows, columns, C, H, W)``, with a name to the left of each, on the one axes of a figure."""
    _check(images, "(rows, columns, C, H, W)")
    rows, columns, _, height, width = images.shape
    figure = _figure(9, 0.8 + 8 / columns * rows * height / width, title)
    axes = figure.add_subplot()
    _show(axes, images.flatten(0, 1), columns=columns)
    axes.set_yticks(_centres(rows, height), names, **PLAIN)
    axes.tick_params(length=0)
    return figure, axes


def _check(images: Tensor, shape: str) -> None:
    if images.ndim != shape.count(",") + 1 or images.shape[-3] not in (1, 3) or not images.is_floating_point():
        got = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"a figure needs floating-point images {shape}, C 1 or 3; got {got}")


def _centres(n: int, size: int) -> list[float]:
    """Where the centres of n images of that size are, on a sheet with a line between them."""
    return [i * (size + 1) + (size - 1) / 2 for i in range(n)]


def _show(axes: Axes, images: Tensor, columns: int) -> None:
    """Draw images ``(n, C, H, W)`` as a sheet with so many columns and white lines between them."""
    _check(images, "(n, C, H, W)")
    n, channels, height, width = images.shape
    rows = math.ceil(n / columns)
    sheet = torch.ones(rows * columns, channels, height + 1, width + 1)
    sheet[:n, :, :-1, :-1] = images.detach().cpu().float().clamp(0, 1)
    sheet = sheet.reshape(rows, columns, channels, height + 1, width + 1).permute(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    axes.imshow(sheet.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
