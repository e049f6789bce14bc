import dataclasses
import json
import re

import pytest

from vae_models.files import FileError
from vae_models.settings.comparisons import write_comparison
from vae_models.settings.config import SETTINGS, Config
from vae_models.settings.config_file import FORMAT
from vae_models.settings.objectives import Objective
from vae_models.settings.sources import make_configs, read_settings

RUN = Config(
    preset="beta",
    dataset="folder",
    data_root="images",
    image_size=32,
    color=True,
    network="conv64",
    network_options={"hidden": 32},
    posterior="low_rank",
    posterior_options={"rank": 3},
    likelihood="gaussian",
    likelihood_options={"scale": 0.5, "learn_scale": True},
    objective=Objective(beta=2.0, warmup_epochs=1, mmd_weight=3.0),
    epochs=7,
    seed=5,
)


@pytest.fixture
def file(tmp_path):
    """Write a value to a JSON file, and give its path."""

    def file(value):
        path = tmp_path / "settings.json"
        path.write_text(json.dumps(value))
        return path

    return file


def made(given=(), posterior="ar1", file=None) -> Config:
    (config,) = make_configs(dict(given), [posterior], file).values()
    return config


# --- What counts ---


def test_nothing_is_given():
    assert made() == Config(epochs=100)
    assert made({"dataset": "mnist"}) == Config(dataset="mnist")


def test_settings_of_a_run_are_those_of_the_run(file):
    for stored in (RUN.to_json(), {"format": FORMAT, "run": RUN.to_json(), "vae": {}}):
        assert made(file=file(stored)) == RUN


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("preset", "posterior")])
def test_the_command_line_overrides_a_file(name, file):
    """Each setting by itself; what belongs to another choice goes with it."""
    other = {"dataset": "mnist", "network": "mlp", "likelihood": "bernoulli", "binarize": "static"}
    given = {name: other.get(name, 3)}
    setting = SETTINGS[name]
    if setting.group == "posterior_options" and setting.goes_with[1] != RUN.posterior:
        value = True if setting.default is None else 5
        config = made({name: value, "posterior": ...}, setting.goes_with[1], file(RUN.to_json()))
        assert config.posterior_options == {name: value}
        return
    expected = RUN.to_json()
    (expected[setting.group] if setting.group else expected)[setting.field] = "3" if setting.path else given[name]
    expected |= {"dataset": {"color": False}, "network": {"network_options": {}}}.get(name, {})
    expected |= {"likelihood": {"likelihood_options": {}}}.get(name, {})
    assert made(given, file=file(RUN.to_json())).to_json() == expected


def test_a_part_of_the_settings_is_enough(file):
    path = file({"posterior": "markov", "objective": {"warmup_epochs": 2}, "network_options": {"hidden": 8}})
    config = made({"preset": "beta"}, file=path)
    expected = Config.from_preset("beta", epochs=100, posterior="markov", network_options={"hidden": 8})
    assert config == dataclasses.replace(expected, objective=Objective(beta=4.0, warmup_epochs=2))
    assert made(file=file({})) == made(file=file({"color": False})) == Config(epochs=100)


def test_a_file_has_its_own_preset(file):
    path = file({"preset": "cnn", "latent_dim": 5})
    assert made(file=path) == made({"preset": "cnn"}, file=path) == Config.from_preset("cnn", latent_dim=5, epochs=100)
    with pytest.raises(ValueError, match="settings.json has preset = 'cnn', not 'beta': give one of the two"):
        made({"preset": "beta"}, file=path)


def test_options_of_a_posterior_stay_with_it(file):
    path = file(RUN.to_json())
    given = {"posterior": ...}
    configs = make_configs(given, ["ar1", "low_rank", "low_rank:rank=2", "low_rank:rank=02"], path)
    assert {label: config.posterior_options for label, config in configs.items()} == {
        "ar1": {},
        "low_rank": {"rank": 3},
        "low_rank:rank=2": {"rank": 2},
    }
    assert list(make_configs({}, ["ar1", "markov"], path)) == ["low_rank"]  # the file names it
    only_rank = file({"posterior_options": {"rank": 4}})
    assert made({}, "low_rank", only_rank).posterior_options == {"rank": 4}
    with pytest.raises(ValueError, match=r"settings.json: posterior_options.rank goes with --posterior low_rank, not"):
        made({}, "ar1", only_rank)


