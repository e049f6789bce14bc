"""Fixtures that the tests of vae_models share."""

from contextlib import contextmanager
from threading import Event, Thread

import pytest
import torch
from matplotlib.figure import Figure

from vae_models.data.loading import Images, load
from vae_models.model.vae import VAE
from vae_models.results import figures
from vae_models.training.locks import locked


@pytest.fixture(scope="session")
def digits() -> Images:
    return load("digits")


@pytest.fixture(scope="module")
def blank_pictures():
    """Figures are made, and written as one small picture: drawing takes longer than training on digits. Gives what
    draws."""
    draw = figures.png
    blank = draw(Figure(figsize=(1, 1)), dpi=10)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("vae_models.results.figures", "vae_models.study.report"):
            patch.setattr(f"{module}.png", lambda *_, **__: blank)
        yield draw


@pytest.fixture
def locked_elsewhere():
    """A context in which a folder is locked as by another process."""

    @contextmanager
    def elsewhere(folder):
        locked_now, done = Event(), Event()

        def hold():
            with locked(folder):
                locked_now.set()
                done.wait()

        thread = Thread(target=hold)
        thread.start()
        locked_now.wait()
        try:
            yield
        finally:
            done.set()
            thread.join()

    return elsewhere


@pytest.fixture
def build():
    """A small VAE on 8×8 images, with scales and correlations that are not those of its initialisation."""

    def build(posterior: str, latent_dim: int = 4) -> VAE:
        vae = VAE.build((1, 8, 8), posterior=posterior, latent_dim=latent_dim)
        with torch.no_grad():
            for parameter in vae.posterior.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return vae

    return build
