"""Decide which consecutive images each shard of positives holds, by their number and by what their chips take."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.coco.source import Source
from pipeline.planning.plan import Plan, plan_span
from schemas.arrays import IntArray
from schemas.settings import ChipSettings

MOST_IMAGES, LEAST_SHARDS = 128, 16
SHARD_BYTES = 1 << 30
"""A shard ends before it would hold more; only a single image can exceed it."""

CHIP_BYTES, BOX_BYTES = 1536, 200  # of headers and of the rest of a chip's JSON, and of each box in it
PIXEL_BYTES = (3, 10)  # JPEG bytes per pixel at quality 95 as a fraction (docs/benchmarks.md)


class PlannedSpan(NamedTuple):
    """Images [start, stop) of a source, and their chips."""

    start: int
    stop: int
    plan: Plan


def span_length(num_images: int, images_per_shard: int | None) -> int:
    """Return the images of a shard whose chips take little.

    Where the settings leave it open it is a power of two up to MOST_IMAGES, so that it rarely changes as a data set
    grows, and so that there are LEAST_SHARDS shards where there are as many images.
    """
    if images_per_shard is not None:
        return images_per_shard
    most = max(1, num_images // LEAST_SHARDS)
    return min(MOST_IMAGES, 1 << (most.bit_length() - 1))


def plan_spans(source: Source, settings: ChipSettings, shard_bytes: int = SHARD_BYTES) -> Iterator[PlannedSpan]:
    """Plan all images, shard by shard. A data set without a usable image has one, empty, shard.

    Blocks of span_length images are divided where their chips would take more than `shard_bytes`. So what an image
    gives changes at most the shards of its own block, and the names of those behind it.

    Args:
        source: the data set.
        settings: where chips go, and `images_per_shard`.
        shard_bytes: planned bytes that a shard may hold.
    """
    length = span_length(source.num_images, settings.images_per_shard)
    for start in range(0, max(source.num_images, 1), length):
        stop = min(start + length, source.num_images)
        plan = plan_span(source, start, stop, settings)
        ends = _ends(_image_bytes(plan, stop - start), shard_bytes)
        if len(ends) == 1:
            yield PlannedSpan(start, stop, plan)
            continue
        for first, last in pairwise([start, *(start + end for end in ends)]):
            yield PlannedSpan(first, last, plan_span(source, first, last, settings))


def _image_bytes(plan: Plan, num_images: int) -> IntArray:
    """Estimate the bytes that each image's chips will take in a tar, int64 [n]."""
    width, height, boxes = (plan.chips[name].to_numpy().astype(np.int64) for name in ("width", "height", "num_boxes"))
    chips = width * height * PIXEL_BYTES[0] // PIXEL_BYTES[1] + CHIP_BYTES + boxes * BOX_BYTES
    return np.bincount(plan.image, chips, num_images).astype(np.int64)


def _ends(image_bytes: IntArray, shard_bytes: int) -> list[int]:
    """Return where parts of the images end, so that each holds at most `shard_bytes`, or a single image."""
    if image_bytes.sum() <= shard_bytes:
        return [len(image_bytes)]
    ends, held = [], 0
    for position, size in enumerate(image_bytes.tolist()):
        if held and held + size > shard_bytes:
            ends.append(position)
            held = 0
        held += size
    return [*ends, len(image_bytes)]
