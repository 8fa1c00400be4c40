"""`sniper show`: draw chips, read back from the shards, or one image with its windows, so that the eye can check."""

from collections.abc import Iterator, Sequence

import polars as pl
from PIL import Image

from pipeline.dataset.build_file import NEGATIVES
from pipeline.dataset.ledger.read import read_categories
from pipeline.dataset.shards import shard_files
from pipeline.images.pictures import STATUS_STROKES, picture_format, write_picture
from pipeline.insight.chip_pictures import PROPOSAL, SHOWN, Chip, Chosen, caption, draw_chip, read_chip, sample_chips
from pipeline.insight.image_picture import draw_windows, find_image, window_strokes
from pipeline.insight.manifests import scan
from pipeline.insight.proposals import add_proposals
from pipeline.insight.sheet import GAP, Row, draw_sheet, sheet_width
from pipeline.storage import Location, location
from schemas.codes import STATUS_NAMES
from schemas.errors import DataError, UsageError, refuse_text, refuse_unknown
from schemas.wording import interval, shell

MOST_CHIPS = 60  # of one kind and scale, on the sheet of one image


def show(
    data: Location | str,
    out: Location | str,
    *,
    kind: str | None = None,
    image: int | None = None,
    images: Location | str | None = None,
    classes: Sequence[str] = (),
    statuses: Sequence[str] = (),
    columns: int = 6,
    tile: int = 320,
    seed: int = 0,
) -> int:
    """Draw sampled chips, one row per scale; or one image with its windows, and its chips below it.

    Boxes are coloured by status. Negative chips are drawn with the proposals of their scale's range that lie whole in
    them, where the file that they were mined from is still there.

    Args:
        data: a chip data set.
        out: picture to write, in the format that its suffix says.
        kind: positive or negative; None: positive, and both of one image.
        image: id of the one image; None: chips of the whole data set.
        images: folder of the images, where it is not the one that the build's record names; for `image` alone.
        classes: names of classes: only their boxes are drawn, and only chips that hold one; none given: all.
        statuses: the same for statuses.
        columns: chips side by side.
        tile: side of a drawn chip, pixels.
        seed: another seed draws other chips.

    Returns:
        The number of chips drawn.

    Raises:
        UsageError: there are no such chips, classes, statuses or image, `images` was given without `image`, or the
            name of the picture says no format.
        DataError: a chip or the image cannot be read.
    """
    if images is not None and image is None:
        raise UsageError("show: --images is for --image, the id of one image to draw; leave it out, or give both")
    refuse_text("classes", classes)
    refuse_text("statuses", statuses)
    for name in statuses:
        refuse_unknown("statuses", name, STATUS_NAMES)
    if kind is not None:
        refuse_unknown("kind", kind, ("positive", "negative"))
    data, out = location(data), location(out)
    picture_format(out)
    frames = {one: _chips(data, one) for one in _kinds(data, kind, image)}
    names = dict(read_categories(data))
    chosen = Chosen(statuses or STATUS_NAMES, _ids(data, classes, names) if classes else None)
    if classes or statuses:
        frames = {one: frame.filter(chosen.is_held()) for one, frame in frames.items()}
    try:
        source = None if image is None else find_image(data, image)
        found = list(_sampled(data, frames, image, columns if image is None else MOST_CHIPS, seed))
    except pl.exceptions.PolarsError as error:
        command = shell("sniper", "verify", data)
        raise DataError(f"{data}: a manifest is damaged: {error}; `{command}` names it") from error
    chips = [chip for _, sample in found for chip in sample]
    if not chips:
        raise UsageError(_nothing(data, list(frames), image, classes, statuses))
    strokes = {name: stroke for name, stroke in STATUS_STROKES.items() if name in chosen.statuses}
    if any("proposals" in chip for chip in chips):
        strokes[f"proposal (the {SHOWN} best)"] = PROPOSAL
    head: Image.Image | None = None
    if source is not None:
        head = draw_windows(data, source, images, chips, sheet_width(columns, tile) - 2 * GAP)
        strokes |= window_strokes(chips)
    rows = [
        Row(title, [(draw_chip(read_chip(data, chip), chip, names, tile, chosen), caption(chip)) for chip in sample])
        for title, sample in found
    ]
    write_picture(out, draw_sheet(rows, columns, tile, strokes, head))
    return len(chips)


def _sampled(
    data: Location, frames: dict[str, pl.LazyFrame], image: int | None, most: int, seed: int
) -> Iterator[tuple[str, list[Chip]]]:
    """Draw chips of each kind and scale, at most so many; yield the title of their row, and the chips.

    Args:
        data: the data set.
        frames: the chips to draw from, by kind.
        image: id of the one image whose chips are drawn; None: those of all.
        most: chips of a row.
        seed: another seed draws other chips.
    """
    for kind, frame in frames.items():
        if image is not None:
            frame = frame.filter(pl.col("image_id") == image)
        for index, count in sorted(frame.group_by("scale_index").len().collect().iter_rows()):
            sample = sample_chips(frame.filter(pl.col("scale_index") == index), most, seed)
            if kind == "negative":
                add_proposals(data, sample)
            yield _title(sample[0], count), sample


def _kinds(data: Location, kind: str | None, image: int | None) -> list[str]:
    if kind is not None:
        return [kind]
    pool = image is not None and bool(shard_files(data / NEGATIVES, ".parquet"))
    return ["positive", "negative"] if pool else ["positive"]


def _chips(data: Location, kind: str) -> pl.LazyFrame:
    manifests = shard_files(data / f"{kind}s", ".parquet")
    if not manifests:
        command = shell("sniper", *(["chips", "--out"] if kind == "positive" else ["negatives", "--data"]), data)
        raise UsageError(f"{data}: holds no {kind} chips; `{command}` writes them")
    return scan(manifests)


def _ids(data: Location, classes: Sequence[str], names: dict[int, str]) -> list[int]:
    """Return the category ids of classes that are given by name."""
    if unknown := [name for name in classes if name not in names.values()]:
        known = ", ".join(list(names.values())[:20])
        raise UsageError(f"{data}: has no class {', '.join(unknown)}; it has {known}{', ...' * (len(names) > 20)}")
    return [id_ for id_, name in names.items() if name in classes]


def _nothing(
    data: Location, kinds: list[str], image: int | None, classes: Sequence[str], statuses: Sequence[str]
) -> str:
    """Say which chips were looked for in vain."""
    of = f" of image {image}" if image is not None else ""
    held = []
    if classes:
        held.append(f"of class {' or '.join(classes)}")
    if statuses:
        held.append(f"with status {' or '.join(statuses)}")
    box = f" with a box {' '.join(held)}" if held else ""
    see = "see images.parquet and rejects.parquet, and `manifests` in docs/inspect.md"
    return f"{data}: its shards hold no {' or '.join(kinds)} chips{of}{box} at all; {see}"


def _title(chip: Chip, count: int) -> str:
    sizes = interval(chip["range_min"], chip["range_max"])
    return f"scale {chip['scale_index']}: {count} {chip['kind']} chips, valid sizes {sizes} px"
