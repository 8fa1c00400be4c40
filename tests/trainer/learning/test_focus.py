"""What the focus head learns, against the rule written box by box and cell by cell."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codes import Status
from tests.trainer.chips import SLIM, make_batch, slim_detector, take
from trainer.learning.focus import label_cells
from trainer.learning.ground_truth import pad_boxes
from trainer.learning.losses import focus_loss
from trainer.learning.objective import Objective, loss_terms
from trainer.loading.batch import Batch
from trainer.model import predict, predict_and_focus

LIMITS = (0.0, 12.0, 30.0)
FOCUSED = SLIM.model_copy(update={"focus": True})


def expected(batch: Batch, chip: int, cells: int, stride: int) -> list[list[int]]:
    scale, index = float(batch.scales[chip]), int(batch.scale_indices[chip])
    limit = LIMITS[index] * scale
    height, width = batch.sizes[chip].tolist()
    rows = range(int(batch.offsets[chip]), int(batch.offsets[chip + 1]))
    found = [[0] * cells for _ in range(cells)]
    for y in range(cells):
        for x in range(cells):
            if y * stride >= height or x * stride >= width or index == 0:
                found[y][x] = -1
                continue
            kinds = set()
            for row in rows:
                x1, y1, x2, y2 = batch.boxes[row].tolist()
                if x1 < (x + 1) * stride and x2 > x * stride and y1 < (y + 1) * stride and y2 > y * stride:
                    size = math.sqrt((x2 - x1) * (y2 - y1) / float(batch.visible[row]))
                    crowd = int(batch.status[row]) == Status.CROWD
                    if not crowd and 5 / 16 * stride <= size < limit:
                        kinds.add(1)
                    elif crowd or size < 5 / 16 * stride or size < 1.4 * limit:
                        kinds.add(-1)
            found[y][x] = 1 if 1 in kinds else -1 if kinds else 0
    return found


@settings(max_examples=25)
@given(st.integers(0, 1000), st.lists(st.integers(0, 5), max_size=4))
def test_label_cells__as_the_rule_says(seed: int, counts: list[int]) -> None:
    batch = make_batch(counts, seed=seed)
    labels = label_cells(batch, pad_boxes(batch), LIMITS, (12, 12), 8)
    assert labels.tolist() == [expected(batch, chip, 12, 8) for chip in range(len(counts))]


@pytest.mark.parametrize("neck", ["fpn", "c5"])
def test_objective__focus_is_one_more_term_and_reaches_the_backbone(neck: str) -> None:
    detector = slim_detector(settings=FOCUSED.model_copy(update={"neck": neck}))
    batch = make_batch([3, 0, 2, 4, 2, 1], seed=1)
    losses = Objective(detector, LIMITS)(batch, seed=0, epoch=0, batch_size=6)
    assert tuple(losses) == loss_terms(detector) == ("rpn_class", "rpn_box", "roi_class", "roi_box", "focus")
    losses["focus"].backward()
    weight = detector.backbone.body.conv1.weight
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
    empty = Objective(detector, LIMITS)(take(batch, []), seed=0, epoch=0, batch_size=6)
    assert empty["focus"].item() == 0


def test_objective__a_chip_weighs_the_same_in_any_batch() -> None:
    objective = Objective(slim_detector(settings=FOCUSED), LIMITS).eval()
    batch = make_batch([3, 1, 2], seed=1)
    whole = objective(batch, seed=0, epoch=0, batch_size=3)["focus"]
    parts = [objective(take(batch, [i]), seed=0, epoch=0, batch_size=3)["focus"] for i in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_a_network_without_focus_has_no_part_of_it() -> None:
    detector = slim_detector()
    assert not [name for name in detector.state_dict() if name.startswith("focus")]
    assert loss_terms(detector) == ("rpn_class", "rpn_box", "roi_class", "roi_box")


@pytest.mark.parametrize("neck", ["fpn", "c5"])
def test_predict_and_focus__finds_what_predict_finds_and_a_map_of_the_content(neck: str) -> None:
    detector = slim_detector(settings=FOCUSED.model_copy(update={"neck": neck})).eval()
    images = make_batch([1, 1]).images
    sizes = torch.tensor([[96, 65], [50, 96]])
    plain = predict(detector, images, sizes)
    stride = detector.layout.strides[detector.focus_level]
    assert stride == (16 if neck == "c5" else 8), "32 cells are nearest to a chip of 96 px at the finest level, 8"
    for one, (height, width), found in zip(
        plain, sizes.tolist(), predict_and_focus(detector, images, sizes), strict=True
    ):
        for column, other in zip(one, found, strict=False):
            torch.testing.assert_close(column, other)
        assert found[3].shape == (math.ceil(height / stride), math.ceil(width / stride))
        assert ((found[3] >= 0) & (found[3] <= 1)).all()


def test_predict_and_focus__without_a_focus_head_gives_proposals() -> None:
    detector = slim_detector().eval()
    batch = make_batch([1])
    (found,) = predict_and_focus(detector, batch.images, batch.sizes)
    boxes, objectness = found[3:]
    assert boxes.shape == (len(objectness), 4)
    assert ((objectness >= 0) & (objectness <= 1)).all()


def test_focus_loss__counts_cells_of_both_kinds_and_no_others() -> None:
    logits = torch.tensor([[[0.0, 2.0], [-3.0, 50.0]]])
    labels = torch.tensor([[[1, 0], [0, -1]]], dtype=torch.int8)
    each = [math.log1p(math.exp(value)) for value in (-0.0, 2.0, -3.0)]  # of a logit x that should be 1, 0 and 0
    assert focus_loss(logits, labels, 2).item() == pytest.approx(sum(each) / (4 * 2))
