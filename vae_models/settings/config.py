"""The settings of a run, each written once (:mod:`vae_models.settings.setting`), their presets and their file."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from vae_models.settings.objectives import Objective
from vae_models.settings.setting import document, group, setting, settings_of

__all__ = ["PRESETS", "SETTINGS", "Config", "Hardware"]

PRESETS: dict[str, dict[str, Any]] = {
    "vanilla": {"network": "mlp"},
    "beta": {"network": "conv64", "image_size": 64, "objective": Objective.beta_vae(4.0)},
    "cnn": {"network": "cnn"},
    "info": {"network": "dcgan", "objective": Objective.info_vae(alpha=0.0, lambda_=1000.0)},
}
"""The four models of the ρ-VAE paper by name. All other settings are the defaults of :class:`Config`, among them the
paper's (arXiv:1909.06236): batches of 128, Adam at 1e-3 with its rate reduced on a plateau, 15 epochs. The paper's
β-VAE has no β and its InfoVAE no discrepancy; these are the published methods.
"""


@dataclass(frozen=True)
class NetworkOptions:
    """The options of the networks."""

    hidden: int | None = setting(
        None, "Units of the hidden layer.", min=1, shown="the network's", goes_with=("network", None)
    )


@dataclass(frozen=True)
class PosteriorOptions:
    """The options of the posteriors, each of one: what is None if nothing is said is left to the posterior's class."""

    rank: int = setting(1, "Rank of the posterior low_rank.", min=1, goes_with=("posterior", "low_rank"))
    order: int = setting(
        3,
        "In the posterior banded, how many latents before it each one depends on.",
        min=1,
        goes_with=("posterior", "banded"),
    )
    per_pair: bool | None = setting(
        None, "A correlation for every pair of neighbours, in the posterior ar1.", goes_with=("posterior", "ar1")
    )
    shared_rho: bool | None = setting(
        None, "One correlation for all pairs, in the posterior markov.", goes_with=("posterior", "markov")
    )


@dataclass(frozen=True)
class LikelihoodOptions:
    """The options of the likelihoods."""

    scale: float = setting(
        0.1,
        "Standard deviation of the gaussian likelihood.",
        option="likelihood_scale",
        positive=True,
        goes_with=("likelihood", "gaussian"),
    )
    learn_scale: bool = setting(
        False, "Train that standard deviation, from there on.", goes_with=("likelihood", "gaussian")
    )


