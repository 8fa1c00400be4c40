"""Settings: all faults are named at once with their dotted names, and nothing wrong is quietly taken."""

import math
from pathlib import Path

import pytest

from schemas.errors import SettingsError, UsageError
from schemas.settings import ChipSettings, Settings, SideScale, load_settings, loader_section, settings_or_defaults


def faults(config: Path | None = None, *assignments: str) -> list[str]:
    """The lines of the error that loading must raise."""
    with pytest.raises(SettingsError) as caught:
        load_settings(config, assignments)
    assert caught.value.exit_status == 2
    return str(caught.value).splitlines()


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_load_settings_without_anything_gives_the_defaults() -> None:
    chips = load_settings().chips
    assert chips == ChipSettings()
    assert (chips.size, chips.stride, chips.scales) == (512, 32, [3.0, 1.667, SideScale(long_side=512)])
    assert chips.bounds() == [(0, 80), (32, 150), (120, math.inf)]


def test_load_settings_reads_file_then_assignments(tmp_path: Path) -> None:
    config = write(tmp_path, "chips:\n  size: 256\n  quality: 80\n")
    chips = load_settings(config, ("chips.quality=90", "chips.subsampling='444'")).chips
    assert (chips.size, chips.quality, chips.subsampling) == (256, 90, "444")


def test_load_settings_takes_a_path_as_text(tmp_path: Path) -> None:
    config = write(tmp_path, "chips: {size: 256}")
    assert load_settings(str(config)) == load_settings(config)
    with pytest.raises(SettingsError, match=r"missing\.yaml: cannot be read"):
        load_settings(str(tmp_path / "missing.yaml"))


def test_load_settings_reads_what_a_build_records(tmp_path: Path) -> None:
    build = tmp_path / "run.json"
    build.write_text(
        '{"fingerprint": "f", "settings": {"chips": {"size": 256, "scales": [{"long_side": 256}], '
        '"ranges": [[0, null]]}}, "num_shards": 3}'
    )
    chips = load_settings(build).chips
    assert (chips.size, chips.scales) == (256, [SideScale(long_side=256)])


def test_load_settings_assignment_may_be_a_list_of_scales() -> None:
    chips = load_settings(
        None,
        (
            "chips.scales=[2, {short_side: 800, long_side: 1333}]",
            "chips.ranges=[[0, 80.5], [60, null]]",
        ),
    ).chips
    assert chips.scales == [2.0, SideScale(short_side=800, long_side=1333)]
    assert chips.bounds() == [(0, 80.5), (60, math.inf)]


def test_load_settings_names_all_unknown_keys_and_wrong_values_at_once(tmp_path: Path) -> None:
    config = write(
        tmp_path, "chip:\n  size: 1\nchips:\n  sise: 512\n  quality: 101\n  stride: wide\n  scales: [3, {long: 5}]\n"
    )
    found = faults(config, "chips.min_visible=2", "chips.seed", "trian.lr=1")
    text = "\n".join(found)
    for name in ("chip", "chips.sise", "trian"):
        assert f"{name}: unknown setting; `sniper settings` lists all" in found
    for name in ("chips.quality", "chips.stride", "chips.scales.1.long", "chips.min_visible"):
        assert any(line.startswith(f"{name}: ") for line in found), text
    assert "found 101" in text
    assert "found 'wide'" in text
    assert "--set chips.seed: expected section.key=value" in found


@pytest.mark.parametrize(
    "assignment",
    [
        "chips.size=31",
        "chips.size=512.5",
        "chips.size=big",
        "chips.size=[512]",
        "chips.size=null",
        "chips.size=yes",
        "chips.scales=[]",
        "chips.scales=[0]",
        "chips.scales=[-1, 1, 1]",
        "chips.scales=[.inf, 1, 1]",
        "chips.scales=[.nan, 1, 1]",
        "chips.scales=[on, 1, 1]",
        "chips.scales=[100000, 1, 1]",
        "chips.scales=[1, 1, {short_side: 5}]",
        "chips.ranges=[[0, 80], [32, 150], [120]]",
        "chips.ranges=[[0, 80], [32, 150], [-1, null]]",
        "chips.stride=0",
        "chips.min_visible=1.1",
        "chips.min_side=.nan",
        "chips.quality=0",
        "chips.quality=true",
        "chips.subsampling=411",
        "chips.images_per_shard=0",
        "chips.images_per_shard=1e3x",
        "chips.max_pixels=-5",
        "chips.max_pixels=no",
        "chips.seed=-1",
        "chips.seed=9223372036854775808",
        "detect.focus=onn",
        "detect.focus=nan",
        "detect.focus=.nan",
        "detect.focus=1",
        "detect.focus=[0.1]",
        "chips=5",
        "chips=[]",
    ],
)
def test_load_settings_wrong_value_is_refused_by_name(assignment: str) -> None:
    name = assignment.partition("=")[0]
    found = faults(None, assignment)
    assert any(line.startswith(name) for line in found), found
    assert len(found) == 1
    assert "float" not in found[0].partition(":")[0]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("chips.scales=[1, 1]", "chips: 2 scales but 3 ranges; give one range per scale"),
        ("chips.ranges=[[0, 80]]", "chips: 3 scales but 1 ranges; give one range per scale"),
        (
            "chips.ranges=[[0, 80], [32, 150], [120, 120]]",
            "chips: range [120, 120) is empty; the upper end must exceed the lower",
        ),
    ],
)
def test_load_settings_values_that_do_not_fit_together_are_refused(assignment: str, message: str) -> None:
    assert faults(None, assignment) == [message]


