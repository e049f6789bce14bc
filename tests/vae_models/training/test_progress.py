import io
import os

import pytest
from rich.console import Console
from rich.progress import Progress

from vae_models.data.loading import Images
from vae_models.model.vae import VAE
from vae_models.settings.config import Config
from vae_models.training.fitting import fit
from vae_models.training.module import VAEModule
from vae_models.training.progress import ProgressLine

CONFIG = Config(latent_dim=4, epochs=3, batch_size=50)


@pytest.fixture
def few(digits) -> Images:
    return Images(digits.train[:100], digits.validation[:50], digits.test[:50])


def trained(images, **options):
    return fit(VAE.build((1, 8, 8), **CONFIG.vae_arguments()), images, CONFIG, accelerator="cpu", **options)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def notebook(patch):
    """As IPython's kernel looks from within."""
    shell = type("ZMQInteractiveShell", (), {})
    patch.setattr("builtins.get_ipython", shell, raising=False)


def test_line_of_a_run(few):
    with open(os.devnull, "w") as file, Progress(console=Console(file=file)) as progress:
        task = progress.add_task("ar1", start=False, epoch="", loss="")
        history = trained(few, callbacks=[ProgressLine(progress, task)])
    (line,) = progress.tasks
    assert line.finished
    assert line.completed == 3 * 2
    loss = history.column("validation_negative_elbo")[-1]
    assert line.fields == {"epoch": "epoch 3/3", "loss": f"loss {loss:.2f}"}


@pytest.mark.parametrize("place", ["terminal", "notebook"])
def test_fit_shows_its_progress_where_someone_sees_it(place, few, monkeypatch):
    stream = Terminal() if place == "terminal" else io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    if place == "notebook":
        notebook(monkeypatch)
    history = trained(few)
    last = stream.getvalue().rstrip().rpartition("\r")[2]
    assert last.startswith("epoch 3/3 ")
    assert last.endswith(f"loss {history.column('validation_negative_elbo')[-1]:.2f}")
    for options in ({"enable_progress_bar": False}, {"callbacks": [ProgressLine(*quiet())]}):
        stream.seek(stream.truncate(0))
        trained(few, **options)
        assert stream.getvalue() == ""


def quiet():
    progress = Progress(disable=True)
    return progress, progress.add_task("ar1", epoch="", loss="")


def test_fit_is_silent_in_a_pipe_unless_it_is_told_otherwise(few, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "")
    trained(few)
    assert stream.getvalue() == ""
    trained(few, enable_progress_bar=True)
    assert "epoch 3/3 " in stream.getvalue()


def test_line_ends_with_an_error(few, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(VAEModule, "training_loss", lambda self, x: x.sum() * float("nan"))
    with pytest.raises(FloatingPointError):
        trained(few)
    assert stream.getvalue().endswith("\n")