@dataclass(frozen=True)
class Config:
    """Everything that determines a run. Two runs with equal settings on one CPU have equal results.

    Example:

        >>> config = Config(posterior="markov", latent_dim=10, epochs=30)
        >>> config.batch_size, config.objective
        (128, Objective(beta=1.0, warmup_epochs=0, mmd_weight=0.0))

    Args:
        network_options, posterior_options, likelihood_options, objective: as in :meth:`vae_models.model.vae.VAE.build`.
    """

    preset: str = setting(
        "vanilla",
        "One of the paper's models: vanilla, beta, cnn or info. Other options override its parts.",
        choices=tuple(PRESETS),
    )
    dataset: str = setting(
        "digits",
        "digits (in the package), mnist, fashion-mnist, or folder: one's own images.",
        choices=("digits", "mnist", "fashion-mnist", "folder"),
    )
    data_root: str = setting(
        "data",
        "Folder of the data set: torchvision's layout for mnist and fashion-mnist, which are downloaded to it if not "
        "there; folders of images for folder.",
        path=True,
    )
    image_size: int | None = setting(None, "Resize images to squares of this side.", min=1)
    color: bool = setting(False, "Keep the colours of one's own images.", goes_with=("dataset", "folder"))
    binarize: str = setting(
        "none",
        "none: grey values; static: each drawn once as 0 or 1; dynamic: drawn anew whenever trained on.",
        choices=("none", "static", "dynamic"),
    )
    latent_dim: int = setting(20, "Size of the latent vector.", min=1)
    network: str = setting(
        "mlp",
        "mlp, cnn, conv64 or dcgan.",
        choices=("mlp", "cnn", "conv64", "dcgan"),
        shown="the preset's",
    )
    network_options: dict[str, Any] = group(NetworkOptions)
    posterior: str = setting(
        "ar1",
        "diagonal, ar1, markov, low_rank, banded or full.",
        choices=("diagonal", "ar1", "markov", "low_rank", "banded", "full"),
    )
    posterior_options: dict[str, Any] = group(PosteriorOptions)
    likelihood: str = setting(
        "bernoulli",
        "bernoulli, continuous-bernoulli or gaussian.",
        choices=("bernoulli", "continuous-bernoulli", "gaussian"),
    )
    likelihood_options: dict[str, Any] = group(LikelihoodOptions)
    objective: Objective = group(Objective, Objective)
    epochs: int = setting(15, "Times to go over the training images.", min=1, shown="15, as in the paper; digits: 100")
    batch_size: int = setting(128, "Images per step, over all devices together.", min=1)
    learning_rate: float = setting(1e-3, "Adam's, divided by 10 on a plateau.", positive=True)
    plateau_patience: int = setting(10, "Epochs without improvement that make a plateau.", min=0)
    early_stopping: int | None = setting(None, "Epochs without improvement after which to stop.", min=1)
    gradient_clip: float | None = setting(None, "Greatest norm of the gradient.", positive=True)
    importance_samples: int = setting(100, "Samples per image for the NLL.", min=1)
    seed: int = setting(0, "Of splits, weights, order of images and noise; for every posterior.", min=0, max=2**32 - 1)

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> "Config":
        """The settings of a preset, some of them overridden.

        Example:

            >>> Config.from_preset("beta", latent_dim=10).objective.beta
            4.0

        Raises:
            ValueError: if the preset is unknown.
        """
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; choose from {', '.join(PRESETS)}")
        return cls(preset=preset, **(PRESETS[preset] | overrides))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Config":
        """The settings that :meth:`to_json` gave.

        Raises:
            ValueError: if a setting is unknown, missing or of another type.
        """
        names = {each.name for each in dataclasses.fields(cls)}
        if set(value) != names:
            raise ValueError(f"settings {', '.join(sorted(set(value) ^ names))} are missing or unknown")
        value = {**value, "objective": Objective(**value["objective"])}
        for each in SETTINGS.values():
            # What is in a group is the part's to check; a run of the API may have what the command line refuses.
            if not each.group and not (each.is_a(value[each.field]) and (not each.counts or value[each.field] >= 1)):
                raise ValueError(f"{each.field} = {value[each.field]!r} is no value of that setting")
        for name in names:
            if name.endswith("_options") and not isinstance(value[name], dict):
                raise ValueError(f"{name} = {value[name]!r} is no value of that setting")
        return cls(**value)

    def to_json(self) -> dict[str, Any]:
        """The settings as a value that JSON can hold."""
        return dataclasses.asdict(self)

    def vae_arguments(self) -> dict[str, Any]:
        """The keyword arguments of :meth:`vae_models.model.vae.VAE.build`."""
        names = ("latent_dim", "network", "network_options", "posterior", "posterior_options", "likelihood")
        return {name: getattr(self, name) for name in (*names, "likelihood_options", "objective")}


@dataclass(frozen=True)
class Hardware:
    """On what a run is trained: not one of its settings, and another one when it is resumed if need be."""

    accelerator: str = setting("auto", "Lightning's: auto, cpu, gpu, mps, ...")
    devices: int = setting(1, "Devices, or on a CPU processes, per node.", min=1)
    num_nodes: int = setting(1, "Nodes.", min=1)
    strategy: str = setting("auto", "Lightning's: auto, ddp, ...")
    precision: str = setting("32-true", "Lightning's: 32-true, bf16-mixed, 16-mixed, ...")


document(Config)
SETTINGS = settings_of(Config)
"""The settings of :class:`Config` by the names of their options on the command line, with underscores.

:meta hide-value:
"""
