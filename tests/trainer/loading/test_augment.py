"""Pixels, boxes and statuses follow each other through every change, and no draw knows its neighbours in the batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.codes import Status
from schemas.settings import LoaderSettings
from tests.trainer.chips import chip_boxes, make_batch, slim_detector, take
from tests.trainer.conftest import SETTINGS
from tests.trainer.gpus import CUDA, needs_gpu
from tests.trainer.runs import tiny_settings
from trainer.learning.objective import Objective
from trainer.loading.augment import Draws, Limits, augment, draw_changes, recolour, resize
from trainer.loading.batch import Batch, flip, transpose
from trainer.loading.dataset import ChipDataset
from trainer.loading.loader import BatchLoader, Micro
from trainer.loading.order import State
from trainer.training.train import train

CPU = torch.device("cpu")
SIDE = 64
GROUND, INK = 20, 220
EVERYTHING = LoaderSettings(vertical_flip=True, quarter_turns=True, jitter=0.3, scale_jitter=0.25)


def painted(sizes: list[tuple[int, int]], boxes: list[tuple[int, int, int, int]], status: Status) -> Batch:
    """One chip for each size (height, width), with one box of whole numbers, which is painted; padding is noise."""
    images = torch.randint(0, 256, (len(sizes), SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0)).byte()
    for image, (height, width), (x1, y1, x2, y2) in zip(images, sizes, boxes, strict=True):
        image[:height, :width] = GROUND
        image[y1:y2, x1:x2] = INK
    return Batch(
        keys=[str(i) for i in range(len(sizes))],
        images=images.permute(0, 3, 1, 2),
        sizes=torch.tensor(sizes),
        scales=torch.full((len(sizes),), 2.0),
        scale_indices=torch.ones(len(sizes), dtype=torch.int64),
        ranges=torch.tensor([[4.0, 12.0]]).repeat(len(sizes), 1),
        boxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.ones(len(sizes), dtype=torch.int64),
        status=torch.full((len(sizes),), int(status), dtype=torch.uint8),
        visible=torch.ones(len(sizes)),
        offsets=torch.arange(len(sizes) + 1),
    )


@st.composite
def painted_chips(draw: st.DrawFn) -> Batch:
    sizes, boxes = [], []
    for _ in range(draw(st.integers(1, 3))):
        height, width = draw(st.integers(24, SIDE)), draw(st.integers(24, SIDE))
        x1, y1 = draw(st.integers(0, width - 10)), draw(st.integers(0, height - 10))
        boxes.append((x1, y1, draw(st.integers(x1 + 10, width)), draw(st.integers(y1 + 10, height))))
        sizes.append((height, width))
    return painted(sizes, boxes, Status.VALID)


def draws_of(count: int, turns: list[int], across: bool, down: bool) -> Draws:
    return Draws(torch.full((count,), across), torch.full((count,), down), torch.tensor(turns)[:count])


@settings(max_examples=60)
@given(
    batch=painted_chips(),
    turns=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    across=st.booleans(),
    down=st.booleans(),
)
def test_augment__a_painted_box_stays_under_its_box(batch: Batch, turns: list[int], across: bool, down: bool) -> None:
    changed = augment(batch, draws_of(len(batch), turns, across, down), Limits())
    for i in range(len(batch)):
        height, width = changed.sizes[i].tolist()
        x1, y1, x2, y2 = map(int, changed.boxes[i].tolist())
        expected = torch.full((height, width), GROUND)
        expected[y1:y2, x1:x2] = INK
        assert torch.equal(changed.images[i, 0, :height, :width].long(), expected)
        assert [height, width] == batch.sizes[i].tolist()[:: -1 if turns[i] % 2 else 1]


@pytest.mark.parametrize("turn", range(4))
def test_augment__a_turn_is_clockwise_and_turned_back_by_the_rest(turn: int) -> None:
    batch = make_batch([3, 2, 0], side=SIDE, seed=5)
    turned = augment(batch, draws_of(3, [turn] * 3, False, False), Limits())
    for i, (height, width) in enumerate(batch.sizes.tolist()):
        content = batch.images[i, :, :height, :width]
        there = turned.sizes[i].tolist()
        assert torch.equal(turned.images[i, :, : there[0], : there[1]], content.rot90(-turn, (1, 2)))
    back = augment(turned, draws_of(3, [(4 - turn) % 4] * 3, False, False), Limits())
    assert torch.equal(back.boxes, batch.boxes)
    assert torch.equal(back.sizes, batch.sizes)
    for i, (height, width) in enumerate(batch.sizes.tolist()):
        assert torch.equal(back.images[i, :, :height, :width], batch.images[i, :, :height, :width])


def test_flip_and_transpose__twice_are_nothing_also_to_the_padding() -> None:
    batch = make_batch([3, 2, 4], side=SIDE, seed=5)
    flags = torch.tensor([True, False, True])
    for twice in (
        transpose(transpose(batch, flags), flags),
        flip(flip(batch, flags, vertical=True), flags, vertical=True),
    ):
        assert torch.equal(twice.images, batch.images)
        assert torch.equal(twice.boxes, batch.boxes)
        assert torch.equal(twice.sizes, batch.sizes)


@settings(max_examples=60)
@given(batch=painted_chips(), factor=st.floats(0.8, 1.25), down=st.floats(0, 0.999), across=st.floats(0, 0.999))
def test_resize__a_painted_box_stays_under_its_box(batch: Batch, factor: float, down: float, across: float) -> None:
    num = len(batch)
    resized = resize(batch, torch.tensor([[factor, down, across]] * num, dtype=torch.float64), Limits())
    for i, (height, width) in enumerate(resized.sizes.tolist()):
        old_height, old_width = batch.sizes[i].tolist()
        assert (height, width) == (min(SIDE, round(old_height * factor)), min(SIDE, round(old_width * factor)))
        pixels = resized.images[i, 0, :height, :width]
        far = 1.5  # pixels nearer to an edge are mixed
        assert (pixels[centres_within(resized.boxes[i], height, width, far)] == INK).all()
        assert (pixels[~centres_within(resized.boxes[i], height, width, -far)] == GROUND).all()


def test_resize__an_empty_box_is_ignored_whatever_a_target_must_show() -> None:
    """An object above the window, beside it, and within it."""
    batch = painted([(SIDE, SIDE)] * 3, [(20, 0, 30, 10), (0, 20, 10, 30), (30, 30, 40, 40)], Status.VALID)
    resized = resize(batch, torch.tensor([[1.25, 0.999, 0.999]] * 3, dtype=torch.float64), Limits(0.0, 0.0))
    assert resized.status.tolist()[:2] == [Status.IGNORE] * 2
    assert resized.status.tolist()[2] != Status.IGNORE


def centres_within(box: Tensor, height: int, width: int, margin: float) -> Tensor:
    """Which pixels, bool [height, width], have their centres in a box, farther than the margin from its edges."""
    x1, y1, x2, y2 = box.tolist()
    x, y = torch.arange(width) + 0.5, torch.arange(height)[:, None] + 0.5
    return (x > x1 + margin) & (x < x2 - margin) & (y > y1 + margin) & (y < y2 - margin)


def resized_status(
    before: Status, size: float, low: float, high: float, share: float, cut: bool, side: float
) -> Status:
    """The rule of docs/method.md, 4.2, after a change of size."""
    if before is Status.CROWD:
        return Status.CROWD
    if share < 0.1 or side < 4:
        return Status.IGNORE
    if before is Status.RESCUED and not cut:
        return Status.RESCUED
    if not low <= size < high:
        return Status.OUT_OF_RANGE
    return Status.CUT if cut else Status.VALID


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.1, 1.25])
def test_resize__statuses_follow_the_new_sizes(factor: float) -> None:
    batch = make_batch([20, 0, 30, 25], side=96, seed=3)
    shares = torch.rand(75, generator=torch.Generator().manual_seed(1)).clamp(min=0.05)
    shares[::2] = 1
    draws = torch.tensor([[factor, 0.3, 0.6]] * 4, dtype=torch.float64)
    resized = resize(replace(batch, visible=shares), draws, Limits(0.1, 4.0))
    rows = iter(range(75))
    seen = set()
    for chip in range(4):
        old = batch.sizes[chip].numpy()
        new = np.round(old * factor)
        sy, sx = new / old
        start_y, start_x = (int(p * (n - min(n, 96) + 1)) for p, n in zip((0.3, 0.6), new, strict=True))
        low, high = (batch.ranges[chip] * batch.scales[chip]).tolist()
        for (box, _, before), (_, _, after) in zip(chip_boxes(batch, chip), chip_boxes(resized, chip), strict=True):
            row = next(rows)
            x1, y1, x2, y2 = (v * f - o for v, f, o in zip(box, [sx, sy] * 2, [start_x, start_y] * 2, strict=True))
            part = [max(x1, 0), max(y1, 0), min(x2, new[1], 96), min(y2, new[0], 96)]
            w, h = max(part[2] - part[0], 0), max(part[3] - part[1], 0)
            cut = shares[row] < 1 or not np.allclose(part, [x1, y1, x2, y2], atol=1e-3)
            whole = (x2 - x1) * (y2 - y1)
            share = float(shares[row]) * w * h / whole
            size = (whole / float(shares[row])) ** 0.5
            was_cut = not np.allclose(part, [x1, y1, x2, y2], atol=1e-3)
            expected = resized_status(
                before, size, low, high, share, was_cut if before is Status.RESCUED else bool(cut), min(w, h)
            )
            assert after is expected, (box, before)
            seen.add(after)
            assert float(resized.visible[row]) == pytest.approx(share, abs=1e-4)
    assert len(seen) >= 5


def test_resize__statuses_of_real_chips_stay_where_nothing_changes(dataset: ChipDataset) -> None:
    m = dataset.manifest
    loader = BatchLoader(dataset, LoaderSettings(flip=False, scale_jitter=0.25), 50)
    for step in loader.epoch(State(0)):
        batch, draws, limits = step.micros[0]
        assert draws.resizes is not None
        assert limits == (SETTINGS.min_visible, SETTINGS.min_side)
        unchanged = draws._replace(resizes=torch.tensor([[1.0, 0.0, 0.0]]).double().repeat(len(batch), 1))
        same = Micro(batch, unchanged, limits).to(CPU)
        assert torch.equal(same.status, batch.status)
        assert torch.allclose(same.visible, batch.visible)
        assert torch.allclose(same.boxes, batch.boxes, atol=1e-4)
        for i, (height, width) in enumerate(batch.sizes.tolist()):
            assert torch.equal(same.images[i, :, :height, :width], batch.images[i, :, :height, :width])
    assert len(set(m.status.tolist())) >= 3


def test_recolour__is_the_formula_and_nothing_where_all_factors_are_1() -> None:
    batch = make_batch([1, 1, 1], side=SIDE, seed=7)
    assert torch.equal(recolour(batch, torch.ones(3, 3)).images, batch.images)
    factors = torch.tensor([[1.2, 1.0, 1.0], [1.0, 0.5, 1.0], [0.9, 1.3, 0.0]])
    changed = recolour(batch, factors)
    for chip, (brightness, contrast, saturation) in enumerate(factors.double()):
        height, width = batch.sizes[chip].tolist()
        pixels = batch.images[chip].double()
        grey = (torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None] * pixels).sum(0)
        saturated = saturation * pixels + (1 - saturation) * grey
        mean = grey[:height, :width].mean()
        expected = (brightness * (contrast * saturated + (1 - contrast) * mean)).clamp(0, 255)
        assert (changed.images[chip].double() - expected).abs().max() <= 0.501
    assert (changed.images[2].amax(0).int() - changed.images[2].amin(0).int()).max() == 0


def some_draws(count: int) -> Draws:
    hashes = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return draw_changes(hashes, EVERYTHING, seed=1, epoch=2)


def test_augment__a_chip_does_not_know_its_neighbours() -> None:
    batch = make_batch([3, 0, 5, 1], side=SIDE, seed=2)
    draws = some_draws(4)
    whole = augment(batch, draws, Limits())
    for chip in range(4):
        alone = augment(take(batch, [chip]), draws.take(slice(chip, chip + 1)), Limits())
        among = take(whole, [chip])
        for name in ("images", "sizes", "boxes", "visible", "status"):
            assert torch.equal(getattr(alone, name), getattr(among, name)), name
    empty = make_batch([])
    assert len(augment(empty, draws.take(slice(0, 0)), Limits())) == 0


def test_draw_changes__are_within_their_bounds_and_off_by_default() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, 4000, dtype=np.uint64)
    draws = draw_changes(hashes, EVERYTHING, seed=3, epoch=1)
    assert draws.vertical is not None
    assert draws.turns is not None
    assert draws.colours is not None
    assert draws.resizes is not None
    assert 0.45 < draws.vertical.float().mean() < 0.55
    assert all(0.2 < share < 0.3 for share in (draws.turns.bincount() / 4000).tolist())
    assert 0.7 <= draws.colours.min() < 0.71
    assert 1.29 < draws.colours.max() <= 1.3
    assert 0.8 <= draws.resizes[:, 0].min() < 0.805
    assert 1.245 < draws.resizes[:, 0].max() <= 1.25
    assert abs(draws.resizes[:, 0].log().mean()) < 0.01  # as often larger as smaller
    assert np.abs(np.corrcoef(torch.cat([draws.colours.double(), draws.resizes], 1).T) - np.eye(6)).max() < 0.06
    plain = draw_changes(hashes, LoaderSettings(), seed=3, epoch=1)
    assert torch.equal(plain.flips, draws.flips)
    assert plain[1:] == (None,) * 4


def test_loader__changes_follow_the_key_whatever_the_batches_and_ranks(dataset: ChipDataset) -> None:
    found: list[dict[str, list[Tensor]]] = []
    for batch_size, ranks in ((5, 1), (3, 1), (6, 2)):
        by_key: dict[str, list[Tensor]] = {}
        for rank in range(ranks):
            loader = BatchLoader(dataset, EVERYTHING, batch_size, rank=rank, ranks=ranks)
            for step in loader.epoch(State(0, 1)):
                moved = step.micros[0].to(CPU)
                for i, key in enumerate(moved.keys):
                    height, width = moved.sizes[i].tolist()
                    rows = slice(int(moved.offsets[i]), int(moved.offsets[i + 1]))
                    by_key[key] = [moved.images[i, :, :height, :width], moved.boxes[rows], moved.status[rows]]
        found.append(by_key)
    assert len(found[0]) > 10
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for key, values in other.items():
            assert all(torch.equal(a, b) for a, b in zip(values, found[0][key], strict=True)), key


def test_objective__is_finite_with_boxes_that_a_change_has_taken_away() -> None:
    batch = make_batch([6, 0, 9, 4], seed=4)
    draws = torch.tensor([[1.25, 0.0, 0.99]] * 4, dtype=torch.float64)
    full = replace(batch, sizes=torch.full((4, 2), 96))  # so that all of them outgrow the chip
    changed = resize(full, draws, Limits())
    assert ((changed.boxes[:, 2:] <= changed.boxes[:, :2]).any(1) & (changed.status == Status.IGNORE)).any()
    detector = slim_detector().train()
    losses = Objective(detector)(changed, seed=0, epoch=0, batch_size=4)
    torch.stack(list(losses.values())).sum().backward()
    gradients = [parameter.grad for parameter in detector.parameters() if parameter.grad is not None]
    assert all(value.isfinite().all() for value in [*losses.values(), *gradients])


def test_train__runs_with_all_changes(demo: Path, tmp_path: Path) -> None:
    changes = ("vertical_flip=true", "quarter_turns=true", "jitter=0.2", "scale_jitter=0.25")
    last = train(demo / "chips", tmp_path, tiny_settings(*(f"loader.{change}" for change in changes)))
    assert last.is_file()


@needs_gpu
def test_augment__is_a_cpus_on_a_gpu() -> None:
    """Boxes and what is turned exactly, pixels that are computed within one step of 255."""
    batch = make_batch([3, 0, 5, 1], side=SIDE, seed=2)
    draws = some_draws(4)
    ours, theirs = augment(batch, draws, Limits()), augment(batch.to(CUDA), draws.to(CUDA), Limits())
    assert torch.equal(theirs.sizes.cpu(), ours.sizes)
    assert torch.equal(theirs.status.cpu(), ours.status)
    assert torch.allclose(theirs.boxes.cpu(), ours.boxes, atol=1e-3)
    for i, (height, width) in enumerate(ours.sizes.tolist()):
        here, there = (each.images[i, :, :height, :width].cpu().int() for each in (ours, theirs))
        assert (here - there).abs().max() <= 1
