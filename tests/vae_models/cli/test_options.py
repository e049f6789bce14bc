from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command

from vae_models.cli.options import given, option, takes
from vae_models.settings.setting import setting, settings_of


@dataclass(frozen=True)
class First:
    depth: int = setting(2, "How deep.", min=1)
    place: str = setting("here", "Where.", path=True)
    rate: float | None = setting(None, "How fast.", positive=True, shown="slowly")
    loud: bool = setting(False, "Say more.")


@dataclass(frozen=True)
class Last:
    device: str = setting("cpu", "On what.")


@pytest.fixture
def command():
    """A command that returns its parameters and what of them was given."""
    app = typer.Typer(add_completion=False)

    @app.command()
    @takes(First, Last)
    def show(
        context: typer.Context,
        depth: Annotated[list[int], option(settings_of(First)["depth"], "Or more.")] = [1, 2],  # noqa: B006
        *,
        out: Annotated[Path, typer.Option()] = Path("out"),
        **settings: Any,
    ):
        return context.params, given(context)

    return get_command(app)


def test_order_and_help(command):
    assert [each.name for each in command.params] == ["depth", "place", "rate", "loud", "out", "device"]
    texts = {each.name: each.help for each in command.params}
    assert (texts["depth"], texts["rate"]) == ("How deep. Or more.", "How fast.")
    assert {each.name: each.show_default for each in command.params}["rate"] == "slowly"


def test_values(command):
    values, said = command.main([], standalone_mode=False)
    assert said == {}
    assert values == {"depth": [1, 2], "place": Path("here"), "rate": None, "loud": False, "out": Path("out")} | {
        "device": "cpu"
    }
    values, said = command.main(["--depth", "3", "--rate", "0.5", "--loud", "--place", "a"], standalone_mode=False)
    assert said == {"depth": [3], "rate": 0.5, "loud": True, "place": Path("a")}
    assert {name: values[name] for name in said} == said


@pytest.mark.parametrize("arguments", [["--depth", "0"], ["--rate", "0"], ["--rate", "nan"], ["--no-loud"]])
def test_bad_values(command, arguments):
    with pytest.raises(typer.BadParameter.__mro__[1]):
        command.main(arguments, standalone_mode=False)
