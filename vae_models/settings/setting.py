"""How a setting is written: once, as a field of a dataclass, with its type, default, help and what it goes with. The
options of the command line (:mod:`vae_models.cli.options`), the checks of files and those of
``--posterior NAME:OPTION=VALUE`` follow from that.

Example:

    >>> @dataclass(frozen=True)
    ... class Filter:
    ...     kind: str = setting("box", "box or lanczos.", choices=("box", "lanczos"))
    ...     lobes: int = setting(3, "Lobes of lanczos.", min=1, goes_with=("kind", "lanczos"))
    >>> settings_of(Filter)["lobes"].form
    'a whole number of at least 1'
    >>> settings_of(Filter)["lobes"].accepts(0)
    False
"""

import dataclasses
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, get_args, get_origin

__all__ = ["Setting", "document", "group", "setting", "settings_of"]

_GREATEST = 2**63 - 1  # that torch takes


@dataclass(frozen=True)
class Setting:
    """What is known of a setting.

    Attributes:
        help (str): what it is, for ``--help`` and for the reference.
        option (str): its name on the command line, with underscores; that of the field if nothing else is said.
        path (bool): whether the text is a path.
        min, max (int): bounds.
        positive (bool): whether it is above zero.
        choices (tuple of str): the texts that it may be.
        shown (str): what ``--help`` shows for a default that depends on other settings.
        goes_with (tuple): the option that it belongs to, and the one choice there that takes it; None if all do.
        field, group (str): the names of the field and of the field in which that is, if it is in one.
        kind (type): the field's.
        default: the field's.
    """

    help: str
    option: str = ""
    path: bool = False
    min: int | None = None
    max: int | None = None
    positive: bool = False
    choices: tuple[str, ...] = ()
    shown: str = ""
    goes_with: tuple[str, str | None] | None = None
    field: str = ""
    group: str = ""
    kind: Any = None
    default: Any = None

    @property
    def name(self) -> str:
        """Where it is in a file."""
        return f"{self.group}.{self.field}" if self.group else self.field

    @property
    def flag(self) -> str:
        """Its option as it is typed."""
        return f"--{self.option.replace('_', '-')}"

    @property
    def plain(self) -> type:
        """The type of a value that is not None."""
        return next(kind for kind in _kinds(self.kind) if kind is not type(None))

    @property
    def counts(self) -> bool:
        """Whether it is a number of things of which there is always one."""
        return self.kind is int and self.min == 1

    @property
    def form(self) -> str:
        """In words, what it has to be."""
        form = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[self.plain]
        if self.choices:
            form = f"one of {', '.join(self.choices)}"
        if self.max is not None:
            return f"{form} from {self.min} to {self.max}"
        return form + (f" of at least {self.min}" if self.min is not None else "") + (" above 0" * self.positive)

    def is_a(self, value: Any) -> bool:
        """Whether a value is of its type; a whole number stands for a float too."""
        kinds = _kinds(self.kind)
        return type(value) in kinds or (float in kinds and type(value) is int)

    def accepts(self, value: Any) -> bool:
        """Whether a value is of its type, within its bounds and one of its choices."""
        if not self.is_a(value):
            return False
        if type(value) in (int, float):
            low = self.min if self.min is not None else -_GREATEST
            high = self.max if self.max is not None else _GREATEST
            return low <= value <= high and (value > 0 or not self.positive)
        return value is None or not self.choices or value in self.choices

    def read(self, text: str) -> Any:
        """The value that a text stands for.

        Raises:
            ValueError: if it stands for none that is accepted.
        """
        value: Any = text
        if self.plain is bool:
            value = {"true": True, "false": False}.get(text, text)
        elif self.plain is int and re.fullmatch("-?[0-9]{1,18}", text):
            value = int(text)
        elif self.plain is float:
            with suppress(ValueError):
                value = float(text)
        if not self.accepts(value):
            raise ValueError(f"{text!r} is not {self.form}")
        return value


def setting(default: Any, help: str, **known: Any) -> Any:
    """A field of a dataclass that is a setting.

    Args:
        default: its default.
        help (str): what it is.
        known: attributes of :class:`Setting`.
    """
    return field(default=default, metadata={"setting": Setting(help=help, **known)})


def group(members: type, default: Callable[[], Any] = dict) -> Any:
    """A field of a dataclass whose value holds settings of its own: a dataclass, or a dict that has some of them.

    Args:
        members (type): the dataclass whose fields they are.
        default (callable): makes the default.
    """
    return field(default_factory=default, metadata={"group": members})


def settings_of(kind: type, within: str = "") -> dict[str, Setting]:
    """The settings of a dataclass and of its groups by the names of their options, in the order of the fields."""
    found: dict[str, Setting] = {}
    for each in dataclasses.fields(kind):
        if members := each.metadata.get("group"):
            found |= settings_of(members, each.name)
        elif known := each.metadata.get("setting"):
            option = known.option or each.name
            found[option] = dataclasses.replace(
                known, option=option, field=each.name, group=within, kind=each.type, default=each.default
            )
    return found


def document(kind: type) -> None:
    """Add the settings of a dataclass to the end of its docstring, which is the list of its arguments."""
    lines = [
        f"        {each.field} ({' or '.join(k.__name__.removesuffix('Type') for k in _kinds(each.kind))}): {each.help}"
        for each in settings_of(kind).values()
        if not each.group
    ]
    kind.__doc__ = "\n".join([(kind.__doc__ or "").rstrip(), *lines, ""])


def _kinds(kind: Any) -> list[Any]:
    return [get_origin(each) or each for each in (get_args(kind) if isinstance(kind, UnionType) else (kind,))]
