"""Read ready proposals, Parquet or COCO results, into flat columns sorted by image, and refuse malformed ones.

A row that is wrong says that the file is not what it is taken for (of another data set, or in another frame), so the
whole file is refused and its wrong rows are named. Proposals of images that were refused when the chips were cut are
left out.
"""

import json
from collections.abc import Iterator, Set
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.coco.source import find_ids
from pipeline.planning.mine import PooledProposals
from pipeline.storage import Location, files_in, is_file, is_folder, local_copy, read_bytes
from pipeline.storage.parquet import read_metadata
from schemas.arrays import Float32Array, FloatArray, IntArray
from schemas.errors import DataError, UsageError
from schemas.tables import PROPOSALS

PARTS_KEY = b"sniper-parts"
"""In the metadata of files that the RPN stage wrote: JSON with `positives`, the fingerprint of the chips that the RPN
was trained on, and `length`, the images of a part."""

FAULT_LIMIT = 20  # lines of an error message
BATCH_ROWS = 1 << 20
COLUMNS = [name for name in PROPOSALS.names if name != "scale_index"]
OVERHANG = 1.0
"""A box may reach beyond its image by this many source pixels, and is clipped: float32 and files that round to
whole pixels bring that about. More means coordinates of another frame."""
EXACT = 2.0**53
"""Up to here every whole number is a float of its own."""
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


class _Batch(NamedTuple):
    """Rows of one file.

    Attributes:
        first_row: number of the first row in its file, from 0.
        image_id: int64 [k], ids as the file has them.
        box: float64 [k, 4], x1 y1 x2 y2, source pixels; NaN stands for null.
        score: float64 [k]; NaN stands for null.
        faults: what is wrong with rows that have no numbers at all, by the row's number in the file.
    """

    first_row: int
    image_id: IntArray
    box: FloatArray
    score: FloatArray
    faults: dict[int, str]


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
        for batch in _batches(file):
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
        raise DataError(f"{path}: {num_faults} malformed proposals:\n" + "\n".join(faults) + more)
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


def _batches(file: Location) -> Iterator[_Batch]:
    if file.suffix.lower() == ".json":
        yield _json_batch(file)
        return
    with local_copy(file) as path:
        try:
            reader = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{file}: is not Parquet, nor named *.json: {error}") from error
        _check_columns(file, reader.schema_arrow)
        yield from _parquet_batches(reader, file)


def _parquet_batches(reader: Any, file: Location) -> Iterator[_Batch]:
    row = 0
    try:
        for batch in reader.iter_batches(BATCH_ROWS, columns=COLUMNS):
            columns = [batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False) for name in COLUMNS[1:]]
            ids = batch.column("image_id")
            nulls = np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)).tolist()
            faults = {row + i: "image_id is null" for i in nulls}
            if pa.types.is_floating(ids.type):
                values = ids.cast(pa.float64()).fill_null(0).to_numpy()
                is_id = (values == np.floor(values)) & (np.abs(values) <= EXACT)
                faults |= {
                    row + i: f"image_id is {values[i]:g}; expected an integer" for i in np.flatnonzero(~is_id).tolist()
                }
                image_id = np.where(is_id, values, 0).astype(np.int64)
            else:
                image_id = ids.fill_null(0).cast(pa.int64()).to_numpy()
            yield _Batch(row, image_id, np.stack(columns[:4], axis=1), columns[4], faults)
            row += len(batch)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file}: cannot be read beyond row {row}: {error}") from error


def _check_columns(file: Location, schema: pa.Schema) -> None:
    faults = []
    for name in COLUMNS:
        kind = schema.field(name).type if name in schema.names else None
        expected = "integers" if name == "image_id" else "numbers"
        if kind is None:
            faults.append(f"column {name} is missing")
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            faults.append(f"column {name} is {kind}; expected {expected}")
    if faults:
        raise DataError(
            f"{file}: wrong columns: {'; '.join(faults)}. Expected {', '.join(COLUMNS)}: boxes in source pixels, "
            f"x2 and y2 exclusive; found {', '.join(schema.names)}"
        )


class _Result(msgspec.Struct, gc=False):
    """One record of COCO results, of which anything may stand in any field."""

    image_id: Any = None
    bbox: Any = None
    score: Any = None


def _json_batch(file: Location) -> _Batch:
    records = _parse(file)
    image_id = np.zeros(len(records), np.int64)
    numbers = np.zeros((len(records), 5))
    faults: dict[int, str] = {}
    for row, record in enumerate(records):
        if not isinstance(record, _Result):
            faults[row] = f"is {record!r:.80}; expected an object"
        elif (number := _as_id(record.image_id)) is None:
            faults[row] = f"image_id is {record.image_id!r:.80}; expected an integer"
        elif type(record.bbox) is not list or len(record.bbox) != 4 or not all(map(_is_number, record.bbox)):
            faults[row] = f"bbox is {record.bbox!r:.80}; expected four numbers [x, y, width, height]"
        elif not _is_number(record.score):
            faults[row] = f"score is {record.score!r:.80}; expected a number"
        else:
            image_id[row], numbers[row] = number, [*record.bbox, record.score]
    box = np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:4]], axis=1)
    return _Batch(0, image_id, box, numbers[:, 4], faults)


def _as_id(value: Any) -> int | None:
    """Return a value as an id. Some programs write whole numbers as floats, such as 1.0; None where it is no id."""
    if type(value) is float and value.is_integer() and abs(value) <= EXACT:
        return int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _is_number(value: Any) -> bool:
    """Tell whether a value is a number. NaN is one, to be named as such; what no float holds is none."""
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)


def _parse(file: Location) -> list[Any]:
    try:
        data = read_bytes(file)
        try:
            return msgspec.json.decode(data, type=list[_Result | bool | int | float | str | list[Any] | None])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            loaded = json.loads(data)  # NaN and Infinity are not JSON but occur in the wild
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is not JSON: {error}; expected COCO results or Parquet") from error
    if not isinstance(loaded, list):
        raise DataError(
            f"{file}: expected COCO results, a list of {{image_id, bbox, score}}, found {type(loaded).__name__}"
        )
    return [msgspec.convert(record, _Result) if isinstance(record, dict) else record for record in loaded]


def _faults(batch: _Batch, extents: Extents) -> dict[int, str]:
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
