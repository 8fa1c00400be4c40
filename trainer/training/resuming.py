"""What a resumed run takes from its checkpoint, and what may be given anew."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from pydantic import ValidationError

from pipeline.storage import Location
from schemas.errors import DataError, UsageError
from schemas.settings import Settings
from schemas.settings.section import as_yaml, differing
from trainer.runtime.checkpoint import Checkpoint

MAY_CHANGE = {  # settings that a resumed run may have otherwise (docs/training.md): they change only later steps
    "train.epochs",
    "train.decay_epochs",
    "train.learning_rate",
    "train.warmup_steps",
    "train.clip_gradient",
    "train.chips_per_rank",
    "train.log_every",
    "train.save_minutes",
    "train.save_every",
    "train.keep",
    "train.evaluate_every",
    "train.picture_every",
    "train.tensorboard",
    "train.compile",
    "loader.threads",
    "loader.prefetch",
    "loader.cache",
    "loader.cache_gb",
}


def check_resumable(
    checkpoint: Checkpoint,
    path: Location,
    settings: dict[str, dict[str, Any]],
    data: dict[str, str],
    categories: Sequence[tuple[int, str]],
) -> None:
    """Refuse to go on with other data, classes or settings.

    Args:
        checkpoint: where the run stands.
        path: the folder of the run, for the message.
        settings: what the run would go on with, by section and name.
        data: fingerprints of the builds that it would go on with, by their name.
        categories: (source id, name) of the classes of these builds, by label from 1.

    Raises:
        UsageError: naming every difference.
    """
    if not checkpoint.optimizer and not checkpoint.rpn_only:  # a finished run of the RPN keeps none
        raise UsageError(
            f"{path}: the last checkpoint holds weights alone, as `sniper export-model --slim` writes them, and no "
            "state of the optimiser to go on with; start a new run with --set train.weights=FILE"
        )
    for name in sorted(checkpoint.data.keys() | data.keys()):
        there, here = (fingerprints.get(name, "none")[:12] for fingerprints in (checkpoint.data, data))
        if there != here:
            raise UsageError(
                f"{path}: was trained on other {name} (fingerprint {there}, here {here}); resume with "
                "the same --data, or start a new run with --set train.weights=FILE"
            )
    for label, (there_class, here_class) in enumerate(zip_longest(checkpoint.categories, categories), start=1):
        if there_class != here_class:
            raise UsageError(
                f"{path}: was trained on other classes: label {label} was {_class(there_class)} and is now "
                f"{_class(here_class)} in categories.parquet; resume with the classes of before, or start a new run "
                "with --set train.weights=FILE, which goes by their names"
            )
    changed = [change for change in changed_settings(checkpoint, settings) if not _may_change(change.split(":")[0])]
    if changed:
        raise UsageError(
            f"{path}: was trained with other settings:\n  "
            + "\n  ".join(changed)
            + "\nLeave these out, or start a new run: "
            + ("with `sniper negatives --overwrite`" if checkpoint.rpn_only else "in another --out")
            + "; docs/training.md lists what may change"
        )


def _class(category: tuple[int, str] | None) -> str:
    return "none" if category is None else f"{category[1]!r} with id {category[0]}"


def changed_settings(checkpoint: Checkpoint, settings: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line, `section.key: old there, new now`, for each setting that is another one than the checkpoint's.

    A setting that did not exist yet when the checkpoint was written counts as having had its default.
    """
    defaults = Settings().model_dump(mode="json")
    return [
        f"{section}.{key}: {as_yaml(there)} there, {as_yaml(now)} now"
        for section, recorded in checkpoint.settings.items()
        for key, there, now in differing(recorded, settings.get(section, {}), defaults[section])
    ]


def _may_change(name: str) -> bool:
    return name in MAY_CHANGE or name.startswith("detect.")


def resumed_settings(checkpoint: Checkpoint, given: Settings) -> Settings:
    """Take the settings of a run from its checkpoint, apart from those that are given now.

    Raises:
        DataError: another version of the program wrote the checkpoint, with settings that this one does not know.
    """
    try:
        sections = {
            name: type(getattr(given, name)).model_validate(
                values | getattr(given, name).model_dump(mode="json", include=getattr(given, name).model_fields_set)
            )
            for name, values in checkpoint.settings.items()
        }
    except (AttributeError, ValidationError) as error:
        told = "; ".join(str(error).splitlines()[:3])
        raise DataError(
            f"the checkpoint of step {checkpoint.step:,} has settings that this version of the program does not know "
            f"({told}); resume it with the version that wrote it"
        ) from error
    return given.model_copy(update=sections)
