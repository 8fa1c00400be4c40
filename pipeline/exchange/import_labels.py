"""`sniper import`: the labels of other formats as one COCO JSON file. Images stay where they are."""

import hashlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from pipeline.coco import Reject
from pipeline.coco.records import is_text
from pipeline.engines.progress import Progress
from pipeline.exchange.formats.dota import read_dota
from pipeline.exchange.formats.labels import Images, Labelled, Notes
from pipeline.exchange.formats.table import read_table
from pipeline.exchange.formats.visdrone import CATEGORIES, read_visdrone
from pipeline.exchange.formats.voc import read_voc
from pipeline.exchange.formats.yolo import read_classes, read_yolo
from pipeline.images.sources import image_folder
from pipeline.storage import Location, location, read_bytes, refuse_foreign, write_atomic
from schemas.codes import Reason
from schemas.errors import DataError, UsageError, refuse_unknown

DESCRIPTION = "written by sniper import"

Format = Literal["yolo", "voc", "visdrone", "dota", "csv"]


class ImportReport(NamedTuple):
    """What an import did.

    Attributes:
        num_images, num_boxes, num_crowds: written; crowds are among the boxes.
        categories: names of the categories, in the order of their ids from 1.
        without_labels: images of the folder that nothing labels, and which are left out.
        taken_as_empty: images of yolo without a label file, which are taken as images without objects.
        rejects: refused images and boxes.
    """

    num_images: int
    num_boxes: int
    num_crowds: int
    categories: list[str]
    without_labels: int
    taken_as_empty: int
    rejects: list[Reject]

    @property
    def share_refused(self) -> float:
        """Share of the images and boxes that were refused."""
        return len(self.rejects) / max(len(self.rejects) + self.num_images + self.num_boxes, 1)


def import_labels(
    format: Format,
    annotations: Location | str,
    images: Location | str,
    out: Location | str,
    *,
    names: Location | str | None = None,
) -> ImportReport:
    """Write the labels of another format as a COCO JSON file, whose file names are relative to the image folder.

    Args:
        format: of the labels.
        annotations: folder of the label files; of csv the table.
        images: folder in which the images lie; of each the header is read for its size.
        out: file to write.
        names: of yolo, the file that names the classes: data.yaml, or a text with one on each line.

    Raises:
        DataError: there are no images or no label files, a table lacks columns, or the output cannot be written.
        UsageError: there is no such format or image folder; `out` is a folder or a file of another origin, or its
            bucket cannot be written to; or `names` is missing for yolo or given for another format.
    """
    refuse_unknown("format", format, get_args(Format))
    if (format == "yolo") != (names is not None):
        raise UsageError("import: give --names, the file that names the classes, for yolo and only there")
    place, out, notes = location(annotations), location(out), Notes()
    refuse_foreign(out, _is_ours, "`sniper import`, or was changed since")
    found = Images(image_folder(location(images)))
    known: list[str] | None = None
    if format == "yolo":
        assert names is not None
        classes = read_classes(location(names))
        known = classes.names
        labelled = read_yolo(place, found, classes, notes)
    elif format == "visdrone":
        known = [*CATEGORIES]
        labelled = read_visdrone(place, found, notes)
    else:
        reader = {"voc": read_voc, "dota": read_dota, "csv": read_table}[format]
        labelled = reader(place, found, notes)
    content = _coco(_nameable(_counted(labelled, len(found.names)), notes), known)
    if not content["images"]:
        first = f"; the first refused: {notes.rejects[0].message}" if notes.rejects else "; it names none"
        raise DataError(f"{place}: no image of {found.folder} could be taken{first}")
    info = {"description": DESCRIPTION, "digest": _digest(content)}
    write_atomic(out, msgspec.json.encode({"info": info, **content}))
    return ImportReport(
        num_images=len(content["images"]),
        num_boxes=len(content["annotations"]),
        num_crowds=sum(record["iscrowd"] for record in content["annotations"]),
        categories=[category["name"] for category in content["categories"]],
        without_labels=notes.without_labels,
        taken_as_empty=notes.taken_as_empty,
        rejects=notes.rejects,
    )


def _digest(content: dict[str, Any]) -> str:
    """Return what tells the content of a file from that of others."""
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def _is_ours(file: Location) -> bool:
    """Tell whether a file is as an import has written it, so that nothing of the user's is lost with it."""
    try:
        content = msgspec.json.decode(read_bytes(file), type=dict[str, Any])
        return bool(content.pop("info")["digest"] == _digest(content))
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError):
        return False


def _counted(labelled: Iterator[Labelled], total: int) -> Iterator[Labelled]:
    """Show progress while images are read."""
    with Progress("import", total, "images") as progress:
        for image in labelled:
            yield image
            progress.add(1)


def _nameable(labelled: Iterator[Labelled], notes: Notes) -> Iterator[Labelled]:
    """Leave out, and refuse, the images whose names no JSON file can hold."""
    for image in labelled:
        if is_text(image.file_name):
            yield image
        else:
            notes.refuse_image(image.file_name, Reason.BAD_RECORD, "its name is no text in UTF-8; rename the file")


def _coco(labelled: Iterator[Labelled], known: list[str] | None) -> dict[str, Any]:
    """Return the content of a COCO file.

    A region of no class becomes a crowd of each category, since COCO scores each category by itself.

    Args:
        labelled: images with their boxes.
        known: names of the categories, in order; None: those that occur, by name.
    """
    images = [*labelled]
    categories = known or sorted({box.category for image in images for box in image.boxes if box.category is not None})
    id_of = {name: number for number, name in reversed([*enumerate(categories, 1)])}  # the first of equal names
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, 1):
        for box in image.boxes:
            for category in id_of if box.category is None else [box.category]:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": id_of[category],
                        "bbox": [box.x, box.y, box.width, box.height],
                        "area": box.width * box.height,
                        "iscrowd": int(box.crowd),
                    }
                )
    return {
        "images": [
            {"id": image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
            for image_id, image in enumerate(images, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories, 1)],
    }
