import dataclasses
import inspect
import json
import re
import subprocess
import sys

import pytest

from vae_models.data.loading import BINARIZATIONS, DATASETS
from vae_models.model.likelihoods import LIKELIHOODS
from vae_models.model.networks import NETWORKS
from vae_models.model.posteriors import POSTERIORS
from vae_models.model.vae import VAE
from vae_models.settings.choices import options_of
from vae_models.settings.config import PRESETS, SETTINGS, Config, Hardware
from vae_models.settings.objectives import Objective
from vae_models.settings.setting import settings_of

TABLES = {
    "preset": PRESETS,
    "dataset": DATASETS,
    "binarize": BINARIZATIONS,
    "network": NETWORKS,
    "posterior": POSTERIORS,
    "likelihood": LIKELIHOODS,
}


@pytest.mark.parametrize("name", TABLES)
def test_choices_are_those_of_the_tables(name):
    """They are written beside the settings because the tables are in modules that import torch."""
    assert SETTINGS[name].choices == tuple(TABLES[name])
    assert set(TABLES[name]) <= set(re.findall(r"[\w-]+", SETTINGS[name].help))


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part in ("posterior", "likelihood") for name in TABLES[part]]
)
def test_options_are_those_of_the_part(part, name):
    """Each with the default of its class, or None, which leaves it to the class."""
    parameters = dict(inspect.signature(TABLES[part][name]).parameters)
    own = {key: value.default for key, value in parameters.items() if key not in ("num_features", "latent_dim")}
    declared = {key: each.default for key, each in options_of(part, name).items()}
    assert declared.keys() == (own.keys() if own.keys() != {"args", "kwargs"} else set())
    assert all(default in (None, own[key]) for key, default in declared.items())


def test_every_setting_is_documented():
    assert all(
        re.search(rf"^ +{each.name}\b.*: ", Config.__doc__, re.MULTILINE)
        or "_options" in each.name
        or each.name == "objective"
        for each in dataclasses.fields(Config)
    )
    assert not settings_of(Hardware).keys() & SETTINGS.keys()


def test_settings_need_neither_torch_nor_typer():
    code = "import vae_models.settings.sources, sys; print({'torch', 'typer'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


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
