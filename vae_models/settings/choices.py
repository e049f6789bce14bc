"""A posterior with options of its own, as the command line takes it: ``low_rank:rank=2``."""

from dataclasses import dataclass, field
from typing import Any

from vae_models.settings.config import SETTINGS
from vae_models.settings.setting import Setting

__all__ = ["Choice", "options_of"]


@dataclass(frozen=True)
class Choice:
    """A posterior, and what was said of its options where it was named.

    Example:

        >>> choice = Choice.parse("low_rank:rank=2")
        >>> choice, choice.label, choice.folder
        (Choice(posterior='low_rank', options={'rank': 2}), 'low_rank:rank=2', 'low_rank-rank=2')

    Args:
        posterior (str): its name.
        options (dict): values by the names of the options.
    """

    posterior: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Choice":
        """What ``NAME`` or ``NAME:OPTION=VALUE,OPTION=VALUE...`` says.

        Raises:
            ValueError: if the posterior or an option is unknown, or a value is not one of that option.
        """
        name, colon, rest = text.partition(":")
        if name not in SETTINGS["posterior"].choices:
            raise ValueError(f"unknown posterior {name!r}; choose from {', '.join(SETTINGS['posterior'].choices)}")
        known, options = options_of("posterior", name), {}
        for item in rest.split(",") if colon else ():
            option, _, value = item.partition("=")
            if option not in known:
                raise ValueError(f"posterior {text!r}: {name} takes {_listed(known)}, not {option!r}")
            if option in options:
                raise ValueError(f"posterior {text!r}: {option} is given twice")
            try:
                options[option] = known[option].read(value)
            except ValueError as error:
                raise ValueError(f"posterior {text!r}: {name} takes {_listed(known)}; {error}") from error
        return cls(name, {option: options[option] for option in known if option in options})

    @property
    def label(self) -> str:
        """Its name in tables and pictures, which :meth:`parse` reads. Equal choices have equal ones."""
        said = ",".join(f"{name}={str(value).lower()}" for name, value in self.options.items())
        return f"{self.posterior}:{said}" if said else self.posterior

    @property
    def folder(self) -> str:
        """The name of its folder in a comparison, which any file system takes."""
        return self.label.replace(":", "-")


def options_of(part: str, name: str) -> dict[str, Setting]:
    """The options of one of the networks, posteriors or likelihoods, by their names.

    Example:

        >>> list(options_of("likelihood", "gaussian")), list(options_of("posterior", "diagonal"))
        (['scale', 'learn_scale'], [])
    """
    return {
        each.field: each
        for each in SETTINGS.values()
        if each.group and each.goes_with and each.goes_with[0] == part and each.goes_with[1] in (None, name)
    }


def _listed(options: dict[str, Setting]) -> str:
    return " and ".join(f"{name} ({each.form})" for name, each in options.items()) or "no options"
