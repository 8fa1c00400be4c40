"""Read ready proposals, Parquet or COCO results, into flat columns sorted by image, and refuse malformed ones.

A row that is wrong says that the file is not what it is taken for (of another data set, or in another frame), so the
whole file is refused and its wrong rows are named. Proposals of images that were refused when the chips were cut are
left out.
"""

import json
from collections.abc import Set
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.coco.source import find_ids
from pipeline.dataset.proposal_rows import COLUMNS, Batch, read_batches
from pipeline.planning.mine import PooledProposals
from pipeline.storage import Location, files_in, is_file, is_folder
from pipeline.storage.parquet import read_metadata
from schemas.arrays import Float32Array, FloatArray, IntArray
from schemas.errors import DataError, UsageError

PARTS_KEY = b"sniper-parts"
"""In the metadata of files that the RPN stage wrote: JSON with `positives`, the fingerprint of the chips that the RPN
was trained on, and `length`, the images of a part."""
FAULT_LIMIT = 20  # lines of an error message
OVERHANG = 1.0
"""A box may reach beyond its image by this many source pixels, and is clipped: float32 and files that round to
whole pixels bring that about. More means coordinates of another frame."""
LARGEST = float(np.finfo(np.float32).max)  # NaN is not below it


class Extents(NamedTuple):
    """The images whose proposals are wanted, sorted by id.

    Attributes:
        image_id: int64 [n], ids of the images.
        size: float64 [n, 2], width and height, source pixels.
        others: int64 [r], ids of images whose proposals are left out without being a fault, such as those of refused
            images. None leaves out those of any other image.
    """

    image_id: IntArray
    size: FloatArray
    others: IntArray | None


def read_proposals(path: Location, extents: Extents) -> PooledProposals:
    """Read a Parquet file, a folder of them (schema PROPOSALS; scale_index may be missing) or COCO results JSON.

    It keeps 20 bytes per proposal; at the peak, while joining and sorting, it takes about 50.

    Args:
        path: a file, or a folder of Parquet files.
        extents: the n images whose proposals are wanted.

    Returns:
        The proposals of the n images, by image, in the order in which they were read.

    Raises:
        UsageError: there is no such file, or no Parquet file in the folder.
        DataError: columns are wrong, or rows are malformed; the first FAULT_LIMIT rows are named by their numbers.
    """
    return _read(path, _files(path), extents)


class Parts(NamedTuple):
    """The files that the RPN stage wrote.

    Attributes:
        files: all parts, in order.
        length: images of a part: part i holds the images [i * length, (i + 1) * length) of those sorted by id.
    """

    files: list[Location]
    length: int

    def of(self, start: int, stop: int) -> list[Location]:
        """Return the files that hold images [start, stop)."""
        return self.files[start // self.length : -(-stop // self.length)]


def numbered_parts(folder: Location) -> dict[int, Location]:
    """Find the files part-00000.parquet and so on in a folder, by their number."""
    numbers = ((file.stem.removeprefix("part-"), file) for file in files_in(folder, "part-*.parquet"))
    return {int(number): file for number, file in numbers if number.isdecimal()}


def find_parts(folder: Location, positives: Set[str], num_images: int) -> Parts | None:
    """Find the parts that the RPN stage wrote for these positives.

    Args:
        folder: where they may lie.
        positives: fingerprints that the chips which the RPN was trained on may have.
        num_images: number of kept images of the data set.

    Returns:
        The parts; None where the folder holds other files, or parts that belong to other positives.

    Raises:
        DataError: some parts are missing.
    """
    files = numbered_parts(folder)
    if 0 not in files:
        return None
    try:
        about = json.loads(read_metadata(files[0])[PARTS_KEY])
        made_from, length = about["positives"], about["length"]
    except (DataError, KeyError, ValueError):
        return None
    if made_from not in positives:
        return None
    wanted = range(-(-num_images // length))
    missing = [index for index in wanted if index not in files]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(wanted)} parts are missing, first part-{missing[0]:05d}.parquet: the "
            "extraction of proposals was interrupted; run `sniper negatives` without --proposals to go on"
        )
    return Parts([files[index] for index in wanted], length)


def read_parts(files: list[Location], extents: Extents) -> PooledProposals:
    """Read some parts that the RPN stage wrote.

    Args:
        files: the parts; they hold images of other shards, too.
        extents: the n images whose proposals are wanted; its `others` must be None.

    Returns:
        The proposals of the n images, by image, in the order in which they were read.

    Raises:
        DataError: columns are wrong, or rows are malformed.
    """
    return _read(", ".join(map(str, files)), files, extents)


def _read(path: object, files: list[Location], extents: Extents) -> PooledProposals:
    position, boxes, score = [np.empty(0, np.int32)], [np.empty((0, 4), np.float32)], [np.empty(0, np.float32)]
    faults: list[str] = []
    num_faults = 0
    for file in files:
        for batch in read_batches(file):
            found = _faults(batch, extents)
            faults += [f"{file}: row {row}: {found[row]}" for row in sorted(found)[: FAULT_LIMIT - len(faults)]]
            num_faults += len(found)
            if num_faults:
                continue
            known = _position(batch.image_id, extents.image_id)
            kept = known >= 0
            limit = np.tile(extents.size[known[kept]], 2)
            position.append(known[kept].astype(np.int32))
            boxes.append(np.clip(batch.box[kept], 0, limit).astype(np.float32))
            score.append(batch.score[kept].astype(np.float32))
    if num_faults:
        more = f"\n... and {num_faults - len(faults)} more" if num_faults > len(faults) else ""
        raise DataError(
            f"{path}: {num_faults} malformed proposals:\n"
            + "\n".join(faults)
            + f"{more}\nNothing was read. Give proposals of the images of this data set, in source pixels"
        )
    return _by_image(extents, _joined(position), _joined(boxes), _joined(score))


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Join arrays and empty their list, so that they are not held twice for longer than it takes."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def _by_image(
    extents: Extents, position: npt.NDArray[np.int32], boxes: Float32Array, score: Float32Array
) -> PooledProposals:
    counts = np.bincount(position, minlength=len(extents.image_id))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if (np.diff(position) < 0).any():
        order = np.argsort(position, kind="stable")
        boxes, score = boxes[order], score[order]
    return PooledProposals(offsets, boxes, score)