@pytest.mark.parametrize(
    "assignment",
    ["chips.size", "=5", ".=5", "chips.=5", "chips..size=5", "", "chips.size.x=5", "chips.size=[1,", "chips.size={"],
)
def test_load_settings_malformed_assignment_is_quoted_in_the_error(assignment: str) -> None:
    found = faults(None, "chips.size=64", assignment)
    assert found[0].startswith(f"--set {assignment}: ")


@pytest.mark.parametrize("text", ["2001-99-99", "[" * 1200, "9" * 5000, "'open", "!!python/object:os.system x", "\0"])
def test_load_settings_value_that_yaml_chokes_on_is_a_settings_error(text: str, tmp_path: Path) -> None:
    assert faults(None, f"chips.size={text}")[0].startswith("--set chips.size=")
    config = write(tmp_path, f"chips:\n  size: {text}\n")
    assert faults(config)[0].startswith(f"{config}: is not YAML: ")


@pytest.mark.parametrize("text", ["- chips", "chips", "5"])
def test_load_settings_file_that_holds_no_sections_is_refused(text: str, tmp_path: Path) -> None:
    config = write(tmp_path, text)
    (line,) = faults(config)
    assert line.startswith(f"{config}: expected sections such as `chips:`, found ")


def test_load_settings_file_missing_folder_or_binary_is_named(tmp_path: Path) -> None:
    assert faults(tmp_path / "none.yaml") == [f"{tmp_path}/none.yaml: cannot be read: No such file or directory"]
    assert faults(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert faults(tmp_path / "binary.yaml")[0].startswith(f"{tmp_path}/binary.yaml: is not YAML")


@pytest.mark.parametrize("text", ["", "# nothing\n", "chips:\n", "chips:\n  # size: 256\n", "chips: {}\n"])
def test_load_settings_empty_file_or_section_means_the_defaults(text: str, tmp_path: Path) -> None:
    config = write(tmp_path, text)
    assert load_settings(config) == Settings()
    assert load_settings(config, ("chips.size=64",)).chips.size == 64


def test_load_settings_key_that_is_no_string_is_refused(tmp_path: Path) -> None:
    assert faults(write(tmp_path, "1: 2\nchips:\n  3: 4\n"))


def test_load_settings_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("base: &base {min_side: 3}\nchips: {<<: *base, min_side: 4}\n")
    with pytest.raises(SettingsError, match="base: unknown setting; [^\n]*$"):  # a merge key repeats nothing
        load_settings(path)
    path.write_text("chips:\n  min_side: 3\n  min_visible: 0.5\n  min_side: 4\n")
    with pytest.raises(SettingsError, match=r"the key 'min_side' stands twice\n.*line 4"):
        load_settings(path)
    with pytest.raises(SettingsError, match="the key 'side' stands twice"):
        load_settings(None, ("chips.scales=[{side: 3, side: 4}]",))


def test_load_settings__one_assignment_in_place_of_several_is_refused() -> None:
    with pytest.raises(UsageError, match=r"assignments: expected a list, found the text 'chips.size=256'"):
        load_settings(None, "chips.size=256")  # type: ignore[arg-type]


def test_settings_or_defaults__takes_whole_settings_alone() -> None:
    given = load_settings(None, ["chips.size=64"])
    assert settings_or_defaults(given) is given
    assert settings_or_defaults(None) == Settings()
    for other in ("mine.yaml", given.chips):
        with pytest.raises(
            UsageError, match=f"expected Settings with all their sections, found a {type(other).__name__}"
        ):
            settings_or_defaults(other)  # type: ignore[arg-type]


def test_loader_section__takes_that_section_alone() -> None:
    given = load_settings(None, ["loader.flip=false"])
    assert loader_section(given.loader) is given.loader
    with pytest.raises(UsageError, match="found a Settings; of whole Settings it is `settings.loader`"):
        loader_section(given)  # type: ignore[arg-type]
