"""Figures that compare VAEs. Each function returns a :class:`matplotlib.figure.Figure`, without pyplot's global state.

Mappings go from the name of a posterior to what belongs to it, in the order of display.
"""

import io
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

__all__ = ["curves", "png", "reconstructions", "samples"]


def curves(train: Mapping[str, Sequence[float]], test: Mapping[str, Sequence[float]], *, title: str) -> Figure:
    """Negative ELBO by epoch, on the training images dashed and on the test images solid.

    Args:
        train (mapping): of figures per epoch.
        test (mapping): the same, for the test images.
        title (str): above the axes.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for i, (name, values) in enumerate(test.items()):
        epochs = range(1, len(values) + 1)
        marker = "o" if len(values) == 1 else ""
        axes.plot(epochs, train[name], color=f"C{i}", linestyle="--", linewidth=1, marker=marker, fillstyle="none")
        handles += axes.plot(epochs, values, color=f"C{i}", label=name, marker=marker)
    handles += [
        Line2D([], [], color="0.4", label="test"),
        Line2D([], [], color="0.4", linestyle="--", linewidth=1, label="training"),
    ]
    axes.set_ylim(*_limits([*train.values(), *test.values()]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=title, xlabel="epoch", ylabel="negative ELBO (nats per image)")
    axes.grid(alpha=0.3)
    axes.legend(handles=handles)
    return figure


def _limits(runs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Limits that show all but the steep fall of the first twentieth of the epochs, where the curves do not differ."""
    lowest = min(min(values) for values in runs)
    highest = max(max(values[len(values) // 20 :]) for values in runs)
    margin = 0.05 * (highest - lowest) or 1.0
    return lowest - margin, highest + margin


def samples(images: Mapping[str, Tensor], *, title: str) -> Figure:
    """Square sheets of samples, side by side.

    Args:
        images (mapping): of tensors ``(n, C, H, W)`` in [0, 1], n a square number.
        title (str): above the sheets.
    """
    figure = Figure(figsize=(0.5 + 3 * len(images), 3.5), layout=ConstrainedLayoutEngine(w_pad=0.1))
    figure.suptitle(title)
    for axes, (name, sheet) in zip(figure.subplots(1, len(images), squeeze=False)[0], images.items(), strict=True):
        _show(axes, sheet, columns=round(len(sheet) ** 0.5))
        axes.set_title(name)
    return figure


def reconstructions(originals: Tensor, images: Mapping[str, Tensor], *, title: str) -> Figure:
    """A row of originals, and under it a row of reconstructions for every posterior.

    Args:
        originals (Tensor): of shape ``(n, C, H, W)``, in [0, 1].
        images (mapping): of tensors of that shape.
        title (str): above the rows.
    """
    rows = {"original": originals, **images}
    figure = Figure(figsize=(9, 0.6 + 8 / len(originals) * len(rows)), layout="constrained")
    figure.suptitle(title)
    for axes, (name, row) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
        _show(axes, row, columns=len(row))
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _show(axes, images: Tensor, columns: int) -> None:
    """Draw images ``(n, C, H, W)`` as a sheet with so many columns and white lines between them."""
    n, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images.float(), (0, 1, 0, 1), value=1.0)
    sheet = padded.reshape(n // columns, columns, channels, height + 1, width + 1).permute(0, 3, 1, 4, 2)
    sheet = sheet.reshape(n // columns * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    axes.imshow(sheet.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
