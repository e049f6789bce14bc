"""The plan of the study: which runs there are, and in which order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vae_models.model.posteriors import POSTERIORS as KNOWN_POSTERIORS
from vae_models.settings.config import Config
from vae_models.study.as_published import SAMPLERS

__all__ = [
    "DATASETS",
    "IMPORTANCE_SAMPLES",
    "MORE_SAMPLES",
    "PARTS",
    "POSTERIORS",
    "Part",
    "StudyRun",
    "Variant",
    "plan",
]

# Per image: the number of the published table that the study's NLLs are to stand beside; and more, to see how far that
# bound is from tight.
IMPORTANCE_SAMPLES = 200
MORE_SAMPLES = 5000

# Those of the paper; digits, in the package, for a quick run of the whole.
DATASETS = ("mnist", "fashion-mnist", "digits")

EPOCHS = 15


@dataclass(frozen=True)
class Variant:
    """A posterior and what is done to it.

    Attributes:
        posterior (str): one of :data:`vae_models.model.posteriors.POSTERIORS`.
        change (str): nothing, or how it is trained: ``walk`` or ``rho``, by the reference's objective with that
            sampler; ``rho-zero``, with rho held at 0; ``per-pair`` or ``shared``, with that kind of rho where the
            posterior has the other. Or how the run of another variant is evaluated: ``permuted``, the one without
            change in another order of the latents; ``more-samples``, the same with more importance samples for fewer
            images; ``walk-sampled`` or ``rho-sampled``, ``walk`` or ``rho`` under the distribution that the sampler
            has, not the one that it is meant to have.
        rank (int): of ``low_rank``, otherwise 0.
        order (int): of ``banded``, otherwise 0.

    Raises:
        ValueError: if the posterior or the change is unknown.
    """

    posterior: str
    change: str = ""
    rank: int = 0
    order: int = 0

    def __post_init__(self) -> None:
        for kind, name, known in (("posterior", self.posterior, KNOWN_POSTERIORS), ("change", self.change, _CHANGES)):
            if name not in known:
                raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(known)}")

    @property
    def name(self) -> str:
        return "-".join(each for each in (self.posterior, str(self.rank or self.order or ""), self.change) if each)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the posterior."""
        if self.rank:
            return {"rank": self.rank}
        if self.order:
            return {"order": self.order}
        return _OPTIONS.get(self.change, {})


@dataclass(frozen=True)
class Part:
    """A part of the study: every combination of what it lists, so often as it has seeds, but that ``banded`` is run at
    the first size of the latent vector alone."""

    name: str
    about: str
    preset: str
    variants: tuple[Variant, ...]
    seeds: int
    datasets: tuple[str, ...] = DATASETS
    binarize: tuple[str, ...] = ("none",)
    latent_dims: tuple[int, ...] = (20, 10)
    epochs: int = EPOCHS

    @property
    def as_published(self) -> bool:
        """Whether it trains by the reference's objective."""
        return any(variant.change in SAMPLERS for variant in self.variants)


@dataclass(frozen=True)
class StudyRun:
    """A run of the study: a row of its table."""

    part: str
    preset: str
    dataset: str
    binarize: str
    variant: Variant
    latent_dim: int
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        """What it is known by, in the tables and as the name of its folder."""
        binarize = [] if self.binarize == "none" else [self.binarize]
        numbers = [f"d{self.latent_dim}", f"e{self.epochs}", f"s{self.seed}"]
        return "_".join([self.preset, self.dataset, *binarize, self.variant.name, *numbers])

    @property
    def test_stride(self) -> int:
        """Of the test images, one in so many is evaluated. Without a GPU a convolutional decoder takes 20 minutes for
        the samples of all 10,000, almost as long as the training."""
        if self.variant.change == "more-samples":
            return 10
        return 1 if self.preset == "vanilla" else 5

    @property
    def importance_samples(self) -> int:
        """For each of those images."""
        return MORE_SAMPLES if self.variant.change == "more-samples" else IMPORTANCE_SAMPLES

    @property
    def trained(self) -> "StudyRun":
        """The run that trains what this one evaluates, which is this one or another."""
        change = _EVALUATED.get(self.variant.change)
        return self if change is None else replace(self, variant=replace(self.variant, change=change))

    def config(self, data_root: Path) -> Config:
        """The settings of :attr:`trained`. The name of the preset tells what they do not."""
        variant = self.trained.variant
        config = Config.from_preset(
            self.preset,
            dataset=self.dataset,
            data_root=str(data_root),
            binarize=self.binarize,
            latent_dim=self.latent_dim,
            posterior=variant.posterior,
            posterior_options=variant.options,
            epochs=self.epochs,
            importance_samples=IMPORTANCE_SAMPLES,
            seed=self.seed,
        )
        return replace(config, preset=f"{self.preset}, {variant.change}") if variant.change else config


# What is evaluated only, and the change with which that was trained.
_EVALUATED = {"permuted": "", "more-samples": "", "walk-sampled": "walk", "rho-sampled": "rho"}
# What is an option of the posterior.
_OPTIONS = {"per-pair": {"per_pair": True}, "shared": {"shared_rho": True}}
_CHANGES = ("", *SAMPLERS, "rho-zero", *_OPTIONS, *_EVALUATED)

