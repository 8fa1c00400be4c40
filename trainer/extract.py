"""Proposals of the RPN alone on all training images at all scales, unflipped (facts §5.2): OUT/proposals."""

import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.coco import SourceImage
from pipeline.progress import Progress
from pipeline.storage import atomic_file
from schemas.detect import DetectSettings
from schemas.errors import DataError
from schemas.settings import ChipSettings
from schemas.tables import PROPOSALS
from trainer.checkpoint import read_checkpoint
from trainer.model import propose
from trainer.ranks import joined, wait_for_all
from trainer.run import make_detector
from trainer.views import RUN, Clock, Viewed, run_views, to_source

PARTS_KEY = b"sniper-rpn"
MOST = 300  # per view; the `proposals` setting of the network may give fewer (facts §5.2)


def extract_proposals(data: Path, checkpoint: Path, images: Path, options: DetectSettings) -> float:
    """Write data/proposals/part-*.parquet, schema PROPOSALS, a part per run of images, doing only what is missing.

    Under torchrun the ranks share the parts. Each part names the checkpoint it was made with.

    Args:
        data: what `sniper chips` wrote; checkpoint: of a run on it; images: folder of the source images.

    Returns:
        Share of this rank's time that the network waited for pixels.

    Raises:
        DataError: the checkpoint or the data set cannot be read.
    """
    chips = ChipSettings.model_validate(json.loads((data / "run.json").read_bytes())["settings"]["chips"])
    sources = kept_images(data)
    folder = data / "proposals"
    folder.mkdir(exist_ok=True)
    identity = hashlib.sha256(checkpoint.read_bytes()).hexdigest().encode()
    runs = {i: range(start, min(start + RUN, len(sources))) for i, start in enumerate(range(0, len(sources), RUN))}
    with joined() as rank:
        mine = {i: run for i, run in runs.items() if i % rank.count == rank.index}
        todo = {i: run for i, run in mine.items() if not _is_made(_part(folder, i), identity)}
        model = make_detector(read_checkpoint(checkpoint)).to(rank.device).eval()
        clock = Clock()
        collected: dict[int, list[pa.Table]] = {i: [] for i in todo}
        with Progress("proposals", sum(map(len, todo.values())), "images") as progress, torch.inference_mode():

            def forward(pixels: torch.Tensor, sizes: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
                dtype = torch.bfloat16
                with torch.autocast(rank.device.type, dtype, enabled=rank.device.type == "cuda"):
                    return [(boxes.cpu(), scores.cpu()) for boxes, scores in propose(model, pixels, sizes)]

            for viewed in run_views(forward, list(todo.values()), sources, images, chips, options, rank.device, clock):
                part = viewed.image // RUN
                collected[part].append(_rows(viewed, sources[viewed.image]))
                progress.add(1)
                if len(collected[part]) == len(todo[part]):
                    _write(_part(folder, part), pa.concat_tables(collected.pop(part)), identity)
        wait_for_all()
        if rank.is_first:
            for path in folder.glob("part-*.parquet"):
                if int(path.stem.removeprefix("part-")) not in runs:
                    path.unlink()
        if clock.rejects:
            raise DataError(
                f"{images}: {len(clock.rejects)} images that the chips were cut from cannot be read now, first "
                f"{clock.rejects[0].message}; give the same folder as --images, or run `sniper chips` again"
            )
        return clock.data_wait


def kept_images(data: Path) -> list[SourceImage]:
    """The images of a data set that were not refused, by id.

    Raises:
        DataError: its ledger cannot be read.
    """
    path = data / "images.parquet"
    try:
        table = pl.read_parquet(path).filter(pl.col("state") == "kept").sort("image_id")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: cannot be read: {error}; run `sniper chips` again") from error
    return [SourceImage(*row) for row in table.select("image_id", "file_name", "width", "height").iter_rows()]


def _part(folder: Path, index: int) -> Path:
    return folder / f"part-{index:05d}.parquet"


def _is_made(path: Path, identity: bytes) -> bool:
    try:
        return (pq.read_metadata(path).metadata or {}).get(PARTS_KEY) == identity
    except (OSError, pa.ArrowInvalid):
        return False


def _rows(viewed: Viewed[tuple[torch.Tensor, torch.Tensor]], source: SourceImage) -> pa.Table:
    parts = []
    for view, (boxes, scores) in sorted(viewed.views, key=lambda item: (item[0].scale_index, item[0].window)):
        in_source = to_source(boxes[:MOST], view).numpy()
        columns = [np.full(len(in_source), source.image_id), np.full(len(in_source), view.scale_index, np.int8)]
        columns += [*np.ascontiguousarray(in_source.T), scores[:MOST].numpy()]
        parts.append(pa.table(columns, schema=PROPOSALS))
    return pa.concat_tables(parts) if parts else PROPOSALS.empty_table()


def _write(path: Path, rows: pa.Table, identity: bytes) -> None:
    table = rows.sort_by([("image_id", "ascending"), ("scale_index", "ascending")])
    with atomic_file(path) as file:
        pq.write_table(table.replace_schema_metadata({PARTS_KEY: identity}), file, compression="zstd")
