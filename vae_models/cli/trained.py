"""The commands ``evaluate`` and ``sample``, of a trained run. Whatever is slow to import is imported by the command
that needs it."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from vae_models.cli.errors import Failure, one_line_errors
from vae_models.cli.options import given, option
from vae_models.cli.output import described, metrics_table, print_table, printable
from vae_models.settings.config import SETTINGS

__all__ = ["evaluate", "sample"]


def evaluate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    split: Annotated[str, typer.Option(help="The run's images to evaluate on: train, validation or test.")] = "test",
    images: Annotated[
        Path | None, typer.Option(help="Evaluate on all images in this folder instead, which are read like the run's.")
    ] = None,
    importance_samples: Annotated[int, option(SETTINGS["importance_samples"])] = 100,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the noise.")] = 0,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the run's data set lies now.", show_default="where it was")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write the metrics to, as JSON.")] = None,
) -> None:
    """Evaluate the model of a run, on its own test images if nothing else is said. The run is not changed."""
    with one_line_errors():
        import torch

        from vae_models.files import write_json
        from vae_models.model.vae import VAE
        from vae_models.results import evaluation
        from vae_models.training.runs import load_images, load_other_images, output, read_config

        clash = given(context).keys() & {"split", "data_root"}
        if images is not None and clash:
            option = min(clash).replace("_", "-")
            raise Failure(f"--{option} is about the run's own images, and --images names others: give one of the two")
        if split not in ("train", "validation", "test"):
            raise Failure(f"unknown split {split!r}; choose from train, validation, test")
        config, vae = read_config(folder), VAE.from_pretrained(folder)
        if data_root is not None:
            config = dataclasses.replace(config, data_root=str(data_root))
        if out is not None:
            output(out, folder, config, ".json")
        if images is None:
            of: dict[str, Any] = {"split": split}
            values = getattr(load_images(config, folder), split)
        else:
            values, seen = load_other_images(config, vae, folder, images)
            of = {"images": str(images), "seen_in_training": seen}
        torch.manual_seed(seed)
        metrics = evaluation.evaluate(vae, values, num_samples=importance_samples)
        if out is not None:
            write_json(out, {**metrics, **of})
    which = f"{split} images" if images is None else "other images"
    print_table(metrics_table(f"{described(config)}, {which}", metrics))
    if images is not None:
        known = f", of which the run saw {seen:,} in its training" if seen else ""
        print(f"Evaluated on all {len(values):,} images in {printable(images)}{known}")


def sample(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    num: Annotated[int, typer.Option(min=1, help="Number of images.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the latent vectors.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("samples.png"),
) -> None:
    """Draw images from the model of a run and write them as one picture."""
    with one_line_errors():
        import torch

        from vae_models.files import write_whole
        from vae_models.model.vae import VAE
        from vae_models.results import figures
        from vae_models.training.runs import output, read_config

        config, vae = read_config(folder), VAE.from_pretrained(folder)
        output(out, folder, config, ".png")
        torch.manual_seed(seed)
        figure = figures.samples({config.posterior: vae.sample(num)}, title=f"Samples from the prior: {config.dataset}")
        write_whole(out, figures.png(figure))
    print(f"Wrote {out}")
