import json
import re

import pytest

from vae_models.config import PRESETS, Config
from vae_models.objectives import Objective
from vae_models.vae import VAE


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_a_vae(preset):
    config = Config.from_preset(preset)
    side = config.image_size or 28
    assert VAE.build((1, side, side), **config.vae_arguments()).config["network"] == PRESETS[preset]["network"]
    assert (config.batch_size, config.learning_rate, config.epochs) == (128, 1e-3, 15)


def test_overrides():
    config = Config.from_preset("beta", network="cnn", objective=Objective(), seed=3)
    assert (config.preset, config.network, config.objective, config.seed) == ("beta", "cnn", Objective(), 3)
    with pytest.raises(ValueError, match="unknown preset 'nope'; choose from vanilla, beta, cnn, info"):
        Config.from_preset("nope")


@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip_through_json(preset):
    config = Config.from_preset(preset, posterior="low_rank", posterior_options={"rank": 2})
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("change", [{"nope": 1}, {"seed": None}])
def test_foreign_settings(change):
    value = Config().to_json() | change
    if value["seed"] is None:
        del value["seed"]
    with pytest.raises(ValueError, match=f"settings {next(iter(change))} are missing or unknown"):
        Config.from_json(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", "3"),
        ("epochs", 0),
        ("epochs", 2.5),
        ("seed", True),
        ("preset", ["vanilla"]),
        ("data_root", None),
        ("color", 1),
        ("image_size", "8"),
        ("learning_rate", "fast"),
        ("network_options", [1]),
        ("early_stopping", "never"),
    ],
)
def test_values_of_another_type(name, value):
    """A file of settings can come from anywhere."""
    with pytest.raises(ValueError, match=rf"^{name} = {re.escape(repr(value))} is no value of that setting$"):
        Config.from_json(Config().to_json() | {name: value})
    assert Config.from_json(Config().to_json() | {"learning_rate": 1, "image_size": 8}).learning_rate == 1