def slice_pool(pool: PooledProposals, start: int, stop: int) -> PooledProposals:
    """Return the proposals of images [start, stop), as views of the same memory."""
    offsets = pool.offsets[start : stop + 1]
    rows = slice(int(offsets[0]), int(offsets[-1]))
    return PooledProposals(offsets - offsets[0], pool.boxes[rows], pool.score[rows])


def _files(path: Location) -> list[Location]:
    if is_folder(path):
        files = [file for file in files_in(path, "*.parquet") if not file.name.startswith(".")]
        if not files:
            raise UsageError(f"{path}: holds no *.parquet; expected proposals in the columns {', '.join(COLUMNS)}")
        return files
    if not is_file(path):
        raise UsageError(f"{path}: no such file of proposals")
    return [path]


def _faults(batch: Batch, extents: Extents) -> dict[int, str]:
    """Name the first thing that is wrong with each malformed row, by the row's number in its file."""
    found = dict(batch.faults)
    known = _position(batch.image_id, extents.image_id)
    left_out = (known < 0) & (extents.others is None or np.isin(batch.image_id, extents.others))
    limit = np.zeros((len(known), 2))
    limit[known >= 0] = extents.size[known[known >= 0]]
    low, high = batch.box[:, :2], batch.box[:, 2:]
    finite = np.abs(np.column_stack([batch.box, batch.score])).max(axis=1) < LARGEST
    # after clipping, as float32, there must still be an area
    inner = np.clip(batch.box, 0, np.tile(limit, 2)).astype(np.float32)
    has_area = (inner[:, 2:] > inner[:, :2]).all(axis=1) & (high > low).all(axis=1)
    inside = np.maximum(-low, high - limit).max(axis=1) <= OVERHANG
    unknown = (known < 0) & ~left_out
    for i in np.flatnonzero(unknown | ~(finite & inside & has_area)).tolist():
        row = batch.first_row + i
        if row in found:
            continue
        box = f"[{', '.join(f'{v:g}' for v in batch.box[i])}]"
        if unknown[i]:
            found[row] = f"image_id {batch.image_id[i]} is not in images.parquet"
        elif not finite[i]:
            found[row] = f"box {box}, score {batch.score[i]:g}: expected finite numbers"
        elif left_out[i]:
            continue
        elif not inside[i]:
            width, height = limit[i]
            found[row] = f"box {box} (x1 y1 x2 y2) reaches outside its {width:g}x{height:g} image"
        else:
            found[row] = f"box {box} (x1 y1 x2 y2) has no area"
    return found


def _position(image_id: IntArray, known: IntArray) -> IntArray:
    """Find where each id [k] stands among `known`, int64 [n] sorted; int64 [k], -1 where it does not."""
    place, is_known = find_ids(known, image_id)
    position: IntArray = np.where(is_known, place, -1)
    return position
