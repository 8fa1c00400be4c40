"""All settings together: frozen models, one per section, unknown keys refused. All errors are reported at once."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from schemas.errors import SettingsError, UsageError, refuse_text
from schemas.settings.chips import ChipSettings, NegativeSettings
from schemas.settings.detect import DetectSettings
from schemas.settings.loader import LoaderSettings
from schemas.settings.model import ModelSettings
from schemas.settings.section import Section
from schemas.settings.train import TrainSettings


class Settings(Section):
    """The whole configuration; one YAML file can drive every command."""

    chips: ChipSettings = ChipSettings()
    negatives: NegativeSettings = NegativeSettings()
    model: ModelSettings = ModelSettings()
    loader: LoaderSettings = LoaderSettings()
    train: TrainSettings = TrainSettings()
    detect: DetectSettings = DetectSettings()


def load_settings(config: Path | str | None = None, assignments: list[str] | tuple[str, ...] = ()) -> Settings:
    """Read settings from a YAML file, or those that a build's run.json records; then apply `a.b=value` assignments.

    Values of assignments are YAML.

    Raises:
        SettingsError: naming every unknown key and wrong value at once, with dotted names.
        UsageError: a text is given in place of several assignments.
    """
    refuse_text("assignments", assignments)
    tree = _read_yaml(Path(config)) if config is not None else {}
    faults = [fault for assignment in assignments if (fault := _assign(tree, assignment)) is not None]
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("\n".join([*faults, *(_describe(detail) for detail in error.errors())])) from error
    if faults:
        raise SettingsError("\n".join(faults))
    return settings


def settings_or_defaults(settings: Settings | None) -> Settings:
    """Return the settings that a function was given; None: the defaults.

    Raises:
        UsageError: it was given something else, such as the name of a file or one of the sections.
    """
    if settings is not None and not isinstance(settings, Settings):
        raise UsageError(
            f"settings: expected Settings with all their sections, found a {type(settings).__name__}; "
            "`load_settings(FILE)` reads them from a file"
        )
    return settings or Settings()


def loader_section(settings: LoaderSettings) -> LoaderSettings:
    """Return the settings of a loader that a function was given, which takes that section alone.

    Raises:
        UsageError: it was given something else, such as whole settings.
    """
    if not isinstance(settings, LoaderSettings):
        raise UsageError(
            f"settings: expected the section LoaderSettings, found a {type(settings).__name__}; of whole Settings "
            "it is `settings.loader`"
        )
    return settings


# YAML also lets through ValueError (2001-99-99 is no date) and RecursionError.
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


class _Loader(yaml.SafeLoader):
    """Reads YAML as `safe_load` does, and refuses a key that stands twice: one of both values would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                mark = node.value[place][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"the key {key[1]!r} stands twice", problem_mark=mark)
        return super().construct_mapping(node, deep)


def _parsed(text: str) -> Any:
    """Read a YAML text, or raise one of YAML_ERRORS."""
    return yaml.load(text, _Loader)  # noqa: S506  a safe loader


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except YAML_ERRORS as error:
        raise SettingsError(f"{path}: is not YAML: {error}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise SettingsError(f"{path}: expected sections such as `chips:`, found {type(loaded).__name__}")
    if loaded is not None and {"settings", "fingerprint"} <= loaded.keys():
        loaded = loaded["settings"]  # run.json of a build
    # a section whose lines are all commented out reads as null
    return {name: {} if section is None else section for name, section in (loaded or {}).items()}


def _assign(tree: dict[str, Any], assignment: str) -> str | None:
    """Put `a.b=value` into the tree; returns what is wrong with it, if anything."""
    dotted, equals, text = assignment.partition("=")
    *parents, leaf = dotted.strip().split(".")
    if not equals or not leaf or not all(parents):
        return f"--set {assignment}: expected section.key=value"
    section: Any = tree
    for name in parents:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            return f"--set {assignment}: {name} is a value, not a section"
    try:
        section[leaf] = _parsed(text)
    except YAML_ERRORS as error:
        return f"--set {assignment}: the value is not YAML: {error}"
    return None


def _describe(detail: Any) -> str:
    """Return a line for one pydantic error: dotted name, what was expected, what was found."""
    name = ".".join(str(part) for part in detail["loc"] if not str(part).startswith("<"))
    if detail["type"] == "extra_forbidden":
        return f"{name}: unknown setting; `sniper settings` lists all"
    found = f", found {detail['input']!r}" if detail["type"] != "value_error" else ""
    return f"{name}: {detail['msg'].removeprefix('Value error, ')}{found}"
