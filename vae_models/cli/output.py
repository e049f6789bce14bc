"""What the commands print: tables, and a line for every run that trains."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vae_models.settings.config import Config

__all__ = ["comparison_table", "described", "metrics_table", "print_table", "printable", "progress_lines"]

# A rule under the header, in characters that every encoding has.
_RULED = box.Box(str(box.SIMPLE_HEAD).replace("─", "-"), ascii=True)


@contextmanager
def progress_lines() -> Iterator[Progress]:
    """A line for every run that trains. It is stopped here, and started by the first of them."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[epoch]}"),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
    )
    try:
        yield progress
    finally:
        if progress.live.is_started:
            progress.stop()


def print_table(table: Table) -> None:
    """Print a table in lines as long as its numbers need, if the terminal's are shorter: none is cut."""
    console = Console()
    unlimited = console.options.update(max_width=10_000)
    console.width = max(console.width, Measurement.get(console, unlimited, table).minimum)
    console.print(table)


def metrics_table(title: str, metrics: Mapping[str, Any]) -> Table:
    """The final metrics of one VAE, a row each."""
    table = Table(title=Text(title), box=_RULED, show_edge=False)
    table.add_column("figure", overflow="fold")
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("standard\nerror", justify="right", no_wrap=True)
    for name, heading in _HEADINGS.items():
        value, error = metrics[name], metrics.get(f"{name}_se")
        if value is not None:
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
            table.add_row(heading, shown, "" if error is None else f"{error:.3f}")
    return table


def comparison_table(title: str, config: Config, num_images: int, results: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row per posterior, within 60 columns if no number is long: standard errors stand below the means."""
    table = Table(
        title=Text(title),
        caption=f"Nats per image; in brackets, standard errors over the {num_images:,} test images. "
        f"NLL: importance-weighted bound with {config.importance_samples:,} samples.",
        box=_RULED,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    table.add_column("posterior", no_wrap=True)
    for header in ("head\nparams", "negative\nELBO", "recon-\nstruction", "KL", "NLL", "mean\n|rho|", "s per\nepoch"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, result in results.items():
        rho = result["mean_abs_rho"]
        table.add_row(
            name,
            f"{result['head_parameters']:,}",
            f"{result['negative_elbo']:.2f}\n({result['negative_elbo_se']:.2f})",
            f"{result['reconstruction']:.2f}",
            f"{result['kl']:.2f}",
            f"{result['nll']:.2f}\n({result['nll_se']:.2f})",
            "-" if rho is None else f"{rho:.3f}",
            f"{result['seconds_per_epoch']:.2f}",
        )
    return table


_HEADINGS = {
    "negative_elbo": "negative ELBO (nats per image)",
    "reconstruction": "reconstruction, or distortion",
    "kl": "KL, or rate",
    "nll": "importance-weighted NLL",
    "gap": "gap between the two bounds",
    "effective_sample_size": "effective importance samples",
    "total_correlation": "total correlation of the posterior",
    "mean_abs_rho": "mean |rho|",
    "active_units": "active units",
    "num_images": "images",
    "num_samples": "importance samples per image",
}


def described(config: Config) -> str:
    return f"{config.dataset}, {config.preset} preset, {config.latent_dim} latents, at most {config.epochs} epochs"


def printable(path: Path) -> str:
    """A path without the bytes that are no UTF-8, which can't be printed."""
    return str(path).encode(errors="backslashreplace").decode()
