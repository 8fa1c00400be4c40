"""Refused records told to a person."""

from pipeline.coco import Reject
from pipeline.coco.rejects import describe_rejects
from schemas.codes import Reason


def test_describe_rejects__groups_by_cause_with_counts_and_three_examples() -> None:
    boxes = [Reject("annotation", i, None, Reason.NO_AREA, f"annotations[{i}]: no") for i in range(1200)]
    image = Reject("image", 3, None, Reason.BAD_RECORD, "images[2]: bad")
    assert describe_rejects([*boxes[:700], image, *boxes[700:]]) == [
        "1 image: bad_record",
        "    images[2]: bad",
        "1,200 annotations: no_area",
        "    annotations[0]: no",
        "    annotations[1]: no",
        "    annotations[2]: no",
        "    ... and 1,197 more",
    ]
