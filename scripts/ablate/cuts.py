"""How the training chips of each row come about. Every function here makes the chip data sets of a row below
DATA/chips, unless they are there, and returns their folders: one, or one for each epoch.

Rows that ask for the same share a folder, and with it the run of the RPN that finds the negatives.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.coco.read import read_coco
from pipeline.coco.source import Source
from pipeline.commands.chips import chips
from pipeline.commands.negatives import negatives
from pipeline.dataset.build_file import (
    NAME,
    NEGATIVES,
    POSITIVES,
    build_fingerprint,
    build_versions,
    read_build,
    write_build,
)
from pipeline.dataset.cutting import cut_shard
from pipeline.dataset.job import ShardJob, Target
from pipeline.dataset.shards import shard_files
from pipeline.images.chip import codec
from pipeline.images.decode import decoders
from pipeline.planning.cover import window_end
from pipeline.planning.geometry import Windows
from pipeline.planning.mine import random_span
from pipeline.planning.plan import chip_rows, span_columns
from pipeline.planning.scales import scale_factors
from pipeline.storage.parquet import read_frame
from schemas.build import Build
from schemas.codes import STATUS_NAMES, Status
from schemas.settings import ChipSettings, Settings, load_settings
from schemas.tables import CATEGORIES
from scripts.ablate.data import Data
from trainer.training.make_proposals import make_proposals

SETTINGS = Path(__file__).with_name("settings.yaml")
PLANS = 5  # of `cut_anew`: one for each pass over the chips that a run makes
OVERLAP = 0.25
"""Share of a tile that it has in common with its neighbour. SAHI's default is 0.2; with a quarter, nearly every object
lies whole in some tile of a scale whose range holds it."""
SECONDS = "seconds.json"
"""What it took to make a data set, in it: seconds of all cores together, by stage."""


def positives(data: Data, settings: Settings) -> list[Path]:
    """The chips of `sniper chips`, without negatives."""
    out = _folder(data, "chips", settings.chips)
    with _timed(out, "chips"):
        chips(data.train, data.train_images, out, settings)
    return [out]


def mined(data: Data, settings: Settings) -> list[Path]:
    """The whole method: positives, a short run of the RPN, and the negatives mined from its proposals."""
    (out,) = positives(data, settings)
    if not (out / NEGATIVES / NAME).exists():
        with _timed(out, "negatives"):
            proposals = make_proposals(out, data.train_images, settings)
            negatives(out, proposals=proposals, settings=settings)
    return [out]


def cut_anew(data: Data, settings: Settings) -> list[Path]:
    """One plan for each epoch, as the original cuts anew in every epoch: its windows lie elsewhere within their free
    play, and the same proposals are mined beside them."""
    (first,) = mined(data, settings)
    folders = [first]
    for seed in range(1, PLANS):
        chip_settings = settings.chips.model_copy(update={"seed": seed})
        anew = settings.model_copy(update={"chips": chip_settings})
        (out,) = positives(data, anew)
        if not (out / NEGATIVES / NAME).exists():
            negatives(out, proposals=_proposals(first, out.with_suffix(".proposals")), settings=anew)
        folders.append(out)
    return folders


def random_negatives(data: Data, settings: Settings) -> list[Path]:
    """The positives of the whole method, and of each image as many negatives, in windows drawn at random."""
    (whole,) = mined(data, settings)
    out = _folder(data, "random", settings.chips)
    if (out / NEGATIVES / NAME).exists():
        return [out]
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns(NEGATIVES, "proposals", ".*"))
    (out / SECONDS).write_text(json.dumps({"chips": seconds(whole)["chips"]}))  # it needs no RPN
    source = read_coco(data.train)
    span = span_columns(source, 0, source.num_images, settings.chips)
    mined_windows = _windows(whole / NEGATIVES, source)
    counts = np.bincount(mined_windows.image, minlength=source.num_images)
    drawn = [_take(mined_windows, counts[mined_windows.image] < 0)]  # none of them
    for count in np.unique(counts[counts > 0]).tolist():
        windows = random_span(span, count, settings.chips.size, settings.chips.seed).windows
        drawn.append(_take(windows, counts[windows.image] == count))
    _cut_pool(data, source, out, settings.chips, _joined(drawn), read_build(out).fingerprint)
    return [out]


def same_windows(data: Data, settings: Settings) -> list[Path]:
    """The windows of the whole method, with every box that lies whole in one a target there, whatever its size."""
    paper = settings.model_copy(update={"chips": load_settings(SETTINGS).chips})
    (whole,) = mined(data, paper)
    source = read_coco(data.train)
    pool = _windows(whole / NEGATIVES, source)
    return [_write(data, "ranges-off", settings.chips, _windows(whole / POSITIVES, source), pool)]


def pyramid_tiles(data: Data, settings: Settings) -> list[Path]:
    """The whole pyramid in tiles of a chip's size; each scale learns from the sizes of its range, as in SNIP."""
    return [_write(data, "pyramid", settings.chips, _tiles(read_coco(data.train), settings.chips))]


