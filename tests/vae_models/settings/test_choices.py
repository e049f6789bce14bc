import re

import pytest

from vae_models.settings.choices import Choice, options_of
from vae_models.settings.config import SETTINGS


@pytest.mark.parametrize(
    ("text", "options", "folder"),
    [
        ("diagonal", {}, "diagonal"),
        ("low_rank", {}, "low_rank"),
        ("low_rank:rank=12", {"rank": 12}, "low_rank-rank=12"),
        ("ar1:per_pair=true", {"per_pair": True}, "ar1-per_pair=true"),
        ("markov:shared_rho=false", {"shared_rho": False}, "markov-shared_rho=false"),
    ],
)
def test_choices(text, options, folder):
    choice = Choice.parse(text)
    assert (choice.posterior, choice.options) == (text.partition(":")[0], options)
    assert (choice.label, choice.folder) == (text, folder)


def test_one_label_of_many_texts():
    assert Choice.parse("low_rank:rank=002").label == "low_rank:rank=2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nope", "unknown posterior 'nope'; choose from diagonal, ar1, markov, low_rank, banded, full"),
        ("nope:rank=2", "unknown posterior 'nope'"),
        ("../ar1", "unknown posterior '../ar1'"),
        ("", "unknown posterior ''"),
        ("full:rank=2", "posterior 'full:rank=2': full takes no options, not 'rank'"),
        ("ar1:rank=2", "ar1 takes per_pair (true or false), not 'rank'"),
        ("low_rank:", "low_rank takes rank (a whole number of at least 1), not ''"),
        ("low_rank:rank", "low_rank takes rank (a whole number of at least 1); '' is not a whole number"),
        ("low_rank:rank=0", "low_rank takes rank (a whole number of at least 1); '0' is not a whole number of at"),
        ("low_rank:rank=../x", "'../x' is not a whole number"),
        ("low_rank:rank=2,rank=3", "rank is given twice"),
        ("low_rank:rank=2,", "low_rank takes rank (a whole number of at least 1), not ''"),
    ],
)
def test_what_is_no_choice(text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Choice.parse(text)


def test_every_option_of_a_part_has_a_place_in_the_settings():
    assert list(options_of("network", "cnn")) == ["hidden"]
    grouped = [each for each in SETTINGS.values() if each.group.endswith("_options")]
    names = {each.goes_with[0]: SETTINGS[each.goes_with[0]].choices for each in grouped}
    found = [each for part, known in names.items() for name in known for each in options_of(part, name).values()]
    assert {each.option for each in found} == {each.option for each in grouped}
    assert all(each.group == f"{each.goes_with[0]}_options" for each in grouped)
