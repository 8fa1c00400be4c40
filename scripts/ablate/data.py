"""The data of the ablations: generated scenes whose objects are as large as COCO's, and two small real sets."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.storage import write_atomic
from scripts.make_demo_data import Scene, make_demo_data, place_objects, random_lookalikes

PERCENTS = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99)
COCO_SIZES = (4, 5.3, 9.9, 13.9, 21.9, 30.5, 41.6, 56.3, 77.5, 107.3, 155.9, 246.6, 333.6, 483.5)
"""Percentiles of sqrt(width * height) over the boxes of COCO val2017, source pixels; none is below 4 px here."""
LARGEST = 0.7  # of the image's shorter side, so that other objects find a place
MOST_OVERLAP = 0.3
NUM_VAL = 0.6  # validation images for each training image: 240 for 400 hold more than 1,500 objects

SUPER_CLASSES = ("person", "vehicle", "animal")
EVERY = 3  # each third image of coco-real validates


class Data(NamedTuple):
    """A data set: annotation files, image folders, and the folder that everything made of them goes to."""

    name: str
    folder: Path
    train: Path
    train_images: Path
    val: Path
    val_images: Path


class AbsentError(Exception):
    """The data are not on this machine; says where they were looked for."""


def coco_like_scene(rng: np.random.Generator, index: int) -> Scene:
    """Lay out an image of 640 px with as many objects as COCO's have, of COCO's sizes, and up to 12 look-alikes."""
    short_side = round(640 / rng.uniform(1, 1.6))
    width, height = (640, short_side) if rng.random() < 0.7 else (short_side, 640)
    image = np.array([width, height])
    count = int(np.clip(round(rng.lognormal(math.log(4.5), 1.0)), 1, 30)) if index % 50 != 7 else 0
    sizes = np.minimum(np.interp(rng.uniform(0, 99, count), PERCENTS, COCO_SIZES), LARGEST * short_side)
    objects = place_objects(rng, image, [], sizes.tolist(), MOST_OVERLAP)
    lookalikes = random_lookalikes(rng, image, [shape.box for shape in objects], counts=(3, 12), sizes=(12, 160))
    return Scene(width, height, lookalikes, [], objects)


def scenes(work: Path, num_train: int) -> Data:
    """Generate the scenes below a folder, unless they are there."""
    folder = work / f"scenes-{num_train}"
    data = Data("scenes", folder, folder / "train.json", folder / "train", folder / "val.json", folder / "val")
    if not data.val.exists():  # the last file that is written
        make_demo_data(folder, num_train, math.ceil(num_train * NUM_VAL), make_scene=coco_like_scene)
    return data


def bccd(work: Path, num_train: int) -> Data:
    """Blood cells, 292 and 72 microscope images of 640 x 480: three classes, with its own split."""
    root = _real("bccd")
    folder = work / f"bccd-{num_train}"
    train, val = (json.loads((root / f"{split}.json").read_text()) for split in ("train", "val"))
    return _written("bccd", folder, train, val, root / "images", num_train)


def coco_real(work: Path, num_train: int) -> Data:
    """318 images of COCO val2017 with three super-classes; each third image, by id, validates."""
    root = _real("coco-real")
    document = json.loads((root / "train.json").read_text())
    label = {category["id"]: category["supercategory"] for category in document["categories"]}
    kept = [
        {**box, "category_id": SUPER_CLASSES.index(label[box["category_id"]]) + 1}
        for box in document["annotations"]
        if label[box["category_id"]] in SUPER_CLASSES
    ]
    images = sorted(document["images"], key=lambda image: image["id"])
    categories = [{"id": number, "name": name} for number, name in enumerate(SUPER_CLASSES, 1)]
    split = [images[i::EVERY] for i in range(EVERY)]
    train, val = (
        {"images": some, "categories": categories, "annotations": kept} for some in (sum(split[1:], []), split[0])
    )
    return _written("coco-real", work / f"coco-real-{num_train}", train, val, root / "images", num_train)


def _real(name: str) -> Path:
    root = os.environ.get("SNIPER_TEST_DATA")
    if root is None:
        raise AbsentError(f"{name}: SNIPER_TEST_DATA does not say below which folder it lies")
    if not (Path(root) / name).is_dir():
        raise AbsentError(f"{name}: {root} has no such folder")
    return Path(root) / name


def _written(
    name: str, folder: Path, train: dict[str, Any], val: dict[str, Any], images: Path, num_train: int
) -> Data:
    """Write the annotations of at most `num_train` images, and of as many for validation as belong to them."""
    data = Data(name, folder, folder / "train.json", images, folder / "val.json", images)
    folder.mkdir(parents=True, exist_ok=True)
    for path, document, most in (
        (data.train, train, num_train),
        (data.val, val, math.ceil(num_train * NUM_VAL)),
    ):
        some = document["images"][:most]
        ids = {image["id"] for image in some}
        boxes = [box for box in document["annotations"] if box["image_id"] in ids]
        write_atomic(path, json.dumps({**document, "images": some, "annotations": boxes}).encode())
    return data


DATA: dict[str, Callable[[Path, int], Data]] = {"scenes": scenes, "bccd": bccd, "coco-real": coco_real}
