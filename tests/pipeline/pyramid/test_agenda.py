"""The order of a search: every view once, spans apart, and few of them at a time."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.coco import SourceImage
from pipeline.pyramid.agenda import MOST_OPEN, Agenda
from pipeline.pyramid.focus import Focus, FocusMap
from pipeline.pyramid.reading import ViewBatch
from pipeline.pyramid.search import split_spans
from pipeline.pyramid.views import Output, View
from schemas.settings import ChipSettings, DetectSettings

CHIPS = ChipSettings(size=128, scales=[1.0, 0.5, 0.25], ranges=[(0, 40), (28, 90), (70, None)])
IMAGES = [SourceImage(i, "", 400 + 40 * (i % 3), 300) for i in range(23)]


def found_in(view: View) -> Output:
    """Nothing, and a focus map that asks for one corner of each second image."""
    values = np.zeros((8, 8), np.float32)
    values[0, 0] = view.image % 2
    return [np.empty((0, 4)), np.empty(0), np.empty(0), values]


def run(focus: Focus | None, ahead: int) -> tuple[list[list[View]], dict[int, Sequence[View]]]:
    """Search with a network that is `ahead` batches behind; returns all batches, and the views of each image."""
    agenda = Agenda(IMAGES, split_spans(len(IMAGES), 4), CHIPS, DetectSettings(), focus)
    batches, waiting, done = [], [], {}
    while True:
        while len(waiting) <= ahead and (batch := agenda.following()) is not None:
            waiting.append(batch)
        if not waiting:
            assert agenda.searched.pixels == sum(view.width * view.height for views in batches for view in views)
            return batches, done
        batch = waiting.pop(0)
        batches.append(batch)
        read = ViewBatch(batch, batch, np.zeros((len(batch), 1, 1, 3), np.uint8))
        for viewed in agenda.add(read, [found_in(view) for view in batch]):
            assert viewed.image not in done
            done[viewed.image] = [view for view, _ in viewed.views]
        begun = {view.image // 4 for views in [*batches, *waiting] for view in views}
        ended = {span for span in begun if all(i in done for i in range(4 * span, min(4 * span + 4, len(IMAGES))))}
        assert len(begun - ended) <= MOST_OPEN


@pytest.mark.parametrize("ahead", [0, 2, 9])
def test_agenda__without_focus_every_view_comes_once(ahead: int) -> None:
    batches, done = run(None, ahead)
    assert sorted(done) == list(range(len(IMAGES)))
    assert all([view.scale_index for view in views] == [0, 1, 2] for views in done.values())
    counts = Counter(view for batch in batches for view in batch)
    assert set(counts.values()) == {1}
    assert len(counts) == 3 * len(IMAGES)


@pytest.mark.parametrize("ahead", [0, 2, 9])
def test_agenda__from_coarse_to_fine_only_what_is_asked_for(ahead: int) -> None:
    focus = Focus(0.5, lambda view, output: FocusMap(output[3], (view.height / 8, view.width / 8)))
    batches, done = run(focus, ahead)
    assert sorted(done) == list(range(len(IMAGES)))
    for image, views in done.items():
        assert [view.scale_index for view in views] == ([0, 1, 2] if image % 2 else [2])
        assert [view.region is None for view in views] == ([False, False, True] if image % 2 else [True])
    for batch in batches:
        assert len({view.image // 4 for view in batch}) == 1, "spans share no batch"
        assert len({(view.shape, view.scale_index) for view in batch}) == 1
    alone, _ = run(focus, 0)
    assert sorted(batches) == sorted(alone), "how far reading is ahead changes no batch"
