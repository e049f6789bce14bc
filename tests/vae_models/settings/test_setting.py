import math
import re
from dataclasses import dataclass, field, fields

import pytest

from vae_models.settings.setting import document, group, setting, settings_of


@dataclass(frozen=True)
class Inner:
    depth: int = setting(1, "How deep.", min=1, goes_with=("kind", "deep"))


@dataclass(frozen=True)
class Outer:
    """Some settings.

    Args:
        other: not a setting.
    """

    kind: str = setting("flat", "flat or deep.", choices=("flat", "deep"))
    inner: dict = group(Inner)
    rate: float | None = setting(None, "How fast.", option="how_fast", positive=True)
    share: float = setting(0.5, "Of the whole.", min=0)
    loud: bool = setting(False, "Say more.")
    seed: int = setting(0, "Of the noise.", min=0, max=9)
    other: list = field(default_factory=list)


SETTINGS = settings_of(Outer)


def test_settings_in_the_order_of_the_fields():
    assert list(SETTINGS) == ["kind", "depth", "how_fast", "share", "loud", "seed"]
    assert [each.name for each in SETTINGS.values()] == ["kind", "inner.depth", "rate", "share", "loud", "seed"]
    assert [each.default for each in SETTINGS.values()] == ["flat", 1, None, 0.5, False, 0]
    assert SETTINGS["how_fast"].flag == "--how-fast"
    assert (Outer().inner, Outer().rate, Inner().depth) == ({}, None, 1)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("kind", ["flat", "deep"], ["Flat", "", None, 1, ["flat"]]),
        ("depth", [1, 2**63 - 1], [0, -1, 2**63, 1.0, True, "1", None]),
        ("how_fast", [None, 1, 0.1], [0, 0.0, -1.0, math.nan, math.inf, 10**400, "1", False]),
        ("share", [0, 0.0, 7.5], [-1e-9, math.nan, None]),
        ("loud", [True, False], [0, 1, None, "true"]),
        ("seed", [0, 9], [-1, 10, 1.5]),
    ],
)
def test_values(name, good, bad):
    assert all(SETTINGS[name].accepts(value) for value in good)
    assert not any(SETTINGS[name].accepts(value) for value in bad)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("kind", "deep", "deep"),
        ("depth", "2", 2),
        ("how_fast", "1e-3", 1e-3),
        ("loud", "true", True),
        ("loud", "false", False),
    ],
)
def test_texts(name, text, value):
    read = SETTINGS[name].read(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text"),
    [("kind", "x")]
    + [("depth", text) for text in ("", "0", "1.0", " 1", "1_0", "٢", "1" * 5000)]
    + [("how_fast", text) for text in ("", "nan", "inf", "0", "fast")]
    + [("loud", text) for text in ("", "1", "True")],
)
def test_texts_that_stand_for_nothing(name, text):
    with pytest.raises(ValueError, match=f"^{re.escape(repr(text))} is not {SETTINGS[name].form}$"):
        SETTINGS[name].read(text)


def test_forms():
    assert [each.form for each in SETTINGS.values()] == [
        "one of flat, deep",
        "a whole number of at least 1",
        "a number above 0",
        "a number of at least 0",
        "true or false",
        "a whole number from 0 to 9",
    ]


def test_document():
    document(Outer)
    args = Outer.__doc__.partition("Args:\n")[2].rstrip().splitlines()
    assert [line.partition(" (")[0].strip() for line in args[1:]] == [
        each.name for each in fields(Outer) if "setting" in each.metadata
    ]
    assert args[2] == "        rate (float or None): How fast."
