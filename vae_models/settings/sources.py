"""From what is given, on the command line and in a file, to the settings of one or more runs.

Of what says a setting, the first one counts: the command line; a file; the preset; the default of
:class:`vae_models.settings.config.Config`, but that ``digits`` are gone over 100 times.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_models.files import FileError
from vae_models.settings.choices import Choice, options_of
from vae_models.settings.comparisons import holds_comparison, read_runs
from vae_models.settings.config import PRESETS, SETTINGS, Config
from vae_models.settings.config_file import read_config_file
from vae_models.settings.setting import Setting

__all__ = ["make_configs", "read_settings"]

_DIGITS_EPOCHS = 100

Values = dict[str, Any]
"""Values by the names of the options, with underscores."""


def read_settings(path: Path) -> dict[str, Values]:
    """What a file of settings says.

    Args:
        path (Path): of a JSON file that is an object of settings of :class:`vae_models.settings.config.Config`, some or
            all; or the ``config.json`` of a run or of a comparison.

    Returns:
        dict: from the names of posteriors, as in a comparison, to values. The name is empty if the file names none.

    Raises:
        FileError: if it is missing, damaged or in another format, or a setting is unknown or of another type.
    """
    value = read_config_file(path)
    if holds_comparison(value):
        return {label: _values(path, config.to_json()) for label, config in read_runs(path).items()}
    if isinstance(value, dict) and "run" in value:
        value = value["run"]
    if not isinstance(value, dict):
        raise FileError(f"{path} does not hold settings: they are an object, such as a run's config.json")
    values = _values(path, value)
    return {values.get("posterior", ""): values}


def make_configs(given: Mapping[str, Any], posteriors: Sequence[str], file: Path | None = None) -> dict[str, Config]:
    """The settings of a run with each of the posteriors.

    Example:

        >>> configs = make_configs({"preset": "beta", "rank": 2}, ["ar1", "low_rank", "low_rank:rank=4"])
        >>> {name: config.posterior_options for name, config in configs.items()}
        {'ar1': {}, 'low_rank': {'rank': 2}, 'low_rank:rank=4': {'rank': 4}}
        >>> configs["ar1"].network, configs["ar1"].objective.beta, configs["ar1"].epochs
        ('conv64', 4.0, 100)

    Args:
        given (mapping): the values of the options on the command line; others than settings may be among them.
        posteriors (sequence of str): as :meth:`vae_models.settings.choices.Choice.parse` reads them. They count if
            ``given`` has the posterior, or the file names none.
        file (Path): of settings, as :func:`read_settings` reads them.

    Returns:
        dict: settings by the labels of the posteriors, in their order.

    Raises:
        ValueError: if a name is unknown, or an option is given that nothing takes.
        FileError: if the file is refused.
    """
    rows = {"": {}} if file is None else read_settings(file)
    if "posterior" not in given and "" not in rows:
        posteriors = list(rows)
    choices = {choice.label: choice for choice in map(Choice.parse, posteriors)}
    first = next(iter(rows.values()))
    said = {name: str(given[name]) if each.path else given[name] for name, each in SETTINGS.items() if name in given}
    said.pop("posterior", None)
    for name, value in said.items():
        _check_choice(SETTINGS[name], value)
    if said.get("preset", first.get("preset")) != first.get("preset", said.get("preset")):
        raise ValueError(f"{file} has preset = {first['preset']!r}, not {said['preset']!r}: give one of the two")
    _check_takers(said, first, choices.values(), file)
    return {label: _config(said, rows.get(label, first), choice) for label, choice in choices.items()}


def _config(said: Values, stored: Values, choice: Choice) -> Config:
    values = {**stored, **said, "posterior": choice.posterior}
    preset = values.get("preset", Config.preset)
    parts = {**PRESETS[preset], **values}

    def counts(name: str) -> bool:
        """Whether what is given of an option is for the part that takes it; of a file's, that it was written for it."""
        other, taker = SETTINGS[name].goes_with or ("", None)
        chosen = parts.get(other, SETTINGS[other].default) if other else None
        return taker in (None, chosen) and (name in said or other not in stored or stored[other] == chosen)

    values = {name: value for name, value in values.items() if counts(name)}
    settings: Values = {name: value for name, value in values.items() if not SETTINGS[name].group}
    for part in ("network", "posterior", "likelihood"):
        options = {
            each.field: values.get(each.option, each.default)
            for each in options_of(part, parts.get(part, SETTINGS[part].default)).values()
        }
        if part == "posterior":
            options |= choice.options
        settings[f"{part}_options"] = {name: value for name, value in options.items() if value is not None}
    settings.setdefault("epochs", _DIGITS_EPOCHS if parts.get("dataset", Config.dataset) == "digits" else Config.epochs)
    settings.pop("preset", None)
    config = Config.from_preset(preset, **settings)
    weights = {name: value for name, value in values.items() if SETTINGS[name].group == "objective"}
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, **weights))


def _check_takers(said: Values, stored: Values, choices: Collection[Choice], file: Path | None) -> None:
    """See that something takes what is given, and what a file says without saying of what."""
    for name, each in SETTINGS.items():
        other, taker = each.goes_with or ("", None)
        unclaimed = name in stored and other not in stored and (each.group or stored[name] != each.default)
        if taker is None or not (name in said or unclaimed):
            continue
        if other == "posterior":
            chosen = [choice.label for choice in choices]
            taken = any(choice.posterior == taker and each.field not in choice.options for choice in choices)
        else:
            chosen = [said.get(other, stored.get(other, SETTINGS[other].default))]
            taken = taker in chosen
        if not taken:
            start = each.flag if name in said else f"{file}: {each.name}"
            raise ValueError(f"{start} goes with {SETTINGS[other].flag} {taker}, not with {', '.join(chosen)}")


def _check_choice(setting: Setting, value: Any, place: str = "") -> None:
    if setting.choices and value is not None and value not in setting.choices:
        name = setting.flag.removeprefix("--")
        kind = FileError if place else ValueError
        raise kind(f"{place}unknown {name} {value!r}; choose from {', '.join(setting.choices)}")


def _values(path: Path, stored: Mapping[str, Any]) -> Values:
    """Settings as they stand in a file, checked, by the names of the options."""
    fields = [each.name for each in dataclasses.fields(Config)]
    members = {each.group for each in SETTINGS.values() if each.group}
    flat: Values = {}
    for name, value in stored.items():
        if name not in fields:
            raise FileError(f"{path}: unknown setting {name!r}; choose from {', '.join(fields)}")
        if name not in members:
            flat[name] = value
            continue
        known = [each.field for each in SETTINGS.values() if each.group == name]
        if not isinstance(value, dict):
            raise FileError(f"{path}: {name} is to be an object of {', '.join(known)}, not {value!r}")
        for option, own in value.items():
            if option not in known:
                raise FileError(f"{path}: unknown setting {name}.{option}; choose from {', '.join(known)}")
            flat[f"{name}.{option}"] = own
    values = {each.option: flat[each.name] for each in SETTINGS.values() if each.name in flat}
    for name, value in values.items():
        each = SETTINGS[name]
        if isinstance(value, str):
            _check_choice(each, value, f"{path}: ")
        if not each.accepts(value):
            raise FileError(f"{path}: {each.name} is to be {each.form}, not {value!r}")
        other, taker = each.goes_with or ("", None)
        chosen = values.get(other)
        if taker is not None and chosen is not None and chosen != taker and (each.group or value != each.default):
            raise FileError(f"{path}: {each.name} goes with {other} {taker}, not with {chosen}")
    return values
