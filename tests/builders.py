"""Tiny COCO sets and odd image files, made in code; and the one check that a build's ledger adds up."""

import hashlib
import io
import json
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from pipeline.commands.chips import Report, chips
from pipeline.commands.verify import verify
from pipeline.images.decode import decode_image, open_image
from schemas.settings import ChipSettings, Settings

SIDE = 64  # of the sound images
ABSENT = object()
"""In an annotation record: leave this key out."""


def texture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth random colours with some noise, so that every chip has bytes of its own."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse).astype(int) + rng.integers(-8, 8, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """The bytes of an image file of `kind`, by Pillow's name."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read_image(content: bytes, width: int, height: int, max_pixels: int) -> Image.Image:
    """The image of a file, decoded in the frame whose size is given."""
    return decode_image(open_image(io.BytesIO(content)), width, height, max_pixels)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def deep_png(width: int, height: int, channels: int) -> bytes:
    """A PNG with 16 bits per channel: 1 grey, 2 grey with alpha, 3 RGB, 4 RGBA. Pillow writes only the first."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = np.arange(height * width * channels, dtype=">u2").reshape(height, -1)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    end = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header claims another size than its pixels have."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[start + 4 :]


@dataclass
class CocoSet:
    """A COCO data set under `root`, written piece by piece; `content` is the annotation file as it will be."""

    root: Path
    images: list[Any] = field(default_factory=list)
    annotations: list[Any] = field(default_factory=list)
    categories: list[Any] = field(default_factory=lambda: [{"id": 3, "name": "thing"}])

    @property
    def image_root(self) -> Path:
        return self.root / "images"

    def add_image(
        self,
        image_id: Any,
        content: bytes | None = None,
        file_name: Any = None,
        width: Any = SIDE,
        height: Any = SIDE,
        boxes: list[Any] | None = None,
        write: bool = True,
    ) -> None:
        """Add a record, its file (texture unless `content` is given) and one annotation per bbox."""
        if file_name is None:
            file_name = f"{image_id}.jpg"
        self.images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for bbox in [[8, 8, 40, 40]] if boxes is None else boxes:
            self.add_box(image_id, bbox)
        if write:
            path = self.image_root / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(texture(width, height, image_id)) if content is None else content)

    def add_box(self, image_id: Any, bbox: Any, **others: Any) -> None:
        """Add an annotation; keys whose value is ABSENT are left out."""
        annotation_id = 1 + max((a["id"] for a in self.annotations if type(a.get("id")) is int), default=0)
        record = {"id": annotation_id, "image_id": image_id, "category_id": 3, "bbox": bbox, "iscrowd": 0} | others
        self.annotations.append({key: value for key, value in record.items() if value is not ABSENT})

    def content(self) -> dict[str, Any]:
        return {"images": self.images, "annotations": self.annotations, "categories": self.categories}

    @property
    def path(self) -> Path:
        return self.root / "annotations.json"

    def write(self) -> Path:
        """Write the annotation file; NaN and Infinity become the literals that JSON lacks."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.image_root.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.content()), encoding="utf-8")
        return self.path


def sound_set(root: Path) -> CocoSet:
    """Two sound images, ids 1 and 999, one before and one after whatever a test adds."""
    made = CocoSet(root)
    made.add_image(1)
    made.add_image(999, boxes=[[0, 0, 30, 20], [20, 24, 44, 40]])
    return made


def build(made: CocoSet, out: Path, settings: ChipSettings | None = None, **options: Any) -> Report:
    """`sniper chips` on a set; any share of bad images is allowed."""
    return chips(
        made.write(), made.image_root, out, Settings(chips=settings or ChipSettings()), **{"max_bad": 1.0} | options
    )


def read_manifest(out: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path) for path in sorted((out / "positives").glob("chips-*.parquet")))


def chip_boxes(out: Path) -> pl.DataFrame:
    """The boxes of all chips, one row each."""
    return read_manifest(out)["boxes"].explode().drop_nulls().struct.unnest()


def chip_sums(out: Path, image_ids: tuple[int, ...] = (1, 999)) -> dict[str, int]:
    """Key and CRC-32 of every chip of some images."""
    rows = read_manifest(out).filter(pl.col("image_id").is_in(image_ids))
    return dict(zip(rows["key"], rows["crc32"], strict=True))


def states(out: Path) -> dict[int | None, str | None]:
    """Image id -> why it was refused, or None where it was kept."""
    rows = pl.read_parquet(out / "images.parquet")
    return dict(zip(rows["image_id"], rows["reason"], strict=True))