def test_options_for_all_that_have_none_of_their_own():
    configs = make_configs({"rank": 5, "per_pair": True}, ["low_rank", "low_rank:rank=2", "ar1", "full"])
    assert [config.posterior_options for config in configs.values()] == [
        {"rank": 5},
        {"rank": 2},
        {"per_pair": True},
        {},
    ]
    with pytest.raises(ValueError, match="--rank goes with --posterior low_rank, not with low_rank:rank=2, full"):
        make_configs({"rank": 5}, ["low_rank:rank=2", "full"])


def test_settings_of_a_comparison(tmp_path):
    configs = {"ar1": Config(seed=3), "low_rank:rank=2": Config(seed=3, posterior="low_rank")}
    configs["low_rank:rank=2"].posterior_options["rank"] = 2
    write_comparison(tmp_path, configs)
    path = tmp_path / "config.json"
    assert make_configs({}, ["diagonal"], path) == configs
    assert list(make_configs({"posterior": ...}, ["diagonal"], path)) == ["diagonal"]
    assert made({"posterior": ..., "epochs": 2}, "diagonal", path) == Config(seed=3, posterior="diagonal", epochs=2)


# --- Files of strangers ---


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ([], "does not hold settings: they are an object, such as a run's config.json"),
        ("digits", "does not hold settings"),
        ({"format": FORMAT, "run": []}, "does not hold settings"),
        ({"run": RUN.to_json()}, "is of another version of vae_models, in format 1 where this one has"),
        ({"format": FORMAT, "comparison": {}}, "does not hold a comparison"),
        ({"format": FORMAT, "comparison": {"..": Config().to_json()}}, "does not hold a comparison of posteriors"),
        ({"nope": 1}, "unknown setting 'nope'; choose from preset, dataset, data_root"),
        ({"beta": 2}, "unknown setting 'beta'"),
        ({"objective": {"nope": 1}}, "unknown setting objective.nope; choose from beta, warmup_epochs, mmd_weight"),
        ({"objective": 2.0}, "objective is to be an object of beta, warmup_epochs, mmd_weight, not 2.0"),
        ({"objective": {"beta": -1}}, "objective.beta is to be a number of at least 0, not -1"),
        ({"posterior_options": ["rank"]}, "posterior_options is to be an object of rank, order, per_pair, shared_rho"),
        ({"posterior_options": {"nope": 1}}, "unknown setting posterior_options.nope; choose from rank"),
        ({"posterior_options": {"rank": 0}}, "posterior_options.rank is to be a whole number of at least 1, not 0"),
        ({"posterior": "ar1", "posterior_options": {"rank": 1}}, "posterior_options.rank goes with posterior low_rank"),
        (
            {"likelihood_options": {"scale": float("nan")}},
            "likelihood_options.scale is to be a number above 0, not nan",
        ),
        ({"network_options": {"channels": [8]}}, "unknown setting network_options.channels; choose from hidden"),
        ({"dataset": "mnist", "color": True}, "color goes with dataset folder, not with mnist"),
        ({"color": True}, "color goes with --dataset folder, not with digits"),
        ({"preset": "vanilla, walk"}, "unknown preset 'vanilla, walk'; choose from vanilla, beta, cnn, info"),
        ({"network": "nope"}, "unknown network 'nope'; choose from mlp, cnn, conv64, dcgan"),
        ({"network": None}, "network is to be one of mlp, cnn, conv64, dcgan, not None"),
        (
            {"posterior": ["ar1"]},
            "posterior is to be one of diagonal, ar1, markov, low_rank, banded, full, not ['ar1']",
        ),
        ({"posterior": "low_rank:rank=2"}, "unknown posterior 'low_rank:rank=2'; choose from diagonal"),
        ({"epochs": "3"}, "epochs is to be a whole number of at least 1, not '3'"),
        ({"epochs": True}, "epochs is to be a whole number of at least 1, not True"),
        ({"learning_rate": 10**400}, "learning_rate is to be a number above 0"),
        ({"seed": -1}, "seed is to be a whole number from 0 to 4294967295, not -1"),
        ({"data_root": None}, "data_root is to be a text, not None"),
        ({"image_size": 0}, "image_size is to be a whole number of at least 1, not 0"),
    ],
    ids=lambda value: json.dumps(value)[:60] if not isinstance(value, str) else "",
)
def test_what_is_refused(stored, said, file):
    path = file(stored)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}:? {re.escape(said)}"):
        make_configs({}, ["ar1", "low_rank"], path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"epochs": 2} more', b"\xff\xfe", b"[" * 100_000])
def test_damaged_file(content, tmp_path):
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match="settings.json is damaged"):
        read_settings(path)


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(FileError, match="nope.json does not exist"):
        read_settings(tmp_path / "nope.json")
    with pytest.raises(FileError, match=f"cannot read {re.escape(str(tmp_path))}"):
        read_settings(tmp_path)
