"""Settings written out: every one has a meaning, and what is printed can be read back."""

from pathlib import Path

import pytest
import yaml

from schemas.settings import Settings, load_settings
from schemas.settings.listing import as_config, list_settings
from schemas.settings.section import as_yaml
from scripts.settings_table import MARK, PAGE, tables
from tests.conftest import RunSniper

GIVEN = ("chips.size=256", "chips.scales=[2, {long_side: 99}]", "chips.ranges=[[0, 9], [5, null]]", "train.ema=0.9")


def test_list_settings__every_setting_has_a_meaning() -> None:
    listed = {f"{name}.{entry.name}": entry for name, _, entries in list_settings(Settings()) for entry in entries}
    assert listed.keys() == {f"{a}.{b}" for a, section in Settings().model_dump().items() for b in section}
    assert not [name for name, entry in listed.items() if not entry.meaning]
    assert all(about for _, about, _ in list_settings(Settings()))
    assert "One of gaussian, linear, hard." in listed["detect.merge"].meaning


def test_settings_page__is_written_from_the_models() -> None:
    _, _, written = PAGE.read_text(encoding="utf-8").partition(MARK)
    assert written == tables(), "run `python scripts/settings_table.py`"


def test_settings_command__prints_a_file_that_gives_the_same_settings(tmp_path: Path, sniper: RunSniper) -> None:
    given = [part for assignment in GIVEN for part in ("--set", assignment)]
    result = sniper("settings", *given)
    assert result.status == 0, result.err
    assert result.out == as_config(load_settings(None, GIVEN))
    config = tmp_path / "mine.yaml"
    config.write_text(result.out, encoding="utf-8")
    read = load_settings(config)
    assert read == load_settings(None, GIVEN)
    assert read.chips.model_fields_set == {"size", "scales", "ranges"}  # defaults stay commented out
    assert "# Side of a chip, in chip pixels. Default: 512\n  size: 256\n" in result.out


def test_as_config__defaults_can_be_taken_as_they_stand(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    lines = as_config(Settings()).splitlines()
    names = {f"# {entry.name}:" for _, _, entries in list_settings(Settings()) for entry in entries}
    config.write_text("\n".join(f"  {x.strip()[2:]}" if x.strip().startswith(tuple(names)) else x for x in lines))
    read = load_settings(config)
    assert read == Settings()
    assert read.detect.model_fields_set == Settings.model_fields["detect"].default.__class__.model_fields.keys()


@pytest.mark.parametrize("value", [None, True, 1e-05, 3, "420", "a: b", "", [1, [2.5, None]], {"long_side": 5}])
def test_as_yaml__is_one_line_that_reads_back(value: object) -> None:
    assert yaml.safe_load(as_yaml(value)) == value
    assert "\n" not in as_yaml(value)
