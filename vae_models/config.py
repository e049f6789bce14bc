"""The settings of a run, their presets and their file."""

import dataclasses
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, get_args, get_origin

from vae_models.objectives import Objective

__all__ = ["PRESETS", "Config"]


_COUNTS = ("epochs", "batch_size", "latent_dim", "importance_samples")


@dataclass(frozen=True)
class Config:
    """Everything that determines a run. Two runs with equal settings on one CPU have equal results.

    Example:

        >>> config = Config(posterior="markov", latent_dim=10, epochs=30)
        >>> config.batch_size, config.objective
        (128, Objective(beta=1.0, warmup_epochs=0, mmd_weight=0.0))

    Args:
        preset (str): the name of the preset from which the settings were taken.
        dataset (str): one of :data:`vae_models.data.DATASETS`.
        data_root (str): the folder of the data set's files.
        image_size (int): side to which images are resized, or None for their own size.
        color (bool): whether images of a folder keep their colours.
        binarize (str): ``"none"``; ``"static"``, every grey value replaced once by a Bernoulli draw; or ``"dynamic"``,
            drawn anew whenever a training image is used (validation and test images are drawn once).
        latent_dim, network, network_options, posterior, posterior_options, likelihood, likelihood_options, objective:
            the VAE's, as in :meth:`vae_models.vae.VAE.build`.
        epochs (int): greatest number of epochs.
        batch_size (int): images per step, over all devices together.
        learning_rate (float): Adam's, at first.
        plateau_patience (int): epochs without a better validation loss after which the learning rate is divided by 10.
        early_stopping (int): epochs without a better validation loss after which training ends, or None.
        gradient_clip (float): greatest norm of the gradient, or None.
        importance_samples (int): samples per image of the final importance-weighted likelihood.
        seed (int): of the splits, the weights, the order of images and the noise.
    """

    preset: str = "vanilla"
    dataset: str = "digits"
    data_root: str = "data"
    image_size: int | None = None
    color: bool = False
    binarize: str = "none"
    latent_dim: int = 20
    network: str = "mlp"
    network_options: dict[str, Any] = field(default_factory=dict)
    posterior: str = "ar1"
    posterior_options: dict[str, Any] = field(default_factory=dict)
    likelihood: str = "bernoulli"
    likelihood_options: dict[str, Any] = field(default_factory=dict)
    objective: Objective = field(default_factory=Objective)
    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 1e-3
    plateau_patience: int = 10
    early_stopping: int | None = None
    gradient_clip: float | None = None
    importance_samples: int = 100
    seed: int = 0

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
        kinds = {each.name: each.type for each in dataclasses.fields(cls)}
        if set(value) != set(kinds):
            raise ValueError(f"settings {', '.join(sorted(set(value) ^ set(kinds)))} are missing or unknown")
        value = {**value, "objective": Objective(**value["objective"])}
        for name, kind in kinds.items():
            if not _is_a(value[name], kind) or (name in _COUNTS and value[name] < 1):
                raise ValueError(f"{name} = {value[name]!r} is no value of that setting")
        return cls(**value)

    def to_json(self) -> dict[str, Any]:
        """The settings as a value that JSON can hold."""
        return dataclasses.asdict(self)

    def vae_arguments(self) -> dict[str, Any]:
        """The keyword arguments of :meth:`vae_models.vae.VAE.build`."""
        names = ("latent_dim", "network", "network_options", "posterior", "posterior_options", "likelihood")
        return {name: getattr(self, name) for name in (*names, "likelihood_options", "objective")}


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of a field of :class:`Config`; a whole number stands for a float too."""
    kinds = [get_origin(each) or each for each in (get_args(kind) if isinstance(kind, UnionType) else (kind,))]
    return type(value) in kinds or (float in kinds and type(value) is int)


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
