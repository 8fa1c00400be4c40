import pytest
import torch

from schemas.settings import ModelSettings
from tests.trainer.chips import iou, random_boxes
from trainer.model.anchors import anchor_grid, anchor_layout, best_anchor_iou, may_learn, on_content

CPU = torch.device("cpu")


def test_anchor_layout__c5_has_the_papers_shapes():
    """21 anchors, square sides 32..384, base shapes 23x12, 16x16, 11x22 once rounded (docs/method.md, 6.3)."""
    stride, shapes = anchor_layout(ModelSettings(neck="c5"))
    assert stride == (16,)
    assert len(shapes) == 21
    assert [w * 16 for w, h in shapes if w == h] == [32, 64, 112, 160, 208, 256, 384]
    for scale, base in ((2, (23, 12)), (2, (16, 16)), (2, (11, 22))):
        assert any(abs(w * 16 / scale - base[0]) < 0.7 and abs(h * 16 / scale - base[1]) < 0.7 for w, h in shapes)


def test_anchor_layout__c5_mobilenet():
    stride, shapes = anchor_layout(ModelSettings(neck="c5", backbone="mobilenet_v2"))
    assert stride == (32,)
    assert len(shapes) == 15
    assert [w * 32 for w, h in shapes if w == h] == [32, 64, 128, 256, 384]
    assert any(abs(w * 32 - 45) < 0.5 and abs(h * 32 - 22.5) < 0.5 for w, h in shapes)  # docs/method.md, 6.3


def test_anchor_grid__centred_in_cells_in_order():
    layout = anchor_layout(ModelSettings(levels=(3, 4), anchor_scales=[4, 6]))
    grid = anchor_grid(layout, ((3, 4), (2, 2)), CPU)
    k = len(layout.shapes)
    assert grid.shape == ((12 + 4) * k, 4)
    centre, wh = (grid[:, :2] + grid[:, 2:]) / 2, grid[:, 2:] - grid[:, :2]
    for cell, (x, y, stride) in {0: (4, 4, 8), 1: (12, 4, 8), 4: (4, 12, 8), 12: (8, 8, 16), 15: (24, 24, 16)}.items():
        assert torch.allclose(centre[cell * k : (cell + 1) * k], torch.tensor([x, y]).float(), atol=1e-4)
        assert torch.allclose(wh[cell * k : (cell + 1) * k], torch.tensor(layout.shapes) * stride, atol=1e-4)


def test_anchor_grid__of_many_shapes_of_views_is_made_once_and_copies_nothing(monkeypatch: pytest.MonkeyPatch):
    layout = anchor_layout(ModelSettings(levels=(3, 4)))
    anchor_grid(layout, ((99, 99), (50, 50)), CPU)
    monkeypatch.delattr(torch, "tensor")  # which would make the host wait for a GPU
    shapes = [((side, 7), (side, 3)) for side in range(100, 108)]
    grids = [anchor_grid(layout, maps, CPU) for maps in shapes]
    assert all(anchor_grid(layout, maps, CPU) is grid for maps, grid in zip(shapes, grids, strict=True))


def test_may_learn__border_and_padding():
    anchors = torch.tensor(
        [
            [-32.0, -32, 20, 20],  # reaches 32 px out: in
            [-32.5, 0, 20, 20],  # further: out
            [40, 10, 82, 30],  # centre 61 of width 50: in the padding
            [20, 10, 78, 30],  # centre 49, reaches 28 px beyond the content: in
            [16, 10, 83, 30],  # centre 49.5, but 33 px beyond
            [0, 0, 10, 160],  # 100 px beyond the bottom
        ]
    )
    sizes = torch.tensor([[60, 50]])
    assert may_learn(anchors, sizes)[0].tolist() == [True, False, False, True, False, False]
    assert on_content(anchors, sizes)[0].tolist() == [True, True, False, True, True, False]


@pytest.mark.parametrize("settings", [ModelSettings(), ModelSettings(neck="c5"), ModelSettings(levels=(3, 5))])
def test_best_anchor_iou__equals_the_whole_grid(settings: ModelSettings):
    layout = anchor_layout(settings)
    side = 128
    maps = tuple((-(-side // s), -(-side // s)) for s in layout.strides)
    grid = anchor_grid(layout, maps, CPU)
    boxes = random_boxes(60, 90, 3)
    sizes = torch.tensor([[128, 128], [100, 128], [93, 91]]).repeat(20, 1)
    found = best_anchor_iou(boxes, sizes, settings)
    for box, size, value in zip(boxes.tolist(), sizes, found.tolist(), strict=True):
        allowed = grid[may_learn(grid, size[None])[0]].tolist()
        assert value == pytest.approx(max(iou(box, anchor) for anchor in allowed), abs=1e-5)
