import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from schemas.settings import load_settings
from scripts.ablate.__main__ import main, planned
from scripts.ablate.cuts import OVERLAP, SETTINGS, positives, tile_starts
from scripts.ablate.data import COCO_SIZES, coco_like_scene, scenes
from scripts.ablate.errors import main as draw_errors
from scripts.ablate.errors import shown
from scripts.ablate.report import EMPTY, T_95, by_seed, estimate, fill, paired, recall_table, score_table
from scripts.ablate.rows import MAIN, ROWS
from scripts.ablate.two_stage import OutOfTimeError, Stopwatch, epoch_of, fit
from tests.paths import ROOT
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.results import CocoResults
from trainer.runtime.checkpoint import read_checkpoint

TINY = ("--steps", "2", "--images", "3", "--seeds", "0")
SCORES = st.dictionaries(st.integers(0, 20), st.floats(0, 1), min_size=2, max_size=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scenes of three images, of which each run makes its own chips."""
    torch.set_num_threads(1)
    work = tmp_path_factory.mktemp("ablate")
    scenes(work / "work", 3)
    return work


def run(folder: Path, rows: str) -> list[dict]:
    out = folder / "runs.jsonl"
    places = ("--out", str(out), "--work", str(folder / "work"), "--data", "scenes")
    result = CliRunner().invoke(main, [*places, "--rows", rows, *TINY], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_main__trains_and_scores_each_row_once(folder: Path) -> None:
    rows = "full,proposals per view,one stage: tiles"
    lines = run(folder, rows)
    assert [line["row"] for line in lines] == rows.split(",")
    assert all(0 <= line["scores"]["AP"] <= 1 for line in lines)
    assert lines[0]["recall"] == lines[1]["recall"]  # of the same checkpoint
    assert lines[0]["epoch_pixels"] == lines[1]["epoch_pixels"] < lines[2]["epoch_pixels"]
    assert run(folder, rows) == lines
    assert all(set(line["AP50_gains"]) >= {"missed", "background"} for line in lines)
    places = (str(folder / "runs.jsonl"), "--work", str(folder / "work"), "--out", str(folder / "errors.png"))
    result = CliRunner().invoke(draw_errors, [*places, "--rows", "full,one stage: tiles", "--images", "2"])
    assert result.exit_code == 0, result.output
    with Image.open(folder / "errors.png") as picture:
        assert picture.height > 2 * picture.width / 3  # two rows of two images


def test_shown__objects_that_are_found_below_the_best_score_are_missed() -> None:
    """Two objects, of which the second is found with a lower score than eighty false detections have."""
    objects = Objects(*map(np.array, ([1, 1], [1, 1], [[0.0, 0, 9, 9], [50, 50, 9, 9]], [81.0, 81], [False, False])))
    boxes = [[0, 0, 9, 9], *([90 + i, 90, 95 + i, 95] for i in range(80)), [50, 50, 59, 59]]
    scores = np.linspace(1, 0.1, len(boxes), dtype=np.float32)
    ones = np.ones(len(boxes), np.int64)
    errors = shown(objects, CocoResults(ones, ones, np.array(boxes, np.float32), scores))
    assert errors.counts(1) == (0, 1)
    assert errors.is_missed.tolist() == [False, True]


def test_fit__goes_on_where_the_time_was_over(folder: Path) -> None:
    settings = load_settings(SETTINGS, ("loader.negatives_per_image=0",))
    folders = positives(scenes(folder / "work", 3), settings)
    for step in (1, 2):
        with pytest.raises(OutOfTimeError, match=f"step {step} of 3"):
            fit(folders, folder / "resumed", settings, 3, deadline=0)
    assert fit(folders, folder / "resumed", settings, 3, math.inf) is None
    assert fit(folders, folder / "through", settings, 3, math.inf) is not None
    one, other = (read_checkpoint(folder / name).model for name in ("resumed", "through"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_fit__goes_on_at_the_end_of_an_epoch_that_is_longer_than_the_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(SETTINGS, ("loader.negatives_per_image=0", "train.batch_size=1"))
    wide = settings.chips.model_copy(update={"ranges": [(0, None)] * 3})
    data = scenes(folder / "work", 3)
    folders = [
        *positives(data, settings),
        *positives(data, settings.model_copy(update={"chips": wide})),
    ]
    folders.sort(key=lambda one: epoch_of(one, settings)[0])
    short, long = (epoch_of(one, settings)[0] for one in folders)
    assert long > short + 1
    calls = 0

    def step(self: Stopwatch) -> bool:
        nonlocal calls
        calls += 1
        return calls == short + long - 1

    monkeypatch.setattr(Stopwatch, "step", step)
    total = short + long
    with pytest.raises(OutOfTimeError, match=f"step {total - 1} of {total}"):
        fit(folders, folder / "longer", settings, total, math.inf)
    fit(folders, folder / "longer", settings, total, math.inf)


@given(st.floats(32, 2000), st.floats(32, 700))
def test_tile_starts__cover_all_and_overlap(extent: float, side: float) -> None:
    starts = tile_starts(extent, side)
    assert starts[0] == 0
    assert starts[-1] == pytest.approx(max(extent - side, 0))
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= (1 - OVERLAP) * side + 1).all()


def test_planned__begins_with_the_first_seed_of_each_row() -> None:
    runs = planned(list(ROWS), None, list(MAIN))
    assert len(runs) == sum(sum(row.seeds.values()) for row in ROWS)
    first = runs[: sum(len(row.seeds) for row in ROWS)]
    assert {run.seed for run in first} == {0}


def test_coco_like_scene__has_objects_of_cocos_sizes() -> None:
    placed = [
        shape.box for index in range(60) for shape in coco_like_scene(np.random.default_rng(index), index).objects
    ]
    boxes = np.array(placed)
    sizes = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    assert len(sizes) > 300
    assert np.median(sizes) == pytest.approx(COCO_SIZES[7], rel=0.25)
    assert np.quantile(sizes, 0.1) == pytest.approx(COCO_SIZES[3], rel=0.3)


@given(SCORES, st.floats(-1, 1))
def test_paired__is_blind_to_what_both_rows_share(scores: dict[int, float], shift: float) -> None:
    difference = paired({seed: score + shift for seed, score in scores.items()}, scores)
    assert difference is not None
    assert difference.mean == pytest.approx(shift, abs=1e-9)
    assert difference.half == pytest.approx(0, abs=1e-6)


@given(SCORES, SCORES)
def test_paired__changes_sign_with_the_order(one: dict[int, float], other: dict[int, float]) -> None:
    forth, back = paired(one, other), paired(other, one)
    if one.keys().isdisjoint(other):
        assert forth is back is None
    else:
        assert forth is not None
        assert back is not None
        assert forth.mean == pytest.approx(-back.mean)
        assert forth.half == pytest.approx(back.half)
        assert forth.seeds == len(one.keys() & other.keys())


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.floats(0.1, 10))
def test_estimate__scales_with_its_values(values: list[float], factor: float) -> None:
    one, scaled = estimate(values), estimate([factor * value for value in values])
    assert scaled.mean == pytest.approx(factor * one.mean, abs=1e-9)
    assert scaled.half == pytest.approx(factor * one.half, abs=1e-6)


def test_estimate__holds_the_true_mean_in_19_of_20_cases() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 8, 21):
        found = [estimate(rng.normal(0.3, 0.1, count).tolist()) for _ in range(4000)]
        share = np.mean([abs(one.mean - 0.3) <= one.half for one in found])
        assert share == pytest.approx(0.95, abs=0.012)
    assert sorted(T_95, reverse=True) == list(T_95)


def test_tables__say_where_nothing_was_measured() -> None:
    line = {"data": "scenes", "row": "full", "seed": 0, "scores": {"AP": 0.5, "AP50": None}}
    table = score_table([line], "scenes")
    assert f"| full | 1 | 50.0 | {EMPTY} |" in table
    assert f"| two scales | 0 | {EMPTY} |" in table
    assert EMPTY in recall_table([])
    assert by_seed([line], "scenes", "full", "recall", "AR") == {}


def test_fill__replaces_the_tables_of_the_page_and_nothing_else() -> None:
    page = (ROOT / "docs/evidence.md").read_text()
    names = [*MAIN, "recall", "errors", "cost"]
    once = fill(page, dict.fromkeys(names, "| a |"))
    assert once.count("| a |") == len(names)
    assert fill(once, dict.fromkeys(names, "| b |")) == once.replace("| a |", "| b |")


def test_shown__without_a_detection_everything_is_missed() -> None:
    objects = Objects(*map(np.array, ([1], [1], [[0.0, 0, 9, 9]], [81.0], [False])))
    nothing = np.empty(0, np.int64)
    errors = shown(objects, CocoResults(nothing, nothing, np.empty((0, 4), np.float32), np.empty(0, np.float32)))
    assert errors.counts(1) == (0, 1)
