"""Shards end by images and by planned bytes, whatever the machine."""

import pytest

from pipeline.dataset.spans import MOST_IMAGES, plan_spans, span_length
from pipeline.planning.plan import plan_span
from schemas.settings import ChipSettings
from tests.pipeline.sources import make_source


@pytest.mark.parametrize("num_images", [1, 15, 16, 17, 31, 100, 318, 2047, 2048, 118_287])
def test_span_length__sixteen_shards_where_there_are_sixteen_images(num_images: int) -> None:
    length = span_length(num_images, None)
    assert -(-num_images // length) >= min(16, num_images)
    assert length <= MOST_IMAGES
    assert span_length(num_images, 50) == 50


def test_span_length__rarely_changes_as_a_data_set_grows() -> None:
    assert len({span_length(num_images, None) for num_images in range(1, 10_000)}) == 8


def test_plan_spans__a_shard_ends_before_its_planned_bytes_exceed_the_limit() -> None:
    source, settings = make_source(3, num_images=12, size=(1000, 800)), ChipSettings(images_per_shard=6)
    whole = list(plan_spans(source, settings))
    assert [(span.start, span.stop) for span in whole] == [(0, 6), (6, 12)]
    single = [plan_span(source, i, i + 1, settings).chips for i in range(12)]
    limit = 400_000
    spans = list(plan_spans(source, settings, limit))
    assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
    assert spans[-1].stop == 12
    assert 6 in {span.start for span in spans}  # blocks stay where they are
    assert len(spans) > 2
    for span in spans:
        size = sum(
            chip["width"] * chip["height"] * 3 // 10 + 1536 + 200 * chip["num_boxes"]
            for chip in span.plan.chips.select(["width", "height", "num_boxes"]).to_pylist()
        )
        assert size <= limit or span.stop - span.start == 1
        assert span.plan.chips.num_rows == sum(chips.num_rows for chips in single[span.start : span.stop])
    assert list(map(str, spans)) == list(map(str, plan_spans(source, settings, limit)))


def test_plan_spans__a_set_without_images_has_one_empty_shard() -> None:
    (span,) = plan_spans(make_source(0, num_images=1).span(0, 0), ChipSettings())
    assert (span.start, span.stop, span.plan.chips.num_rows) == (0, 0, 0)
