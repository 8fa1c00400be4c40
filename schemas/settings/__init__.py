"""What may be set: one model per section, read from YAML and from --set.

In: a YAML file and assignments. Out: a checked, frozen `Settings`. It imports `schemas.errors` alone.
"""

from schemas.settings.chips import ChipSettings, NegativeSettings, SideScale
from schemas.settings.detect import DetectSettings
from schemas.settings.loader import LoaderSettings
from schemas.settings.model import ModelSettings
from schemas.settings.train import REFERENCE_BATCH, Norm, Precision, TrainSettings
from schemas.settings.whole import Settings, load_settings, loader_section, settings_or_defaults

__all__ = [
    "ChipSettings",
    "DetectSettings",
    "LoaderSettings",
    "ModelSettings",
    "NegativeSettings",
    "Norm",
    "Precision",
    "REFERENCE_BATCH",
    "Settings",
    "SideScale",
    "TrainSettings",
    "load_settings",
    "loader_section",
    "settings_or_defaults",
]
