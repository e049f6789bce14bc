import pytest

from vae_models.files import FileError, read_json, write_json
from vae_models.settings.config_file import FORMAT, read_config_file, write_config_file


def test_round_trip(tmp_path):
    path = tmp_path / "config.json"
    write_config_file(path, {"run": {"seed": 3}})
    assert read_config_file(path) == read_json(path) == {"format": FORMAT, "run": {"seed": 3}}


@pytest.mark.parametrize("part", ["run", "vae", "comparison"])
@pytest.mark.parametrize("stored", [{}, {"format": 1}, {"format": FORMAT + 1}, {"format": True}, {"format": "2"}])
def test_other_formats_are_refused(stored, part, tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {**stored, part: {}})
    with pytest.raises(FileError, match=rf"^{path} is of another version of vae_models, in format .* has {FORMAT}: "):
        read_config_file(path)


@pytest.mark.parametrize("value", [[], None, "run", {"seed": 3}])
def test_what_is_no_run_is_for_others_to_judge(value, tmp_path):
    write_json(tmp_path / "other.json", value)
    assert read_config_file(tmp_path / "other.json") == value
