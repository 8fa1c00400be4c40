"""Count what a build does, so that each image and each box of the source is in exactly one count; print them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.coco.source import Source
from pipeline.planning.plan import Plan
from pipeline.planning.scales import box_sizes, scale_factors, scale_name
from schemas.codes import FATE_NAMES, UNCOVERED, Fate, Reason
from schemas.settings import ChipSettings
from schemas.wording import counted, duration, interval

# Measured by scripts/bench/bench_cut.py on real COCO images, one core, quality 95 (docs/benchmarks.md).
BYTES_PER_CHIP_PIXEL = 0.30
DECODE_SECONDS_PER_PIXEL = 8e-9
CHIP_SECONDS_PER_PIXEL = 6e-9

CHUNK = 1 << 14  # images summed at a time: fixed, so that a sum's rounding depends on nothing


class Summary:
    """Collects what a build does, span of images by span of images, in any order.

    It holds 2 bytes per box and 21 per image.

    Args:
        source: what the build is made from.
        settings: those of the build.

    Attributes:
        source: as given.
        settings: as given.
        fate: uint8 [N] over all boxes of the source in order, schemas.codes.Fate.
        scale_mask: uint8 [N], bit i is set where the box is covered, or rescued, at scale index i.
        num_chips: int32 [n], chips written per image.
        hash: uint8 [n, 16], XXH3-128 of each image's file.
        has_hash: bool [n], whether the file could be read.
        reason: why an image was refused while cutting, by its position in the source.
    """

    def __init__(self, source: Source, settings: ChipSettings) -> None:
        self.source, self.settings = source, settings
        self.fate = np.full(len(source.row), Fate.FITS_NO_CHIP, np.uint8)
        self.scale_mask = np.zeros(len(source.row), np.uint8)
        self.num_chips = np.zeros(source.num_images, np.int32)
        self.hash = np.zeros((source.num_images, 16), np.uint8)
        self.has_hash = np.zeros(source.num_images, np.bool_)
        self.reason: dict[int, Reason] = {}
        num_scales = len(settings.scales)
        self._chips = np.zeros(num_scales, np.int64)
        self._rescue_chips = np.zeros(num_scales, np.int64)
        self._boxes = np.zeros((num_scales, 5), np.int64)  # in range, covered, too small, too long, rescued
        self._chip_pixels = 0
        self._without_targets = 0
        self._statuses: Counter[str] = Counter()

    def add(
        self, plan: Plan, start: int, stop: int, refused: dict[int, Reason], hashes: Sequence[str | None] | None
    ) -> None:
        """Count the span of images [start, stop), which must not have been counted before.

        Args:
            plan: the chips of the span.
            start: position of its first image in the source.
            stop: position behind its last image.
            refused: why the chips of some images were not written, by image id.
            hashes: XXH3-128 of each image's file, hex, None where it could not be read; None instead of a list where
                no file was read at all.
        """
        first, last = self.source.offsets[start], self.source.offsets[stop]
        image_ids = self.source.image_id[start:stop]
        is_refused = np.isin(image_ids, list(refused))
        for position in np.flatnonzero(is_refused).tolist():
            self.reason[start + position] = refused[int(image_ids[position])]
        for position, text in enumerate(hashes or (), start):
            if text is not None:
                self.hash[position] = np.frombuffer(bytes.fromhex(text), np.uint8)
                self.has_hash[position] = True
        lost = np.repeat(is_refused, np.diff(self.source.offsets[start : stop + 1]))
        self.fate[first:last] = np.where(lost, Fate.IMAGE_REFUSED, plan.fate)
        self.scale_mask[first:last] = np.where(lost, 0, plan.scale_mask)
        self._count_boxes(start, stop)

        written = ~is_refused[plan.image]
        self.num_chips[start:stop] = np.bincount(plan.image[written], minlength=stop - start)
        scale_index = plan.chips["scale_index"].to_numpy()
        num_scales = len(self._chips)
        self._chips += np.bincount(scale_index[written & ~plan.for_rescue], minlength=num_scales)
        self._rescue_chips += np.bincount(scale_index[written & plan.for_rescue], minlength=num_scales)
        chips = plan.chips.filter(written)
        sides = [chips[name].to_numpy().astype(np.int64) for name in ("width", "height")]
        self._chip_pixels += int((sides[0] * sides[1]).sum())
        self._without_targets += int((chips["num_valid"].to_numpy() == 0).sum())
        for entry in chips["boxes"].combine_chunks().flatten().field("status").value_counts().to_pylist():
            self._statuses[entry["values"]] += entry["counts"]

    def _count_boxes(self, start: int, stop: int) -> None:
        """Count what became of the boxes of images [start, stop) at each scale."""
        offsets = self.source.offsets[start : stop + 1]
        boxes = slice(offsets[0], offsets[-1])
        box, fate, mask = self.source.box[boxes], self.fate[boxes], self.scale_mask[boxes]
        size = box_sizes(box)
        shorter = (box[:, 2:] - box[:, :2]).min(axis=1)
        factors = scale_factors(self.settings, self.source.width[start:stop], self.source.height[start:stop])
        factors = np.repeat(factors, np.diff(offsets), axis=0)
        plain = (fate != Fate.CROWD) & (fate != Fate.IMAGE_REFUSED)
        for index, (lo, hi) in enumerate(self.settings.bounds()):
            here = (mask >> index & 1).astype(bool)
            in_range = plain & (size >= lo) & (size < hi)
            covered = here & (fate == Fate.COVERED)
            rescued = here & (fate == Fate.RESCUED)
            left = in_range & ~covered
            too_small = left & (shorter * factors[:, index] < self.settings.min_side)
            kinds = (in_range, covered, too_small, left & ~too_small, rescued)
            self._boxes[index] += [np.count_nonzero(kind) for kind in kinds]

    def counts(self) -> dict[str, Any]:
        """Return the counts that run.json holds; all of them are integers, but for the bounds of ranges."""
        source = self.source
        num_boxes = len(source.row) + len(source.refused_boxes)
        num_images = source.num_images + len(source.refused_images)
        is_kept = np.ones(source.num_images, np.bool_)
        is_kept[list(self.reason)] = False
        images_refused = Counter(image.reason.value for image in source.refused_images)
        images_refused.update(reason.value for reason in self.reason.values())
        boxes: dict[str, Any] = {"total": num_boxes}
        tally = [np.count_nonzero(self.fate == fate) for fate in Fate]
        for fate in (Fate.COVERED, Fate.RESCUED, Fate.CROWD):
            boxes[FATE_NAMES[fate]] = int(tally[fate])
        boxes["uncovered"] = {fate.name.lower(): int(tally[fate]) for fate in UNCOVERED if tally[fate]}
        boxes["image_refused"] = int(tally[Fate.IMAGE_REFUSED])
        refused = Counter((box.fate, box.reason.value) for box in source.refused_boxes)
        boxes["image_refused"] += sum(count for (fate, _), count in refused.items() if fate == Fate.IMAGE_REFUSED)
        boxes["refused"] = {reason: n for (fate, reason), n in sorted(refused.items()) if fate == Fate.REFUSED}
        boxes["clipped_to_image"] = source.num_clipped
        return {
            "images": {
                "total": num_images,
                "kept": source.num_images - len(self.reason),
                "refused": dict(sorted(images_refused.items())),
                "without_boxes": int(((np.diff(source.offsets) == 0) & is_kept).sum()),
                "without_chips": int(((self.num_chips == 0) & is_kept).sum()),
            },
            "boxes": boxes,
            "scales": self._scale_counts(),
            "chips": {
                "total": int(self._chips.sum() + self._rescue_chips.sum()),
                "for_rescue": int(self._rescue_chips.sum()),
                "without_targets": self._without_targets,
                "boxes_by_status": dict(sorted(self._statuses.items())),
            },
            "pixels": self._pixels(),
        }

    def _scale_counts(self) -> list[dict[str, Any]]:
        rows = []
        for index, ((lo, hi), scale) in enumerate(zip(self.settings.bounds(), self.settings.scales, strict=True)):
            in_range, covered, too_small, too_long, rescued = self._boxes[index].tolist()
            rows.append(
                {
                    "scale": scale_name(scale),
                    "range": [lo, hi if np.isfinite(hi) else None],
                    "chips": int(self._chips[index]),
                    "chips_for_rescue": int(self._rescue_chips[index]),
                    "boxes_in_range": in_range,
                    "boxes_covered": covered,
                    "boxes_too_small": too_small,
                    "boxes_too_long": too_long,
                    "boxes_rescued": rescued,
                }
            )
        return rows

    def _pixels(self) -> dict[str, int]:
        """Count the pixels that a trainer reads per epoch: of chips, of one scale, of whole images at all scales."""
        refused = np.sort(np.fromiter(self.reason, np.int64, len(self.reason)))
        source, single_scale, full_pyramid = 0, 0.0, 0.0
        for start in range(0, self.source.num_images, CHUNK):
            stop = min(start + CHUNK, self.source.num_images)
            kept = np.ones(stop - start, bool)
            kept[refused[slice(*np.searchsorted(refused, [start, stop]))] - start] = False
            widths, heights = self.source.width[start:stop][kept], self.source.height[start:stop][kept]
            area = widths * heights
            single = np.minimum(800 / np.minimum(widths, heights), 1333 / np.maximum(widths, heights))
            factors = scale_factors(self.settings, widths, heights)
            source += int(area.sum())
            single_scale += float((area * single**2).sum())
            full_pyramid += float((area[:, None] * factors**2).sum())
        return {
            "source": source,
            "chips": self._chip_pixels,
            "single_scale_800x1333": int(single_scale),
            "full_pyramid": int(full_pyramid),
        }


def describe(counts: dict[str, Any], workers: int | None = None) -> str:
    """Put the counts into text.

    Args:
        counts: what Summary.counts returned.
        workers: where given, the text also says what writing the chips would cost with so many.
    """
    images, boxes, chips, pixels = (counts[name] for name in ("images", "boxes", "chips", "pixels"))
    lines = [
        f"images   {images['total']:,} = {images['kept']:,} kept + {sum(images['refused'].values()):,} refused"
        + _listing(images["refused"])
        + f"; {images['without_boxes']:,} have no boxes, {images['without_chips']:,} give no positive chip",
        f"boxes    {boxes['total']:,} = {boxes['covered']:,} covered + {boxes['rescued']:,} rescued"
        f" + {sum(boxes['uncovered'].values()):,} uncovered"
        + _listing(boxes["uncovered"])
        + f" + {boxes['crowd']:,} crowd + {boxes['image_refused']:,} in refused images"
        f" + {sum(boxes['refused'].values()):,} refused" + _listing(boxes["refused"]),
        "",
        f"{'scale':<28}{'range':>12}{'chips':>10}{'in range':>10}{'covered':>10}{'too small':>10}{'too long':>10}"
        f"{'rescued':>10}{'+ chips':>9}",
    ]
    for row in counts["scales"]:
        lines.append(
            f"{row['scale']:<28}{interval(*row['range']):>12}{row['chips']:>10,}{row['boxes_in_range']:>10,}"
            f"{row['boxes_covered']:>10,}{row['boxes_too_small']:>10,}{row['boxes_too_long']:>10,}"
            f"{row['boxes_rescued']:>10,}{row['chips_for_rescue']:>9,}"
        )
    kept = max(images["kept"], 1)
    regular = chips["total"] - chips["for_rescue"]
    lines += [
        "",
        f"chips    {chips['total']:,}: {regular / kept:.2f} per image + {chips['for_rescue']:,} for rescued boxes; "
        f"{chips['without_targets']:,} hold no target",
        f"pixels   {pixels['chips'] / 1e6:,.0f} M: {pixels['chips'] / max(pixels['single_scale_800x1333'], 1):.0%} of "
        f"single-scale 800x1333, {pixels['chips'] / max(pixels['full_pyramid'], 1):.0%} of the full pyramid",
    ]
    if workers is not None:
        seconds = pixels["source"] * DECODE_SECONDS_PER_PIXEL + pixels["chips"] * CHIP_SECONDS_PER_PIXEL
        lines.append(
            f"writing  about {pixels['chips'] * BYTES_PER_CHIP_PIXEL / 1e9:.2f} GB and {duration(seconds / workers)} "
            f"with {counted(workers, 'worker')} (rates of docs/benchmarks.md)"
        )
    return "\n".join(lines)


def _listing(reasons: dict[str, int]) -> str:
    return f" ({', '.join(f'{count:,} {reason}' for reason, count in reasons.items())})" if reasons else ""


def mask_to_scales(mask: npt.NDArray[np.uint8], num_scales: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """Turn bit masks [N] into ragged lists of scale indices.

    Returns:
        Where each list starts, int32 [N + 1], and the indices, int8.
    """
    bits = (mask[:, None] >> np.arange(num_scales)) & 1
    offsets = np.concatenate([[0], np.cumsum(bits.sum(1))]).astype(np.int32)
    return offsets, np.nonzero(bits)[1].astype(np.int8)
