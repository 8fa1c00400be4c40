"""Settings: frozen models, one section per command, unknown keys refused. All errors are reported at once."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from schemas.detect import DetectSettings
from schemas.errors import SettingsError
from schemas.loader import LoaderSettings
from schemas.model import ModelSettings
from schemas.section import Section
from schemas.train import TrainSettings


class SideScale(Section):
    """Scale an image so that its shorter side is `short_side`, its longer side at most `long_side`."""

    short_side: int | None = Field(None, gt=0)
    long_side: int = Field(gt=0)


Factor = Annotated[float, Field(gt=0, le=64)]
# Told apart by the value, so that only the faults of what was meant are reported.
Scale = Annotated[
    Annotated[Factor, Tag("<factor>")] | Annotated[SideScale, Tag("<sides>")],
    Discriminator(lambda value: "<sides>" if isinstance(value, dict | SideScale) else "<factor>"),
]
Bound = Annotated[float, Field(ge=0)]


class ChipSettings(Section):
    """What `sniper chips` makes. Every field here changes the output and is part of the fingerprint."""

    size: int = Field(512, ge=32, le=4096, description="chip side, chip pixels")
    scales: list[Scale] = Field(
        [3.0, 1.667, SideScale(long_side=512)], min_length=1, max_length=8, description="finest first"
    )
    ranges: list[tuple[Bound, Bound | None]] = Field(
        [(0, 80), (32, 150), (120, None)],
        description="per scale [lo, hi): valid sqrt(area) in source pixels; null is unbounded",
    )
    stride: int = Field(32, gt=0, description="candidate grid, chip pixels")
    min_visible: float = Field(0.1, ge=0, le=1, description="a box less visible than this is ignored")
    min_side: float = Field(4, ge=0, description="a box with a shorter clipped side is ignored, chip pixels")
    quality: int = Field(95, ge=1, le=100, description="JPEG quality")
    subsampling: Literal["420", "422", "444"] = Field("420", description="JPEG chroma subsampling")
    images_per_shard: int = Field(128, gt=0)
    max_pixels: int = Field(200_000_000, gt=0, description="a larger source image is refused")
    seed: int = Field(0, ge=0, lt=2**63, description="places each window within its free play")

    @model_validator(mode="after")
    def _one_range_per_scale(self) -> Self:
        if len(self.scales) != len(self.ranges):
            raise ValueError(f"{len(self.scales)} scales but {len(self.ranges)} ranges; give one range per scale")
        for lo, hi in self.ranges:
            if hi is not None and hi <= lo:
                raise ValueError(f"range [{lo:g}, {hi:g}) is empty; the upper end must exceed the lower")
        return self

    def bounds(self) -> list[tuple[float, float]]:
        """Valid ranges with infinity where unbounded."""
        return [(lo, math.inf if hi is None else hi) for lo, hi in self.ranges]


class NegativeSettings(Section):
    """How `sniper negatives` finds and mines proposals. Every field here changes the output."""

    rpn_epochs: int = Field(4, ge=1, description="of the run of the RPN alone, positives only, at a fixed rate")
    nms: float = Field(0.7, gt=0, le=1, description="pooling drops a proposal with more IoU with a better one")
    min_finest: int = Field(25, ge=1, description="finest scale: a chip must newly cover this many proposals")
    min_others: int = Field(10, ge=1, description="the same at all other scales")


class Settings(Section):
    """The whole configuration; one YAML file can drive every command."""

    chips: ChipSettings = ChipSettings()
    negatives: NegativeSettings = NegativeSettings()
    model: ModelSettings = ModelSettings()
    loader: LoaderSettings = LoaderSettings()
    train: TrainSettings = TrainSettings()
    detect: DetectSettings = DetectSettings()


def load_settings(config: Path | None = None, assignments: tuple[str, ...] = ()) -> Settings:
    """Read settings from a YAML file, then apply `a.b=value` assignments (values are YAML).

    Raises:
        SettingsError: naming every unknown key and wrong value at once, with dotted names.
    """
    tree = _read_yaml(config) if config is not None else {}
    faults = [fault for assignment in assignments if (fault := _assign(tree, assignment)) is not None]
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("\n".join([*faults, *(_describe(detail) for detail in error.errors())])) from error
    if faults:
        raise SettingsError("\n".join(faults))
    return settings


# safe_load also lets through ValueError (2001-99-99 is no date) and RecursionError.
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except YAML_ERRORS as error:
        raise SettingsError(f"{path}: is not YAML: {error}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise SettingsError(f"{path}: expected sections such as `chips:`, found {type(loaded).__name__}")
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
        section[leaf] = yaml.safe_load(text)
    except YAML_ERRORS as error:
        return f"--set {assignment}: the value is not YAML: {error}"
    return None


def _describe(detail: Any) -> str:
    """One line for one pydantic error: dotted name, what was expected, what was found."""
    name = ".".join(str(part) for part in detail["loc"] if not str(part).startswith("<"))
    if detail["type"] == "extra_forbidden":
        return f"{name}: unknown setting"
    found = f", found {detail['input']!r}" if detail["type"] != "value_error" else ""
    return f"{name}: {detail['msg'].removeprefix('Value error, ')}{found}"
