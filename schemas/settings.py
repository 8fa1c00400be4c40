"""Settings: frozen models, one section per command, unknown keys refused. All errors are reported at once."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.errors import SettingsError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SideScale(Section):
    """Scale an image so that its shorter side is `short_side`, its longer side at most `long_side`."""

    short_side: int | None = Field(None, gt=0)
    long_side: int = Field(gt=0)


Factor = Annotated[float, Field(gt=0)]
Bound = Annotated[float, Field(ge=0)]


class ChipSettings(Section):
    """What `sniper chips` makes. Every field here changes the output and is part of the fingerprint."""

    size: int = Field(512, ge=32, le=4096, description="chip side, chip pixels")
    scales: list[Factor | SideScale] = Field(
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


class Settings(Section):
    """The whole configuration; one YAML file can drive every command."""

    chips: ChipSettings = ChipSettings()


def load_settings(config: Path | None = None, assignments: tuple[str, ...] = ()) -> Settings:
    """Read settings from a YAML file, then apply `a.b=value` assignments (values are YAML).

    Raises:
        SettingsError: naming every unknown key and wrong value at once, with dotted names.
    """
    tree: dict[str, Any] = {}
    if config is not None:
        try:
            loaded = yaml.safe_load(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsError(f"{config}: cannot be read as YAML: {error}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise SettingsError(f"{config}: expected sections such as `chips:`, found {type(loaded).__name__}")
        tree = loaded or {}
    for assignment in assignments:
        _assign(tree, assignment)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("\n".join(_describe(detail) for detail in error.errors())) from error


def _assign(tree: dict[str, Any], assignment: str) -> None:
    dotted, equals, text = assignment.partition("=")
    if not equals:
        raise SettingsError(f"--set {assignment}: expected section.key=value")
    *parents, leaf = dotted.strip().split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"--set {assignment}: {name} is a value, not a section")
    try:
        tree[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {assignment}: the value is not YAML: {error}") from error


def _describe(detail: Any) -> str:
    """One line for one pydantic error: dotted name, what was expected, what was found."""
    name = ".".join(str(part) for part in detail["loc"] if part not in ("float", "SideScale"))
    if detail["type"] == "extra_forbidden":
        return f"{name}: unknown setting"
    found = f", found {detail['input']!r}" if detail["type"] != "value_error" else ""
    return f"{name}: {detail['msg'].removeprefix('Value error, ')}{found}"
