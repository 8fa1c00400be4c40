"""The base of all settings, and how a value is written for a person."""

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys. The text under a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes and on as true, and pydantic would read that as 1."""
        assert info.field_name is not None
        if cls.model_fields[info.field_name].annotation is not bool and _holds_truth(value):
            raise ValueError(f"expected no true or false here, found {value!r}")
        return value


def as_yaml(value: Any) -> str:
    """Write a value of a setting as YAML in one line, as a settings file or --set would have it."""
    return yaml.safe_dump([_without_null(value)], default_flow_style=True, width=float("inf")).strip()[1:-1]


def _without_null(value: Any) -> Any:
    """Leave out what is null in a scale such as {long_side: 512}."""
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list | tuple) else value


def contradictions(name: str, given: Section, recorded: dict[str, Any]) -> list[str]:
    """Compare the settings that were given with recorded ones; what was not given contradicts nothing.

    Args:
        name: of the section.
        given: the section as it was given.
        recorded: key -> value, as JSON has them; keys that only one side has are left out.

    Returns:
        A line for each setting that differs, with both values.
    """
    now = given.model_dump(mode="json")
    return [
        f"{name}.{key}: {as_yaml(value)} there, {as_yaml(now[key])} given"
        for key, value in recorded.items()
        if key in given.model_fields_set and now[key] != value
    ]


def differing(then: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Compare recorded settings with those of now, both as JSON has them.

    Args:
        then: those of the record. It may lack settings that the program of then did not have, and may have more.
        now: those that count.
        defaults: what a setting was before the program had it.

    Returns:
        (name, value then, value now) of each one that differs, in the order of `now`.
    """
    known = defaults | then
    return [(name, known.get(name), value) for name, value in now.items() if known.get(name) != value]


def _holds_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_truth, value)))