def fates(out: Path) -> list[tuple[str, str | None]]:
    """Fate and reason of every source box, in the order of the annotation file."""
    rows = pl.read_parquet(out / "annotations.parquet").sort("row")
    return list(zip(rows["fate"], rows["reason"], strict=True))


def assert_reconciles(out: Path, content: dict[str, Any]) -> None:
    """Every image and every box of the annotation file has one fate, and all files of a build agree on it."""
    counts = json.loads((out / "run.json").read_bytes())["counts"]
    images = pl.read_parquet(out / "images.parquet")
    boxes = pl.read_parquet(out / "annotations.parquet")
    rejects = pl.read_parquet(out / "rejects.parquet")
    manifest = read_manifest(out)
    _images_reconcile(counts, images, rejects, manifest, len(content["images"]))
    _boxes_reconcile(counts, images, boxes, rejects, len(content["annotations"]))
    stored = {box["annotation_id"] for chip in manifest["boxes"].to_list() for box in chip}
    lost = boxes.filter(pl.col("fate").is_in(["refused", "image_refused"]))["annotation_id"].to_list()
    in_order = set(boxes.filter(~pl.col("fate").is_in(["refused", "image_refused"]))["annotation_id"].to_list())
    assert stored <= in_order
    # an id that is in chips and lost at once can only be a repeated one
    assert all(count > 1 for id_, count in Counter([*in_order, *lost]).items() if id_ in stored and id_ in lost)
    trained = set(boxes.filter(pl.col("fate").is_in(["covered", "rescued"]))["annotation_id"].to_list())
    assert trained <= stored
    assert verify(out).problems == []


def _images_reconcile(
    counts: dict[str, Any], images: pl.DataFrame, rejects: pl.DataFrame, manifest: pl.DataFrame, expected: int
) -> None:
    refused = images.filter(pl.col("state") == "refused")
    kept = images.filter(pl.col("state") == "kept")
    assert len(images) == expected == counts["images"]["total"]
    assert len(kept) == counts["images"]["kept"]
    assert len(kept) + len(refused) == expected
    for name, column in (("without_boxes", "num_boxes"), ("without_chips", "num_chips")):
        assert counts["images"][name] == len(kept.filter(pl.col(column) == 0))
    assert kept["reason"].null_count() == len(kept)
    assert dict(Counter(refused["reason"])) == counts["images"]["refused"]
    in_rejects = rejects.filter(pl.col("kind") == "image").select("id", "file", "reason")
    assert Counter(in_rejects.rows()) == Counter(refused.select("image_id", "file_name", "reason").rows())
    written = Counter(manifest["image_id"])
    assert {row["image_id"]: row["num_chips"] for row in kept.iter_rows(named=True) if row["num_chips"]} == written
    assert refused["num_chips"].sum() == 0
    assert len(manifest) == counts["chips"]["total"]
    assert manifest["key"].n_unique() == len(manifest)


def _boxes_reconcile(
    counts: dict[str, Any], images: pl.DataFrame, boxes: pl.DataFrame, rejects: pl.DataFrame, expected: int
) -> None:
    assert sorted(boxes["row"]) == list(range(expected))
    tally = Counter(boxes["fate"])
    reported = dict(counts["boxes"])
    assert reported.pop("total") == expected
    reported.pop("clipped_to_image")
    refused = boxes.filter(pl.col("fate") == "refused")
    assert dict(Counter(refused["reason"])) == reported.pop("refused")
    reported["uncovered"] = sum(reported["uncovered"].values())  # by reason
    assert {fate: tally[fate] for fate in reported} == reported
    assert sum(reported.values()) + len(refused) == expected
    in_rejects = rejects.filter(pl.col("kind") == "annotation").select("id", "reason")
    assert Counter(in_rejects.rows()) == Counter(refused.select("annotation_id", "reason").rows())
    assert len(rejects) == len(in_rejects) + sum(counts["images"]["refused"].values())
    why = {row["image_id"]: row["reason"] for row in images.iter_rows(named=True)}
    for row in boxes.iter_rows(named=True):
        if row["fate"] == "image_refused":
            assert row["reason"] == why[row["image_id"]] is not None
        assert bool(row["scales"]) == (row["fate"] in ("covered", "rescued"))
        assert (row["reason"] is None) == (row["fate"] in ("covered", "rescued", "crowd"))
    in_order = boxes.filter(pl.col("x1").is_not_null())
    assert images["num_boxes"].sum() == len(in_order)


def digest(folder: Path) -> str:
    """Names and contents of everything below a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(str(path.relative_to(folder)).encode())
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()
