"""Variational auto-encoders in Pyro whose posterior may be autoregressive (:mod:`ar1_dist`), and a command to compare
posteriors: ``vae-models compare``.

Example:

    >>> from vae_models import VAE, Config, evaluate, fit, load
    >>> images, config = load("digits"), Config(epochs=1, latent_dim=4)
    >>> vae = VAE.build((1, 8, 8), **config.vae_arguments())
    >>> history = fit(vae, images, config, accelerator="cpu")
    >>> evaluate(vae, images.test, num_samples=2)["num_images"]
    360
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_models.data.loading import Images, load
    from vae_models.model.mmd import mmd
    from vae_models.model.vae import VAE
    from vae_models.results.evaluation import evaluate
    from vae_models.settings.config import PRESETS, Config
    from vae_models.settings.objectives import Objective
    from vae_models.training.callbacks import History
    from vae_models.training.fitting import fit

__all__ = ["PRESETS", "VAE", "Config", "History", "Images", "Objective", "evaluate", "fit", "load", "mmd"]

# Imported when it is first asked for: torch and Lightning take seconds, which the help of the command need not.
_MODULES = {
    "PRESETS": "settings.config",
    "VAE": "model.vae",
    "Config": "settings.config",
    "History": "training.callbacks",
    "Images": "data.loading",
    "Objective": "settings.objectives",
    "evaluate": "results.evaluation",
    "fit": "training.fitting",
    "load": "data.loading",
    "mmd": "model.mmd",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
