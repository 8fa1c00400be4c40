"""Proposals of the RPN alone on all training images at all scales, unflipped (docs/method.md, 5.2): OUT/proposals."""

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.coco import SourceImage
from pipeline.dataset.build_file import read_build
from pipeline.dataset.ledger.read import kept_images
from pipeline.dataset.proposals import PARTS_KEY, numbered_parts
from pipeline.engines.progress import Progress
from pipeline.pyramid.reading import open_files
from pipeline.pyramid.search import SPAN, SearchLog, search_views, split_spans
from pipeline.pyramid.views import Viewed, to_source
from pipeline.storage import Location, atomic_file, make_folder, read_bytes, remove
from pipeline.storage.parquet import read_metadata
from schemas.errors import DataError
from schemas.settings import DetectSettings, Settings
from schemas.tables import PROPOSALS
from trainer.inference.opening import Inference, allocator, as_network, open_inference
from trainer.model import propose
from trainer.runtime.ranks import asked_to_stop, joined, stop_together, wait_for_all

RPN_KEY = b"sniper-rpn"
MOST = 300  # proposals per view; the `proposals` setting of the network may give fewer (docs/method.md, 5.2)


def extract_proposals(data: Location, checkpoint: Location, images: Location, options: DetectSettings) -> float:
    """Write the RPN's proposals on all images of a data set as data/proposals/part-*.parquet, schema PROPOSALS.

    There is one part for each span of images. Parts that were made with the same checkpoint stay; only what is missing
    is made. Under torchrun the ranks share the parts.

    Args:
        data: what `sniper chips` wrote.
        checkpoint: file of a run that was trained on it.
        images: folder of the source images.
        options: how images are read.

    Returns:
        Share of this rank's time that the network waited for pixels, 0 to 1.

    Raises:
        DataError: the checkpoint or the data set cannot be read, or images of the chips cannot be read now.
    """
    positives = read_build(data)
    sources = kept_images(data)
    folder = data / "proposals"
    make_folder(folder)
    identity = hashlib.sha256(read_bytes(checkpoint)).hexdigest().encode()
    if options.max_side != DetectSettings().max_side:  # larger or smaller views give other proposals
        identity += f", views up to {options.max_side} px".encode()
    parts = json.dumps({"positives": positives.fingerprint, "length": SPAN}).encode()
    about = {RPN_KEY: identity, PARTS_KEY: parts}
    spans = dict(enumerate(split_spans(len(sources))))
    with joined() as rank:
        own = {i: span for i, span in spans.items() if i % rank.count == rank.index}
        todo = {i: span for i, span in own.items() if not _is_made(_part(folder, i), identity)}
        _, inference = open_inference(checkpoint, Settings(detect=options), rank.device)
        log = SearchLog()
        collected: dict[int, list[pa.Table]] = {i: [] for i in todo}
        with Progress("proposals", sum(map(len, todo.values())), "images") as progress:
            for position, rows in propose_images(inference, list(todo.values()), sources, images, log):
                part = position // SPAN
                progress.add(1)
                if asked_to_stop():
                    break
                if rows is None:  # its part is not written, so that another run comes back to it
                    continue
                collected[part].append(rows)
                if len(collected[part]) == len(todo[part]):
                    _write(_part(folder, part), pa.concat_tables(collected.pop(part)), about)
        stop_together("the proposals that are done are kept")
        wait_for_all()
        if rank.is_first:
            for number, path in numbered_parts(folder).items():
                if number not in spans:
                    remove(path)
        if log.rejects:
            raise DataError(
                f"{images}: {len(log.rejects)} images that the chips were cut from cannot be read now, first "
                f"{log.rejects[0].message}; give the same folder as --images, or run `sniper chips` again"
            )
        return log.data_wait


def propose_images(
    inference: Inference, spans: Sequence[range], images: Sequence[SourceImage], root: Location, log: SearchLog
) -> Iterator[tuple[int, pa.Table | None]]:
    """Find the RPN's proposals on some images at all scales.

    Args:
        inference: the network, and how it is run.
        spans: positions among `images`; views of images of one span share batches.
        images: what can be searched.
        root: folder that their file names are relative to.
        log: takes the times and a row for each refused image, before the next image is yielded.

    Yields:
        For each image of the spans its position and a table of schema PROPOSALS, in the order of scales and tiles,
        the best MOST of each view, best first; None in place of the table where the image was refused. Every box has
        an area.
    """
    network, chips = as_network(inference, propose), inference.chips
    opened, allocate = open_files(images, root, chips.max_pixels), allocator(inference.device)
    for viewed in search_views(network, images, opened, spans, chips, inference.options, log, allocate):
        yield viewed.image, _rows(viewed, images[viewed.image]) if viewed.views else None


def _part(folder: Location, index: int) -> Location:
    return folder / f"part-{index:05d}.parquet"


def _is_made(path: Location, identity: bytes) -> bool:
    try:
        return read_metadata(path).get(RPN_KEY) == identity
    except DataError:
        return False


def _rows(viewed: Viewed, source: SourceImage) -> pa.Table:
    parts = []
    for view, (boxes, scores) in viewed.views:
        in_source = to_source(boxes, view)
        # the last pixel of a view may lie beyond the image (content_size rounds up): what is all in it vanishes
        kept = np.flatnonzero((in_source[:, 2:] > in_source[:, :2]).all(axis=1))[:MOST]
        in_source = in_source[kept]
        columns = [np.full(len(in_source), source.image_id), np.full(len(in_source), view.scale_index, np.int8)]
        columns += [*np.ascontiguousarray(in_source.T), scores[kept]]
        parts.append(pa.table(columns, schema=PROPOSALS))
    return pa.concat_tables(parts)


def _write(path: Location, rows: pa.Table, about: dict[bytes, bytes]) -> None:
    table = rows.sort_by([("image_id", "ascending"), ("scale_index", "ascending")])
    with atomic_file(path) as file:
        pq.write_table(table.replace_schema_metadata(about), file, compression="zstd")