def tiles_of_all(data: Data, settings: Settings) -> list[Path]:
    """Tiles as SAHI cuts them: every box is a target in every tile that shows a tenth of it, also where it is cut."""
    return [_write(data, "tiles", settings.chips, _tiles(read_coco(data.train), settings.chips), cut_boxes_learn=True)]


def _folder(data: Data, name: str, settings: ChipSettings) -> Path:
    digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:8]
    return data.folder / "chips" / f"{name}-{digest}"


@contextmanager
def _timed(out: Path, stage: str) -> Iterator[None]:
    """Note in a data set what a stage takes of the processor's time; a stage that is done costs nothing more."""
    began = time.process_time()
    yield
    taken = {stage: time.process_time() - began} | seconds(out)
    (out / SECONDS).write_text(json.dumps(taken))


def seconds(out: Path) -> dict[str, float]:
    """What each stage of making a data set took, seconds of all cores together."""
    path = out / SECONDS
    taken: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    return taken


def pyramid_pixels(data: Data) -> int:
    """Return the pixels of all training images at all scales of the whole method, the cost of a pass without chips."""
    source = read_coco(data.train)
    factors = scale_factors(load_settings(SETTINGS).chips, source.width, source.height)
    return int(((source.width * source.height)[:, None] * factors**2).sum())


def _proposals(of: Path, copy: Path) -> Path:
    """Return a copy of the RPN's proposals without what ties them to the positives that it was trained on."""
    copy.mkdir(exist_ok=True)
    frames = [read_frame(part) for part in sorted((of / "proposals").glob("part-*.parquet"))]
    for index, frame in enumerate(frames):
        frame.write_parquet(copy / f"{index}.parquet")
    return copy


def _windows(folder: Path, source: Source) -> Windows:
    """Read where the chips of a build lie."""
    frames = [read_frame(path) for path in shard_files(folder, ".parquet")]
    image = [np.searchsorted(source.image_id, frame["image_id"].to_numpy()) for frame in frames]
    return Windows(
        np.concatenate(image).astype(np.int64),
        np.concatenate([frame["scale_index"].to_numpy() for frame in frames]),
        np.concatenate([frame.select("x1", "y1", "x2", "y2").to_numpy() for frame in frames]),
    )


def _take(windows: Windows, kept: npt.NDArray[np.bool_]) -> Windows:
    return Windows(windows.image[kept], windows.scale_index[kept], windows.window[kept])


def _joined(parts: list[Windows]) -> Windows:
    """Join windows, ordered by image and scale."""
    image, scale_index, window = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((scale_index, image))  # stable
    return Windows(image[order], scale_index[order], window[order])


def _tiles(source: Source, settings: ChipSettings) -> Windows:
    """Cover every scale of every image with tiles of a chip's size, evenly spread, that overlap by OVERLAP or more."""
    span = span_columns(source, 0, source.num_images, settings)
    rows = [
        (m, s, (x, y, window_end(x, width, side), window_end(y, height, side)))
        for m, (width, height) in enumerate(zip(span.widths.astype(float), span.heights.astype(float), strict=True))
        for s, side in enumerate(settings.size / span.factors[m])
        for y in tile_starts(height, side)
        for x in tile_starts(width, side)
    ]
    image, scale_index, window = zip(*rows, strict=True)
    return Windows(np.array(image), np.array(scale_index, np.int8), np.array(window))


