"""The command ``vae-models``. Whatever is slow to import is imported by the command that needs it."""

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from vae_models.data import Images
    from vae_models.training import History
    from vae_models.vae import VAE

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown")

# click's UsageError, which Typer gives no public name of its own; BadParameter derives from it.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

# A rule under the header, in characters that every encoding has.
_RULED = box.Box(str(box.SIMPLE_HEAD).replace("─", "-"), ascii=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0; 1 if training failed; 2 on bad input; 130 on Ctrl-C."""
    try:
        code = app(arguments, prog_name="vae-models", standalone_mode=False) or 0
    except _UsageError as error:
        code, message = 2, error.format_message()  # type: ignore[attr-defined]
    except _Failure as error:
        code, message = error.code, str(error)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    else:
        message = ""
    if code == 130:
        message = "interrupted; nothing was written"
    if message:
        print(f"vae-models: {message}", file=sys.stderr)
    return code


class _Failure(Exception):
    """What ends the command with one line and an exit code."""

    def __init__(self, message: object, code: int = 2) -> None:
        super().__init__(" ".join(str(message).split()))
        self.code = code


@app.callback()
def _vae_models() -> None:
    """Variational auto-encoders with Gaussian posteriors, the autoregressive one of the rho-VAE among them."""


@app.command()
def compare(
    posterior: Annotated[
        list[str], typer.Option(help="Posterior to compare: diagonal, ar1 or markov. May be given more than once.")
    ] = ["diagonal", "ar1", "markov"],  # noqa: B006 (Typer shows it, and nothing changes it)
    dataset: Annotated[str, typer.Option(help="digits (in the package), mnist or fashion-mnist.")] = "digits",
    data_root: Annotated[
        Path,
        typer.Option(help="Folder of mnist and fashion-mnist in torchvision's layout; downloaded to it if not there."),
    ] = Path("data"),
    latent_dim: Annotated[int, typer.Option(min=1, help="Size of the latent vector.")] = 20,
    epochs: Annotated[int, typer.Option(min=1, help="Times to go over the training images.")] = 100,
    importance_samples: Annotated[int, typer.Option(min=1, help="Samples per image for the NLL.")] = 100,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, order of images and noise, for each posterior.")
    ] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for metrics.json and the figures; those of an earlier comparison are replaced.")
    ] = Path("runs/compare"),
) -> None:
    """Train the paper's VAE once with every posterior and compare them on the test images.

    The VAE is the vanilla one of arXiv:1909.06236: one hidden layer of 400 ReLU units, Bernoulli likelihood on grey
    values, standard normal prior, Adam at 1e-3, batches of 128. Prints a table and writes metrics.json, curves.png,
    samples.png and reconstructions.png.
    """
    console = Console(stderr=True)
    with console.status(f"Loading {dataset}"):
        images = _load(dataset, data_root, posterior)
    _prepare_folder(out)

    from vae_models import figures

    results, histories, samples, reconstructions = {}, {}, {}, {}
    with _progress(console) as progress:
        tasks = {name: progress.add_task(name, start=False, epoch="", loss="") for name in dict.fromkeys(posterior)}
        for name, task in tasks.items():
            vae, histories[name] = _train(name, images, latent_dim, epochs, seed, progress, task)
            samples[name], reconstructions[name] = vae.sample(64), vae.reconstruct(images.test[:12])
            results[name] = _evaluate(vae, histories[name], images.test, importance_samples)

    settings = {
        "dataset": dataset,
        "train_images": len(images.train),
        "test_images": len(images.test),
        "latent_dim": latent_dim,
        "epochs": epochs,
        "importance_samples": importance_samples,
        "seed": seed,
    }
    described = f"{dataset}, {latent_dim} latents, {epochs} epochs"
    pictures = {
        "curves.png": figures.curves(
            {name: history.train for name, history in histories.items()},
            {name: history.test for name, history in histories.items()},
            title=f"Loss: {described}",
        ),
        "samples.png": figures.samples(samples, title=f"Samples from the prior: {described}"),
        "reconstructions.png": figures.reconstructions(
            images.test[:12], reconstructions, title=f"Reconstructions of test images: {described}"
        ),
    }
    metrics = json.dumps({**settings, "posteriors": results}, indent=2, allow_nan=False) + "\n"
    _write(out / "metrics.json", metrics.encode())
    for file_name, figure in pictures.items():
        _write(out / file_name, figures.png(figure))
    Console().print(_table(described, settings, results))
    print(f"Wrote metrics.json, {', '.join(pictures)} to {out}")


def _load(dataset: str, data_root: Path, posteriors: Sequence[str]) -> "Images":
    """Import what the command needs, check the names and load the images."""
    try:
        import vae_models.figures
        import vae_models.training  # noqa: F401
        from vae_models import data
        from vae_models.posteriors import POSTERIORS
    except (ImportError, RuntimeError) as error:
        # Lightning imports torchvision where it is installed, and that fails beside a torch it was not built for.
        raise _Failure(
            f"a library does not import ({error}); install what belongs together: "
            "pip install --upgrade 'ar1-dist[vae]' torch torchvision"
        ) from error
    for name in posteriors:
        if name not in POSTERIORS:
            raise _Failure(f"unknown posterior {name!r}; choose from {', '.join(POSTERIORS)}")
    try:
        return data.load(dataset, data_root)
    except data.DataError as error:
        raise _Failure(error) from error


def _train(
    name: str, images: "Images", latent_dim: int, epochs: int, seed: int, progress: Progress, task: TaskID
) -> "tuple[VAE, History]":
    """A VAE with the named posterior, trained."""
    import torch

    from vae_models import training
    from vae_models.vae import VAE

    torch.manual_seed(seed)
    channels, height, width = images.train.shape[1:]
    vae = VAE.build((channels, height, width), posterior=name, latent_dim=latent_dim)
    line = training.ProgressLine(progress, task)
    try:
        history = training.fit(vae, images, epochs=epochs, seed=seed, callbacks=[line])
    except FloatingPointError as error:
        raise _Failure(f"training with posterior {name!r} failed: {error}", code=1) from error
    torch.manual_seed(seed)  # so that all posteriors are also drawn from and evaluated with the same noise
    return vae, history


def _evaluate(vae: "VAE", history: "History", test: "Tensor", num_samples: int) -> dict[str, Any]:
    """What metrics.json holds of one posterior."""
    from vae_models import evaluation

    return {
        "head_parameters": sum(parameter.numel() for parameter in vae.posterior.parameters()),
        **evaluation.evaluate(vae, test, num_samples=num_samples),
        "seconds_per_epoch": statistics.median(history.seconds),
        "train_negative_elbo_by_epoch": history.train,
        "test_negative_elbo_by_epoch": history.test,
    }


def _prepare_folder(folder: Path) -> None:
    """Make the folder and see that files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except FileExistsError:
        raise _Failure(f"cannot write to {folder}: it is not a folder") from None
    except OSError as error:
        raise _Failure(f"cannot write to the folder {folder}: {error.strerror}") from error


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise _Failure(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[epoch]}"),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )


def _table(title: str, settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Table:
    """One row per posterior, within 80 columns."""
    table = Table(
        title=title,
        caption=f"Nats per image, with standard errors over the {settings['test_images']:,} test images in brackets. "
        f"NLL: importance-weighted bound with {settings['importance_samples']:,} samples.",
        box=_RULED,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("posterior", no_wrap=True)
    for header in ("head\nparams", "negative\nELBO", "recon-\nstruction", "KL", "NLL", "mean\n|rho|", "s per\nepoch"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, result in results.items():
        rho = result["mean_abs_rho"]
        table.add_row(
            name,
            f"{result['head_parameters']:,}",
            f"{result['negative_elbo']:.2f} ({result['negative_elbo_se']:.2f})",
            f"{result['reconstruction']:.2f}",
            f"{result['kl']:.2f}",
            f"{result['nll']:.2f} ({result['nll_se']:.2f})",
            "-" if rho is None else f"{rho:.3f}",
            f"{result['seconds_per_epoch']:.2f}",
        )
    return table
