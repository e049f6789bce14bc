"""The command ``vae-models``. Whatever is slow to import is imported by the command that needs it."""

import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vae_models.files import first_line, reason

if TYPE_CHECKING:
    from vae_models.config import Config
    from vae_models.runs import Run
    from vae_models.study.plan import StudyRun

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# click's UsageError, which Typer gives no public name of its own; BadParameter derives from it.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

# A rule under the header, in characters that every encoding has.
_RULED = box.Box(str(box.SIMPLE_HEAD).replace("─", "-"), ascii=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0; 1 if training failed; 2 on bad input; 130 on Ctrl-C."""
    os.environ["MPLBACKEND"] = "agg"  # figures become files; what a notebook exports may not even import here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that a terminal can't show end no command
    try:
        code, message = app(arguments, prog_name="vae-models", standalone_mode=False) or 0, ""
    except _UsageError as error:
        code, message = 2, error.format_message()  # type: ignore[attr-defined]
    except _Failure as error:
        code, message = error.code, str(error)
    except (KeyboardInterrupt, typer.Abort):
        code, message = 130, ""
    if code == 130:  # which some versions of Typer return
        message = "interrupted; what is finished is kept, and --resume, or reproduce again, goes on from there"
    if message:
        print(f"vae-models: {message}", file=sys.stderr)
    return code


class _Failure(Exception):
    """What ends the command with one line and an exit code."""

    def __init__(self, message: object, code: int = 2) -> None:
        said = reason(message) if isinstance(message, BaseException) else " ".join(str(message).split())
        super().__init__(said)
        self.code = code


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn the errors that a user can mend, or must know of, into one line each."""
    try:
        import vae_models.results  # noqa: F401
    except (ImportError, RuntimeError) as error:
        # Lightning imports torchvision where it is installed, and that fails beside a torch it was not built for.
        raise _Failure(
            f"a library does not import ({error}); install what belongs together, in a clone of the repository: "
            "pip install --upgrade '.[vae]' torch torchvision"
        ) from error
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    said = set()

    def say(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in said:  # every run of a comparison reads the same images
            print(f"vae-models: {' '.join(str(message).split())}", file=sys.stderr)
        said.add(str(message))

    try:
        with warnings.catch_warnings():
            warnings.showwarning = say
            yield
    except FloatingPointError as error:
        raise _Failure(error, code=1) from error
    except (ValueError, MisconfigurationException) as error:  # FileError and DataError among them
        raise _Failure(error) from error
    except OSError as error:
        raise _Failure(f"{error.filename or 'the system says'}: {reason(error)}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise _Failure(f"there is not enough memory: {first_line(error)}") from error


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"vae-models {version('ar1-dist')}")
    except PackageNotFoundError as error:
        raise _Failure("ar1-dist has no version: it is not installed, only in the path") from error
    raise typer.Exit


@app.callback()
def _vae_models(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Variational auto-encoders with Gaussian posteriors, the autoregressive one of the rho-VAE among them."""


def _positive(value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value:g} is not positive and finite.")
    return value


# --- Options that train and compare share. None stands for the preset's value. ---

Preset = Annotated[
    str, typer.Option(help="One of the paper's models: vanilla, beta, cnn or info. Other options override its parts.")
]
Dataset = Annotated[
    str, typer.Option(help="digits (in the package), mnist, fashion-mnist, or folder: one's own images.")
]
DataRoot = Annotated[
    Path,
    typer.Option(
        help="Folder of the data set: torchvision's layout for mnist and fashion-mnist, which are downloaded to it if "
        "not there; folders of images for folder."
    ),
]
ImageSize = Annotated[int | None, typer.Option(min=1, help="Resize images to squares of this side.")]
Color = Annotated[bool, typer.Option("--color", help="Keep the colours of one's own images.")]
Binarize = Annotated[
    str,
    typer.Option(help="none: grey values; static: each drawn once as 0 or 1; dynamic: drawn anew whenever trained on."),
]
LatentDim = Annotated[int, typer.Option(min=1, help="Size of the latent vector.")]
Network = Annotated[str | None, typer.Option(help="mlp, cnn, conv64 or dcgan.", show_default="the preset's")]
Hidden = Annotated[int | None, typer.Option(min=1, help="Units of the hidden layer.", show_default="the network's")]
Rank = Annotated[int, typer.Option(min=1, help="Rank of the posterior low_rank.")]
Likelihood = Annotated[str, typer.Option(help="bernoulli, continuous-bernoulli or gaussian.")]
LikelihoodScale = Annotated[
    float, typer.Option(callback=_positive, help="Standard deviation of the gaussian likelihood.")
]
LearnScale = Annotated[bool, typer.Option("--learn-scale", help="Train that standard deviation, from there on.")]
Beta = Annotated[float | None, typer.Option(help="Weight of the KL divergence.", show_default="the preset's")]
WarmupEpochs = Annotated[
    int | None, typer.Option(min=0, help="Epochs over which beta rises linearly from 0.", show_default="the preset's")
]
MMDWeight = Annotated[
    float | None,
    typer.Option(
        help="Weight of the MMD between aggregate posterior and prior. InfoVAE's alpha and lambda are beta = 1 - alpha "
        "and this weight = alpha + lambda - 1.",
        show_default="the preset's",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(min=1, help="Times to go over the training images.", show_default="15, as in the paper; digits: 100"),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per step, over all devices together.")]
LearningRate = Annotated[float, typer.Option(callback=_positive, help="Adam's, divided by 10 on a plateau.")]
PlateauPatience = Annotated[int, typer.Option(min=0, help="Epochs without improvement that make a plateau.")]
EarlyStopping = Annotated[int | None, typer.Option(min=1, help="Epochs without improvement after which to stop.")]
GradientClip = Annotated[float | None, typer.Option(callback=_positive, help="Greatest norm of the gradient.")]
ImportanceSamples = Annotated[int, typer.Option(min=1, help="Samples per image for the NLL.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Of splits, weights, order of images and noise; for every posterior.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last finished epoch of what is in --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in --out.")]
Accelerator = Annotated[str, typer.Option(help="Lightning's: auto, cpu, gpu, mps, ...")]
Devices = Annotated[int, typer.Option(min=1, help="Devices, or on a CPU processes, per node.")]
NumNodes = Annotated[int, typer.Option(min=1, help="Nodes.")]
Strategy = Annotated[str, typer.Option(help="Lightning's: auto, ddp, ...")]
Precision = Annotated[str, typer.Option(help="Lightning's: 32-true, bf16-mixed, 16-mixed, ...")]


@app.command()
def train(
    context: typer.Context,
    posterior: Annotated[str, typer.Option(help="diagonal, ar1, markov, low_rank or full.")] = "ar1",
    preset: Preset = "vanilla",
    dataset: Dataset = "digits",
    data_root: DataRoot = Path("data"),
    image_size: ImageSize = None,
    color: Color = False,
    binarize: Binarize = "none",
    latent_dim: LatentDim = 20,
    network: Network = None,
    hidden: Hidden = None,
    rank: Rank = 1,
    likelihood: Likelihood = "bernoulli",
    likelihood_scale: LikelihoodScale = 0.1,
    learn_scale: LearnScale = False,
    beta: Beta = None,
    warmup_epochs: WarmupEpochs = None,
    mmd_weight: MMDWeight = None,
    epochs: Epochs = None,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 1e-3,
    plateau_patience: PlateauPatience = 10,
    early_stopping: EarlyStopping = None,
    gradient_clip: GradientClip = None,
    importance_samples: ImportanceSamples = 100,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/train"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    accelerator: Accelerator = "auto",
    devices: Devices = 1,
    num_nodes: NumNodes = 1,
    strategy: Strategy = "auto",
    precision: Precision = "32-true",
) -> None:
    """Train a VAE, evaluate it on the test images, and write numbers, pictures and report.html.

    The defaults are the vanilla VAE of arXiv:1909.06236 with its autoregressive posterior, on digits. A run that was
    stopped or killed goes on with --resume, which needs no other option but --out.
    """
    with _one_line_errors():
        _check_how(context)
        config = (_resumed(context, out) if resume else None) or _config(context, posterior)
        with _progress() as progress:
            metrics = _run(config, out, progress, context.params)
    if metrics is None:
        return
    _print_table(_metrics_table(_described(config), metrics))
    print(f"Wrote metrics.json, pictures, report.html and the model to {out}")


@app.command()
def compare(
    context: typer.Context,
    posterior: Annotated[
        list[str], typer.Option(help="diagonal, ar1, markov, low_rank or full. May be given more than once.")
    ] = ["diagonal", "ar1", "markov"],  # noqa: B006 (Typer shows it, and nothing changes it)
    preset: Preset = "vanilla",
    dataset: Dataset = "digits",
    data_root: DataRoot = Path("data"),
    image_size: ImageSize = None,
    color: Color = False,
    binarize: Binarize = "none",
    latent_dim: LatentDim = 20,
    network: Network = None,
    hidden: Hidden = None,
    rank: Rank = 1,
    likelihood: Likelihood = "bernoulli",
    likelihood_scale: LikelihoodScale = 0.1,
    learn_scale: LearnScale = False,
    beta: Beta = None,
    warmup_epochs: WarmupEpochs = None,
    mmd_weight: MMDWeight = None,
    epochs: Epochs = None,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 1e-3,
    plateau_patience: PlateauPatience = 10,
    early_stopping: EarlyStopping = None,
    gradient_clip: GradientClip = None,
    importance_samples: ImportanceSamples = 100,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder of the comparison, with a run for every posterior in it.")] = Path(
        "runs/compare"
    ),
    resume: Resume = False,
    overwrite: Overwrite = False,
    accelerator: Accelerator = "auto",
    devices: Devices = 1,
    num_nodes: NumNodes = 1,
    strategy: Strategy = "auto",
    precision: Precision = "32-true",
) -> None:
    """Train the same VAE once with every posterior and compare them on the test images.

    Prints a table and writes metrics.json, pictures and report.html, beside a folder for every posterior's run.
    """
    with _one_line_errors():
        from lightning.pytorch.callbacks import LambdaCallback

        from vae_models import results, runs
        from vae_models.comparisons import is_comparison, write_comparison
        from vae_models.locks import locked

        _check_how(context)
        if out.exists() and not out.is_dir():
            raise _Failure(f"{out} is not a folder")
        configs = _resumed_comparison(context, out) if resume else None
        configs = configs or {name: _config(context, name) for name in dict.fromkeys(posterior)}
        if runs.is_run(out) and not is_comparison(out):
            raise _Failure(f"{out} holds a run, not a comparison: name another --out")
        if out.exists() and not (resume or overwrite) and any(path.name != ".lock" for path in out.iterdir()):
            raise _Failure(f"{out} is not empty: --resume or --overwrite it, or name another --out")
        for name in configs:
            if (out / name).is_symlink():
                raise _Failure(f"{out / name} is a link, to which nothing is written")
        begin = LambdaCallback(
            on_train_start=lambda it, _: write_comparison(out, configs) if it.is_global_zero else None
        )
        finished: dict[str, Run] = {}
        with _progress() as progress, locked(out) if runs.is_main_process() else nullcontext():
            for name, config in configs.items():
                if _run(config, out / name, progress, context.params, begin) is None:
                    return
                finished[name] = runs.train(config, out / name, resume=True)
            config = next(iter(configs.values()))
            images = runs.load_images(config, *(run.folder for run in finished.values()))
            compared = results.compare(out, finished, config, images)
    _print_table(_comparison_table(_described(config), config, len(images.test), compared))
    print(f"Wrote metrics.json, pictures and report.html to {out}")


@app.command()
def evaluate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    split: Annotated[str, typer.Option(help="The run's images to evaluate on: train, validation or test.")] = "test",
    images: Annotated[
        Path | None, typer.Option(help="Evaluate on all images in this folder instead, which are read like the run's.")
    ] = None,
    importance_samples: ImportanceSamples = 100,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the noise.")] = 0,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the run's data set lies now.", show_default="where it was")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write the metrics to, as JSON.")] = None,
) -> None:
    """Evaluate the model of a run, on its own test images if nothing else is said. The run is not changed."""
    with _one_line_errors():
        import dataclasses

        import torch

        from vae_models import evaluation
        from vae_models.files import write_json
        from vae_models.runs import load_images, load_other_images, output, read_config
        from vae_models.vae import VAE

        clash = _given(context) & {"split", "data_root"}
        if images is not None and clash:
            option = min(clash).replace("_", "-")
            raise _Failure(f"--{option} is about the run's own images, and --images names others: give one of the two")
        if split not in ("train", "validation", "test"):
            raise _Failure(f"unknown split {split!r}; choose from train, validation, test")
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
    _print_table(_metrics_table(f"{_described(config)}, {which}", metrics))
    if images is not None:
        known = f", of which the run saw {seen:,} in its training" if seen else ""
        print(f"Evaluated on all {len(values):,} images in {_printable(images)}{known}")


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    num: Annotated[int, typer.Option(min=1, help="Number of images.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the latent vectors.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("samples.png"),
) -> None:
    """Draw images from the model of a run and write them as one picture."""
    with _one_line_errors():
        import torch

        from vae_models import figures
        from vae_models.files import write_whole
        from vae_models.runs import output, read_config
        from vae_models.vae import VAE

        config, vae = read_config(folder), VAE.from_pretrained(folder)
        output(out, folder, config, ".png")
        torch.manual_seed(seed)
        figure = figures.samples({config.posterior: vae.sample(num)}, title=f"Samples from the prior: {config.dataset}")
        write_whole(out, figures.png(figure))
    print(f"Wrote {out}")


@app.command()
def reproduce(
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Part of the study: vanilla, published, ablation, binary, literature, cnn, beta or info, or one that "
            "--list shows. May be given more than once, like the next three.",
            show_default="all",
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="mnist, fashion-mnist, or digits for a quick run.", show_default="mnist and fashion-mnist"),
    ] = None,
    posterior: Annotated[
        list[str] | None, typer.Option(help="diagonal, ar1, markov, low_rank or full.", show_default="all")
    ] = None,
    latent_dim: Annotated[list[int] | None, typer.Option(help="Size of the latent vector.", show_default="all")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.", show_default="the part's")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of every run.", show_default="the part's")] = None,
    data_root: DataRoot = Path("data"),
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/study"),
    list_: Annotated[bool, typer.Option("--list", help="Show the runs and which are done, and run nothing.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write tables and figures anew, and run nothing.")] = False,
    accelerator: Accelerator = "auto",
) -> None:
    """Run the study of the paper's comparisons (docs/study), or what is left of it.

    A finished run is a row of runs.csv in --out and is not run again; one that was stopped or killed goes on from its
    last finished epoch. The same command may run several times side by side: no two take the same run, and what another
    one is at is left to it. At the end come tables and figures, in the folder results of --out.
    """
    with _one_line_errors():
        from vae_models.study import plan, records

        wanted = plan.plan(
            only or (),
            datasets=dataset or (),
            posteriors=posterior or (),
            latent_dims=latent_dim or (),
            seeds=seeds,
            epochs=epochs,
        )
        if list_:
            done = records.finished(out)
            for run in wanted:
                print(f"{'done' if run.name in done else 'open'}  {run.part}  {run.name}")
        failed = [] if report or list_ else _study(wanted, out, data_root, accelerator)
        done = records.finished(out)
        if not report:
            print(f"{sum(run.name in done for run in wanted)} of {len(wanted)} runs are done in {out}")
        if report or (done and not list_):
            from vae_models.study.report import write_report

            write_report(out)
            print(f"Wrote tables and figures to {out / 'results'}")
    if failed:
        raise _Failure(f"{len(failed)} of {len(wanted)} runs failed: {', '.join(failed)}", code=1)


def _study(wanted: "Sequence[StudyRun]", out: Path, data_root: Path, accelerator: str) -> list[str]:
    """Do what is left to do, and return the names of what failed."""
    from vae_models.progress import ProgressLine
    from vae_models.study import records
    from vae_models.study.running import execute

    failed = []
    with _progress() as progress:
        for i, run in enumerate(wanted):
            if run.name in records.finished(out):
                continue
            task = progress.add_task(f"{i + 1}/{len(wanted)} {run.name}", start=False, epoch="", loss="")
            line = ProgressLine(progress, task)
            try:
                row = execute(
                    run, out, data_root, on_evaluation=line.evaluating, callbacks=[line], accelerator=accelerator
                )
            except FloatingPointError as error:
                failed.append(run.name)
                progress.console.print(f"{run.name} failed: {error}", soft_wrap=True, highlight=False, markup=False)
            else:
                if row is not None:
                    progress.console.print(
                        f"{i + 1}/{len(wanted)} {run.name}: negative ELBO {row['negative_elbo']:.2f}, "
                        f"NLL {row['nll']:.2f}, trained for {row['seconds']:.0f} s",
                        soft_wrap=True,
                        highlight=False,
                        markup=False,
                    )
            progress.remove_task(task)
    return failed


_HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "precision")

# Options that go with one value of another option and would be ignored beside any other.
_GOES_WITH = {
    "rank": ("posterior", "low_rank"),
    "likelihood_scale": ("likelihood", "gaussian"),
    "learn_scale": ("likelihood", "gaussian"),
    "color": ("dataset", "folder"),
}


def _given(context: typer.Context) -> set[str]:
    """The options on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _config(context: typer.Context, posterior: str) -> "Config":
    """The preset with the options that were given, for one posterior."""
    import dataclasses

    from vae_models.config import PRESETS, Config
    from vae_models.data import BINARIZATIONS, DATASETS
    from vae_models.likelihoods import LIKELIHOODS
    from vae_models.networks import NETWORKS
    from vae_models.posteriors import POSTERIORS

    options = context.params
    choices: dict[str, Iterable[str]] = {
        "preset": PRESETS,
        "dataset": DATASETS,
        "binarize": BINARIZATIONS,
        "network": NETWORKS,
        "likelihood": LIKELIHOODS,
    }
    for name, value in [("posterior", posterior), *((name, options[name]) for name in choices)]:
        allowed = choices.get(name, POSTERIORS)
        if value is not None and value not in allowed:
            raise _Failure(f"unknown {name.replace('_', '-')} {value!r}; choose from {', '.join(allowed)}")
    given = _given(context)
    for name, (other, value) in _GOES_WITH.items():
        chosen = [options[other]] if isinstance(options[other], str) else options[other]  # compare takes posteriors
        if name in given and value not in chosen:
            option = name.replace("_", "-")
            raise _Failure(f"--{option} goes with --{other} {value}, not with {', '.join(chosen)}")
    default_epochs = 100 if options["dataset"] == "digits" else 15
    gaussian = {"scale": options["likelihood_scale"], "learn_scale": options["learn_scale"]}
    overrides: dict[str, Any] = {
        "epochs": default_epochs if options["epochs"] is None else options["epochs"],
        "posterior": posterior,
        "posterior_options": {"rank": options["rank"]} if posterior == "low_rank" else {},
        "data_root": str(options["data_root"]),
        "likelihood_options": gaussian if options["likelihood"] == "gaussian" else {},
    }
    plain = ["dataset", "color", "binarize", "latent_dim", "likelihood", "batch_size", "learning_rate"]
    plain += ["plateau_patience", "early_stopping", "gradient_clip", "importance_samples", "seed"]
    overrides |= {name: options[name] for name in plain}
    overrides |= {name: options[name] for name in ("network", "image_size") if options[name] is not None}
    if options["hidden"] is not None:
        overrides["network_options"] = {"hidden": options["hidden"]}
    config = Config.from_preset(options["preset"], **overrides)
    weights = {name: options[name] for name in ("beta", "warmup_epochs", "mmd_weight") if options[name] is not None}
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, **weights))


def _check_how(context: typer.Context) -> None:
    if context.params["resume"] and context.params["overwrite"]:
        raise _Failure("--resume, --overwrite: what is there is either resumed or overwritten")


def _resumed(context: typer.Context, folder: Path) -> "Config | None":
    """The settings of the run in the folder, if no option but --epochs says anything of them."""
    import dataclasses

    from vae_models.config import PRESETS
    from vae_models.runs import is_run, read_config

    given = _given(context)
    if not is_run(folder):
        raise _Failure(f"{folder} holds no run to resume: leave out --resume to start one")
    if given - {"out", "resume", "epochs", "data_root", *_HARDWARE} or not (folder / "config.json").exists():
        return None  # runs.train sees that the options agree with the run
    config = read_config(folder)
    if "epochs" in given:
        config = dataclasses.replace(config, epochs=context.params["epochs"])
    if "data_root" in given:
        config = dataclasses.replace(config, data_root=str(context.params["data_root"]))
    if config.preset not in PRESETS:
        raise _Failure(f"{folder} holds a run of the study ({config.preset}): vae-models reproduce goes on with it")
    return config


def _resumed_comparison(context: typer.Context, folder: Path) -> "dict[str, Config] | None":
    """The settings of the comparison in the folder, by posterior, if no option but --epochs says anything of them."""
    import dataclasses

    from vae_models.comparisons import is_comparison, read_comparison
    from vae_models.config import PRESETS
    from vae_models.posteriors import POSTERIORS
    from vae_models.runs import is_run

    if not is_comparison(folder) and not any(is_run(folder / name) for name in POSTERIORS):
        raise _Failure(f"{folder} holds no comparison to resume: leave out --resume to start one")
    if _given(context) - {"out", "resume", "epochs", *_HARDWARE}:
        return None
    configs = read_comparison(folder)
    for config in configs.values():
        if config.preset not in PRESETS:
            raise _Failure(f"{folder / 'config.json'} has preset = {config.preset!r}, which is none")
    if context.params["epochs"] is not None:
        configs = {name: dataclasses.replace(each, epochs=context.params["epochs"]) for name, each in configs.items()}
    return configs


def _run(
    config: "Config", folder: Path, progress: Progress, options: Mapping[str, Any], *callbacks: Any
) -> dict[str, Any] | None:
    """Train and finish a run. None in all processes but the first one."""
    from vae_models import runs
    from vae_models.locks import locked

    with locked(folder) if runs.is_main_process() else nullcontext():
        return _train_and_finish(config, folder, progress, options, callbacks)


def _train_and_finish(
    config: "Config", folder: Path, progress: Progress, options: Mapping[str, Any], callbacks: Sequence[Any]
) -> dict[str, Any] | None:
    from vae_models import results, runs
    from vae_models.progress import ProgressLine

    task = progress.add_task(config.posterior, start=False, epoch="", loss="")
    hardware = {name: options[name] for name in _HARDWARE}
    line = ProgressLine(progress, task)
    resume, overwrite = options["resume"], options["overwrite"]
    try:
        run = runs.train(config, folder, resume=resume, overwrite=overwrite, callbacks=[line, *callbacks], **hardware)
    except FloatingPointError as error:
        raise FloatingPointError(f"training with posterior {config.posterior!r} failed: {error}") from error
    if not runs.is_main_process():
        return None
    if not run.finished:
        line.evaluating()
    metrics = results.finish(run, config)
    progress.update(task, epoch=f"epoch {metrics['epochs']}/{config.epochs}", total=1, completed=1)
    return metrics


@contextmanager
def _progress() -> Iterator[Progress]:
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


def _printable(path: Path) -> str:
    """A path without the bytes that are no UTF-8, which can't be printed."""
    return str(path).encode(errors="backslashreplace").decode()


def _described(config: "Config") -> str:
    return f"{config.dataset}, {config.preset} preset, {config.latent_dim} latents, at most {config.epochs} epochs"


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


def _print_table(table: Table) -> None:
    """Print a table in lines as long as its numbers need, if the terminal's are shorter: none is cut."""
    console = Console()
    unlimited = console.options.update(max_width=10_000)
    console.width = max(console.width, Measurement.get(console, unlimited, table).minimum)
    console.print(table)


def _metrics_table(title: str, metrics: Mapping[str, Any]) -> Table:
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


def _comparison_table(title: str, config: "Config", num_images: int, results: Mapping[str, Mapping[str, Any]]) -> Table:
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