def tile_starts(extent: float, side: float) -> list[float]:
    """Return where the fewest tiles of a side begin that cover [0, extent], evenly spread, at whole pixels but the
    last; neighbours share OVERLAP of a side, less at most a pixel."""
    if extent <= side:
        return [0.0]
    count = int(np.ceil((extent - OVERLAP * side) / ((1 - OVERLAP) * side)))
    return [*np.floor(np.linspace(0, extent - side, count))[:-1].tolist(), extent - side]


def _write(
    data: Data,
    name: str,
    settings: ChipSettings,
    windows: Windows,
    pool: Windows | None = None,
    *,
    cut_boxes_learn: bool = False,
) -> Path:
    """Cut given windows into a data set that the trainer reads like one of `sniper chips`.

    Args:
        data: where the images and their boxes are.
        name: of the folder.
        settings: of the chips; the ranges say what is a target in which chip.
        windows: the positives.
        pool: the negatives, if there are any.
        cut_boxes_learn: make targets of the boxes in range that a window cuts, too.

    Returns:
        The folder.
    """
    out = _folder(data, name, settings)
    if (out / NAME).exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    fingerprint = build_fingerprint(
        [name, settings.model_dump_json(), hashlib.sha256(windows.window.tobytes()).hexdigest()]
    )
    with _timed(out, "chips"):
        source = read_coco(data.train)
        rows = [{"id": id_, "name": label, "label": n} for n, (id_, label) in enumerate(source.categories, 1)]
        pq.write_table(pa.Table.from_pylist(rows, schema=CATEGORIES), out / "categories.parquet")
        _cut(data, source, out, POSITIVES, settings, windows, cut_boxes_learn=cut_boxes_learn)
        if pool is not None:
            _cut_pool(data, source, out, settings, pool, fingerprint)
    record = {"chips": settings.model_dump(mode="json")}
    images = str(data.train_images)
    write_build(out / NAME, Build(fingerprint, record, 1, {}, {}, build_versions(), images=images))
    return out


def _cut_pool(data: Data, source: Source, out: Path, settings: ChipSettings, windows: Windows, positives: str) -> None:
    """Cut windows into the pool of a data set whose positives have the given fingerprint."""
    _cut(data, source, out, NEGATIVES, settings, windows)
    record = {"chips": settings.model_dump(mode="json")}
    build = Build(f"pool of {positives}", record, 1, {}, {}, build_versions(), positives=positives)
    write_build(out / NEGATIVES / NAME, build)


def _cut(
    data: Data,
    source: Source,
    out: Path,
    folder: str,
    settings: ChipSettings,
    windows: Windows,
    *,
    cut_boxes_learn: bool = False,
) -> None:
    """Cut windows into one shard of the positives or of the pool."""
    span = span_columns(source, 0, source.num_images, settings)
    rescued = np.full(len(span.boxes), -1, np.int64)
    rows = chip_rows(source, span, folder.removesuffix("s"), windows, rescued, settings)
    if cut_boxes_learn:
        rows = _with_cut_targets(rows)
    (out / folder).mkdir()
    recorded = settings.model_dump(mode="json")
    target = Target(out, folder, data.train_images, settings, recorded, codec(), decoders())
    record = cut_shard(ShardJob(target, "chips-00000", source.images(0, source.num_images), rows), out.name)
    assert not record.rejects, record.rejects


def _with_cut_targets(rows: pa.Table) -> pa.Table:
    """Return manifest rows in which boxes that a window cuts are valid."""
    boxes = rows["boxes"].combine_chunks()
    values = boxes.flatten()
    status = values.field("status")
    status = pc.if_else(pc.equal(status, STATUS_NAMES[Status.CUT]), STATUS_NAMES[Status.VALID], status)
    fields = [status if field.name == "status" else values.field(field.name) for field in values.type]
    struct = pa.StructArray.from_arrays(fields, fields=list(values.type))
    lists = pa.ListArray.from_arrays(boxes.offsets, struct)
    return rows.set_column(rows.schema.get_field_index("boxes"), rows.schema.field("boxes"), lists)
