import re

import pytest

from vae_models.files import FileError
from vae_models.settings.comparisons import (
    check_no_comparison,
    is_comparison,
    read_comparison,
    run_folder,
    write_comparison,
)
from vae_models.settings.config import Config
from vae_models.settings.config_file import write_config_file

RANK = Config(posterior="low_rank", posterior_options={"rank": 2})
CONFIGS = {"ar1": Config(), "low_rank": RANK, "low_rank:rank=2": RANK}


def test_round_trip(tmp_path):
    assert not is_comparison(tmp_path)
    write_comparison(tmp_path, CONFIGS)
    assert is_comparison(tmp_path)
    assert read_comparison(tmp_path) == CONFIGS
    assert list(read_comparison(tmp_path)) == list(CONFIGS)


def test_folders_of_runs(tmp_path):
    folders = [run_folder(tmp_path, label).name for label in CONFIGS]
    assert folders == ["ar1", "low_rank", "low_rank-rank=2"]
    write_comparison(tmp_path, {"low_rank:rank=2": RANK})
    with pytest.raises(FileError, match=re.escape(f"such as {tmp_path / 'low_rank-rank=2'}")):
        check_no_comparison(tmp_path)


@pytest.mark.parametrize(
    "label",
    ["..", "../low_rank", "low_rank/../..", "", "ar1", "low_rank-rank=2", "low_rank:rank=02", "low_rank:rank=3"]
    + ["low_rank:rank=../../x", "low_rank:", "nope:rank=2", "ar1:per_pair=true"],
)
def test_labels_that_are_not_the_settings(label, tmp_path):
    """No stored text becomes a path but one that is written here."""
    write_config_file(tmp_path / "config.json", {"comparison": {label: RANK.to_json()}})
    with pytest.raises(FileError, match="does not hold a comparison of posteriors"):
        read_comparison(tmp_path)
