"""What of a data set's numbers is worth a look before training on it, each with what can be done."""

from collections.abc import Iterator
from typing import Any

from schemas.wording import counted, shell

LOST = 0.01  # share of objects whole in no chip
EMPTY = 0.05  # share of positive chips without a target
COMFORTABLE = 0.5  # share of a class's objects that some chip shows at a comfortable size
FEW = 20  # objects of a class
REFUSED = 0.001  # share of images; `sniper chips --max-bad`


def remarks(facts: dict[str, Any]) -> list[str]:
    """Return sentences for what the limits above call odd; none where nothing is.

    Args:
        facts: what collect_facts returned.
    """
    command = shell("sniper", "verify", facts["data"])
    wrong = [f"The files do not agree, so run `{command}`. {line}" for line in facts["mismatches"]]
    return [*wrong, *_of_input(facts), *_of_chips(facts), *_of_classes(facts["classes"])]


def _of_input(facts: dict[str, Any]) -> Iterator[str]:
    images, boxes = facts["images"], facts["boxes"]
    refused, unread = sum(images["refused"].values()), sum(boxes["refused"].values()) + boxes["image_refused"]
    if refused > REFUSED * images["total"]:
        yield (
            f"{refused:,} of {images['total']:,} images were refused ({refused / images['total']:.1%}); the causes "
            "stand below"
        )
    if unread > LOST * boxes["total"]:
        yield f"{unread:,} of {boxes['total']:,} boxes were refused, or lie in refused images; the causes stand below"
    lost = sum(boxes["uncovered"].values())
    if lost > LOST * boxes["total"]:
        why = ", ".join(f"{count:,} {reason}" for reason, count in boxes["uncovered"].items())
        yield (
            f"{lost:,} objects ({lost / boxes['total']:.1%}) are whole in no chip ({why}): a finer scale shows those "
            "that are too small, a coarser one those that fit no chip"
        )


def _of_chips(facts: dict[str, Any]) -> Iterator[str]:
    positives = [scale["positives"] for scale in facts["scales"]]
    chips, empty = (sum(scale[name] for scale in positives) for name in ("chips", "without_targets"))
    if empty > EMPTY * chips:
        yield f"{empty:,} of {chips:,} positive chips hold no target"
    for index, scale in enumerate(positives):
        if chips and not scale["chips"]:
            yield f"Scale {index} has no positive chip: no object needs it"
    single = facts["pixels"]["single_scale_800x1333"]
    if single and facts["pixels"]["positives"] > 2 * single:
        yield (
            f"The chips have {facts['pixels']['positives'] / single:.1f} times the pixels of images at 800x1333: "
            "training costs more than on whole images"
        )
    if facts["negatives"] is None:
        yield f"There are no negative chips yet; `{shell('sniper', 'negatives', '--data', facts['data'])}` mines them"


def _of_classes(classes: list[dict[str, Any]]) -> Iterator[str]:
    absent = [row["name"] for row in classes if not row["boxes"]]
    few = [row["name"] for row in classes if 0 < row["boxes"] < FEW]
    hard = [row["name"] for row in classes if row["boxes"] >= FEW and row["comfortable"] < COMFORTABLE * row["boxes"]]
    for names, what in (
        (absent, "without an object"),
        (few, f"with fewer than {FEW} objects"),
        (hard, f"of whose objects less than {COMFORTABLE:.0%} are seen at a comfortable size"),
    ):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            yield f"{counted(len(names), 'class', 'classes')} {what}: {shown}"