POSTERIORS = (
    Variant("diagonal"),
    Variant("ar1"),
    Variant("low_rank", rank=1),
    Variant("low_rank", rank=2),
    Variant("markov"),
    Variant("banded", order=2),
    Variant("banded", order=3),
    Variant("banded", order=8),
    Variant("full"),
)
_PUBLISHED = tuple(Variant("ar1", change) for change in ("walk", "walk-sampled", "rho", "rho-sampled"))
_ABLATION = (
    Variant("ar1", "rho-zero"),
    Variant("ar1", "per-pair"),
    Variant("markov", "shared"),
    Variant("ar1", "permuted"),
    Variant("markov", "permuted"),
)
_TIGHT = tuple(Variant(posterior, "more-samples") for posterior in ("diagonal", "ar1", "markov", "full"))

# In the order in which they are run.
PARTS: dict[str, Part] = {
    part.name: part
    for part in [
        Part("vanilla", "the paper's Fig. 1, on grey values", "vanilla", POSTERIORS, 5),
        Part("published", "the reference's own objective, with the network of vanilla", "vanilla", _PUBLISHED, 5),
        Part("ablation", "what the correlation buys", "vanilla", _ABLATION, 5),
        Part("tightness", "vanilla, with more importance samples", "vanilla", _TIGHT, 3, latent_dims=(20,)),
        Part("binary", "vanilla on pixels drawn anew as 0 or 1", "vanilla", POSTERIORS, 5, binarize=("dynamic",)),
        Part(
            "literature",
            "trained for long on binary MNIST, to stand beside published likelihoods",
            "vanilla",
            (Variant("diagonal"), Variant("ar1"), Variant("markov"), Variant("full")),
            3,
            datasets=("mnist", "digits"),
            binarize=("dynamic", "static"),
            latent_dims=(40,),
            epochs=200,
        ),
        Part(
            "long",
            "vanilla, trained for 100 epochs",
            "vanilla",
            (Variant("diagonal"), Variant("markov"), Variant("banded", order=3), Variant("full")),
            3,
            latent_dims=(20,),
            epochs=100,
        ),
        Part("cnn", "the paper's Fig. 4, on grey values", "cnn", POSTERIORS, 3),
        Part("beta", "the paper's Fig. 3, on grey values", "beta", POSTERIORS, 3),
        Part("info", "the paper's Fig. 5, on grey values", "info", POSTERIORS, 3),
        Part("published-cnn", "the reference's own objective, with the network of cnn", "cnn", _PUBLISHED, 3),
        Part("published-beta", "the reference's own objective, with the network of beta", "beta", _PUBLISHED, 3),
        Part("published-info", "the reference's own objective, with the network of info", "info", _PUBLISHED, 3),
    ]
}


def plan(
    parts: Iterable[str] = (),
    *,
    datasets: Sequence[str] = (),
    posteriors: Sequence[str] = (),
    latent_dims: Sequence[int] = (),
    seeds: int | None = None,
    epochs: int | None = None,
) -> list[StudyRun]:
    """The runs of the study, or those of them that are asked for. Within a part, every seed begins when all of the one
    before is done.

    Example:

        >>> [run.name for run in plan(["vanilla"], datasets=["mnist"], posteriors=["ar1"], latent_dims=[20], seeds=2)]
        ['vanilla_mnist_ar1_d20_e15_s0', 'vanilla_mnist_ar1_d20_e15_s1']

    Args:
        parts (sequence of str): of :data:`PARTS`, in the order of the runs; none stands for all.
        datasets (sequence of str): of :data:`DATASETS`; none stands for the paper's.
        posteriors (sequence of str): of :data:`vae_models.model.posteriors.POSTERIORS`; none stands for all.
        latent_dims (sequence of int): sizes of the latent vector; none stands for all.
        seeds (int): so many, whatever the part has.
        epochs (int): so many, whatever the part has.

    Raises:
        ValueError: if a name is unknown, or nothing is left.
    """
    parts = list(dict.fromkeys(parts)) or list(PARTS)
    for kind, names, known in [
        ("part", parts, PARTS),
        ("dataset", datasets, DATASETS),
        ("posterior", posteriors, KNOWN_POSTERIORS),
    ]:
        for name in names:
            if name not in known:
                raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(known)}")
    for kind, number in (("seeds", seeds), ("epochs", epochs)):
        if number is not None and number < 1:
            raise ValueError(f"{kind} must be at least 1, got {number}")
    runs = [
        run
        for name in parts
        for run in _runs(PARTS[name], datasets or DATASETS[:2], seeds or PARTS[name].seeds, epochs)
        if (not posteriors or run.variant.posterior in posteriors)
        and (not latent_dims or run.latent_dim in latent_dims)
    ]
    if not runs:
        raise ValueError("there is no such run in the study")
    return runs


def _runs(part: Part, datasets: Sequence[str], seeds: int, epochs: int | None) -> Iterator[StudyRun]:
    for seed in range(seeds):
        for dataset in part.datasets:
            for binarize in part.binarize:
                for latent_dim in part.latent_dims:
                    for variant in part.variants:
                        if dataset in datasets and (not variant.order or latent_dim == part.latent_dims[0]):
                            yield StudyRun(
                                part.name,
                                part.preset,
                                dataset,
                                binarize,
                                variant,
                                latent_dim,
                                seed,
                                part.epochs if epochs is None else epochs,
                            )
