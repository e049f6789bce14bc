"""Options of the command line, made of settings (:mod:`vae_models.settings.setting`)."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from vae_models.settings.setting import Setting, settings_of

__all__ = ["given", "option", "takes"]

Command = TypeVar("Command", bound=Callable[..., None])


def option(setting: Setting, more: str = "") -> Any:
    """What Typer is told of a setting, within an ``Annotated``.

    Args:
        setting (vae_models.settings.setting.Setting): the setting.
        more (str): to be said after its help.
    """
    return typer.Option(
        setting.flag,
        help=f"{setting.help} {more}".strip(),
        min=setting.min if setting.plain is int else None,
        max=setting.max,
        callback=_positive if setting.positive else None,
        show_default=setting.shown or True,
    )


def takes(first: type, last: type) -> Callable[[Command], Command]:
    """Decorate a command that takes the settings of two dataclasses beside options of its own.

    In the help its own positional parameters stand before the settings of the first class, its keyword-only ones
    between those and the settings of the second. A setting that it has as a parameter of its own is left out. Values
    are in the parameters of the context.
    """

    def decorate(command: Command) -> Command:
        parameters = inspect.signature(command).parameters.values()
        before = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        between = [each for each in parameters if each.kind is each.KEYWORD_ONLY]
        own = {each.name for each in parameters}
        made = [
            [_parameter(each) for each in settings_of(kind).values() if each.option not in own]
            for kind in (first, last)
        ]
        every = [each.replace(kind=each.KEYWORD_ONLY) for each in (*before, *made[0], *between, *made[1])]
        command.__dict__["__signature__"] = inspect.Signature(every)
        command.__annotations__ = {each.name: each.annotation for each in every}
        return command

    return decorate


def given(context: typer.Context) -> dict[str, Any]:
    """The values of the options on the command line, by name."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {
        name: context.params[name]
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    }


def _parameter(setting: Setting) -> inspect.Parameter:
    kind: Any = Path if setting.path else setting.plain
    default = None if setting.shown or setting.default is None else kind(setting.default)
    return inspect.Parameter(
        setting.option,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind | None if default is None else kind, option(setting)],
    )


def _positive(value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value:g} is not positive and finite.")
    return value
