"""One image of a data set with its objects and the windows that its chips were cut from."""

from collections.abc import Sequence

import polars as pl
from PIL import Image, ImageDraw

from pipeline.coco import Reject, SourceImage
from pipeline.dataset.build_file import read_build
from pipeline.images.chip import cut_chip
from pipeline.images.decode import ImageRefusedError
from pipeline.images.pictures import Stroke, draw_box
from pipeline.images.sources import image_folder, open_source
from pipeline.insight.chip_pictures import Chip, corners
from pipeline.insight.manifests import scan
from pipeline.storage import Location, location
from schemas.errors import DataError, UsageError
from schemas.tables import CORNERS

MOST_HEIGHT = 1_200  # of the picture, pixels
OBJECT = Stroke("#ffffff", 1)
WINDOW_COLORS = ("#ff5252", "#6b8cff", "#c58bff", "#d0a878", "#7fffd4")
"""Of windows, by their scale; none is the colour of a status."""
DASH = {"positive": None, "negative": 6}


def find_image(data: Location, image_id: int) -> SourceImage:
    """Find an image of a data set by its id.

    Raises:
        UsageError: the data set knows no such image.
    """
    found = scan([data / "images.parquet"]).filter(pl.col("image_id") == image_id).collect()
    if not len(found):
        raise UsageError(f"{data}: no image {image_id} in images.parquet, which lists all")
    return SourceImage(*found.select("image_id", "file_name", "width", "height").row(0))


def draw_windows(
    data: Location, source: SourceImage, images: Location | str | None, chips: Sequence[Chip], width: int
) -> Image.Image:
    """Draw an image with its objects and the windows of some of its chips, at most `width` and MOST_HEIGHT pixels.

    Args:
        data: the data set.
        source: the image, as `find_image` found it.
        images: folder of the images; None: the one that the build's record names.
        chips: whose windows are drawn.
        width: of the picture, pixels.

    Raises:
        UsageError: there is no such folder.
        DataError: the image cannot be read.
    """
    build = read_build(data)
    folder = location(images) if images is not None else location(build.images or "")
    picture = open_source(image_folder(folder), source, build.settings["chips"]["max_pixels"])
    if isinstance(picture, Reject):
        raise DataError(f"{folder}: {picture.message}")
    zoom = min(width / source.width, MOST_HEIGHT / source.height)
    size = max(1, round(source.width * zoom)), max(1, round(source.height * zoom))
    try:
        drawn = Image.fromarray(cut_chip(picture, source.whole, zoom, *size)[:, :, :3].copy())
    except ImageRefusedError as error:  # a large TIFF is read here, and not when it is opened
        raise DataError(f"{folder}: {source.file_name}: {error.message}") from error
    draw = ImageDraw.Draw(drawn)
    objects = scan([data / "annotations.parquet"]).filter(pl.col("image_id") == source.image_id).drop_nulls("x1")
    for box in objects.select(CORNERS).collect().iter_rows():
        draw_box(draw, corners(list(box), zoom), OBJECT)
    for chip in sorted(chips, key=lambda chip: -chip["scale_index"]):  # the smallest windows lie on top
        draw_box(draw, corners([chip[name] for name in CORNERS], zoom), _stroke(chip))
    return drawn


def window_strokes(chips: Sequence[Chip]) -> dict[str, Stroke]:
    """Return what draw_windows draws, for a legend."""
    of_windows = {f"{chip['kind']} window, scale {chip['scale_index']}": _stroke(chip) for chip in chips}
    return {"object in the image": OBJECT, **of_windows}


def _stroke(chip: Chip) -> Stroke:
    return Stroke(WINDOW_COLORS[chip["scale_index"] % len(WINDOW_COLORS)], 2, DASH[chip["kind"]])
