"""Generate a small COCO detection set, train and val, from a seed: the data of the demo and of the tests.

Scenes hold objects of three classes, each an outline with a texture of its own, from a dozen to some hundred
pixels wide; some are cut by the image border. Some images hold a crowd region, some no object. Look-alikes,
which share a class's outline or texture but not both, are drawn but not annotated; the JSON lists them for
tests under a key of its own, `lookalikes`.

Coordinates are continuous source pixels. A box is (x1, y1, x2, y2), x2 and y2 exclusive; JSON has x, y, w, h.
"""

import colorsys
import json
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.floating[Any]]
Outline = Literal["disc", "square", "triangle", "hexagon"]
Texture = Literal["ring", "checker", "stripes", "plain"]
Kind = tuple[Outline, Texture]

# With gaps, as COCO's ids have them, so that taking an id for a label shows.
CATEGORY_IDS: dict[Kind, int] = {("disc", "ring"): 1, ("square", "checker"): 3, ("triangle", "stripes"): 7}
CLASSES: list[Kind] = list(CATEGORY_IDS)
LOOKALIKES: list[Kind] = [
    ("disc", "plain"),
    ("disc", "checker"),
    ("square", "plain"),
    ("square", "stripes"),
    ("triangle", "plain"),
    ("triangle", "ring"),
    ("hexagon", "checker"),
    ("hexagon", "stripes"),
]
CORNERS: dict[Outline, int] = {"disc": 256, "square": 4, "triangle": 3, "hexagon": 6}
# By class, and so by outline and texture: a look-alike has the colour of the class that it passes for.
HUES = {name: hue for kind, hue in zip(CLASSES, (0.05, 0.57, 0.86), strict=True) for name in kind}

SIDES = (480, 1600)
SIZES = np.array([[12, 40], [40, 120], [120, 500]])
SIZE_SHARES = (0.45, 0.35, 0.2)
ASPECTS = (0.6, 1.7)
MAX_OVERLAP = 0.1
CUT_SHARE = 0.1
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Shape:
    """One thing to draw. `box` (4,) is its exact bounds and may go beyond the image; `angle` is in radians;
    `colours` (2, 3) are the ground and the mark of the texture, RGB in 0..255."""

    kind: Kind
    box: Floats
    angle: float
    colours: Floats


@dataclass(frozen=True)
class Scene:
    """What an image shows, in drawing order: look-alikes, the members of at most one crowd, objects."""

    width: int
    height: int
    lookalikes: list[Shape]
    crowd: list[Shape]
    objects: list[Shape]


def outline_points(shape: Shape) -> Floats:
    """Corners of the convex outline, in turn, (N, 2) x y; their bounds are `shape.box`."""
    outline = shape.kind[0]
    n = CORNERS[outline]
    # A disc is not turned, so that its extreme points are corners; the others rest on a side at angle 0.
    turn = 0.0 if outline == "disc" else shape.angle + math.pi / 2 + math.pi / n
    angles = turn + np.arange(n) * (2 * math.pi / n)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    return np.asarray(shape.box[:2] + (points - low) / (high - low) * (shape.box[2:] - shape.box[:2]))


def visible_box(shape: Shape, width: int, height: int) -> Floats:
    """Tight bounds (4,) of the part of the shape inside the image."""
    points = outline_points(shape)
    for axis, bound, inward in ((0, 0, 1), (1, 0, 1), (0, width, -1), (1, height, -1)):
        points = _clip_polygon(points, axis, bound, inward)
    return _box(points.min(axis=0), points.max(axis=0))


def _clip_polygon(points: Floats, axis: int, bound: float, inward: int) -> Floats:
    """The convex polygon (N, 2) cut along `coordinate[axis] = bound`; the side towards `inward` stays."""
    depth = (points[:, axis] - bound) * inward
    following, depth_following = np.roll(points, -1, axis=0), np.roll(depth, -1)
    crosses = depth * depth_following < 0
    share = (depth[crosses] / (depth[crosses] - depth_following[crosses]))[:, None]
    crossings = points[crosses] * (1 - share) + following[crosses] * share
    crossings[:, axis] = bound
    kept = np.concatenate([points[depth >= 0], crossings])
    from_centre = kept - kept.mean(axis=0)
    return np.asarray(kept[np.argsort(np.arctan2(from_centre[:, 1], from_centre[:, 0]))])


def _box(low: Floats, high: Floats) -> Floats:
    """A box on a grid of 1/64 px, where sums are exact, so that x + w in the JSON never leaves the image."""
    return np.round(np.concatenate([low, high]) * 64) / 64


def _size(box: Floats) -> float:
    return math.sqrt((box[2] - box[0]) * (box[3] - box[1]))


def _union(shapes: list[Shape]) -> Floats:
    boxes = np.array([shape.box for shape in shapes])
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def _overlap(box: Floats, others: list[Floats]) -> float:
    """Largest intersection of `box` with one of `others`, as a share of the smaller of the two."""
    boxes = np.array(others).reshape(-1, 4)
    common = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    smaller = np.minimum(np.prod(box[2:] - box[:2]), np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    return float(np.max(np.prod(np.maximum(common, 0), axis=1) / smaller, initial=0))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _random_sides(rng: np.random.Generator, size: float) -> Floats:
    """Width and height, (2,), of a box of the given size."""
    aspect = math.sqrt(_log_uniform(rng, *ASPECTS))
    return np.array([size * aspect, size / aspect])


def _random_shape(rng: np.random.Generator, kinds: list[Kind], box: Floats) -> Shape:
    kind = kinds[rng.integers(len(kinds))]
    hue = rng.choice([HUES[name] for name in kind if name in HUES]) + rng.normal(0, 0.02)
    ground = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.65, 0.9), rng.uniform(0.7, 1))
    mark = colorsys.hsv_to_rgb((hue + 0.08) % 1, rng.uniform(0.05, 0.25), rng.uniform(0.85, 1))
    return Shape(kind, box, rng.uniform(-0.35, 0.35), np.array([ground, mark], dtype=np.float32) * 255)


def _random_crowd(rng: np.random.Generator, image: Floats) -> list[Shape]:
    """Members of one class, 6 to 12 px, close together in an ellipse; `image` (2,) is width and height."""
    kind = CLASSES[rng.integers(len(CLASSES))]
    pitch = rng.uniform(9, 14)
    cells = rng.integers(6, 13, size=2)
    corner = rng.uniform(0, image - cells * pitch)
    members = []
    for cell in np.ndindex(*cells.tolist()):
        if np.sum(((np.array(cell) + 0.5) / cells - 0.5) ** 2) <= 0.25:
            sides = np.full(2, pitch * rng.uniform(0.7, 0.85))
            place = corner + np.array(cell) * pitch + rng.uniform(0, 0.3 * pitch, size=2)
            members.append(_random_shape(rng, [kind], _box(place, place + sides)))
    return members


def _random_objects(rng: np.random.Generator, image: Floats, taken: list[Floats]) -> list[Shape]:
    """1 to 25 objects, mostly 3 to 8, that hardly overlap each other or `taken`."""
    count = int(np.clip(round(rng.lognormal(math.log(5.5), 0.6)), 1, 25))
    ranges = np.minimum(SIZES[rng.choice(len(SIZES), size=count, p=SIZE_SHARES)], 0.6 * image.min())
    return place_objects(rng, image, taken, [_log_uniform(rng, low, high) for low, high in ranges], MAX_OVERLAP)


def place_objects(
    rng: np.random.Generator, image: Floats, taken: list[Floats], sizes: Iterable[float], most_overlap: float
) -> list[Shape]:
    """Place objects of the given sizes, largest first, that overlap each other or `taken` by no more than a share of
    the smaller one; what finds no place in 20 tries is left out. One in ten has 15 to 50 % of its width or height
    beyond the border. `image` (2,) is width and height."""
    objects: list[Shape] = []
    for size in sorted(sizes, reverse=True):
        for _ in range(20):
            sides = _random_sides(rng, size)
            corner = rng.uniform(0, image - sides)
            if rng.random() < CUT_SHARE:
                axis, outside = rng.integers(2), rng.uniform(0.15, 0.5) * sides
                corner[axis] = rng.choice([-outside, image - sides + outside])[axis]
            box = _box(corner, corner + sides)
            if _overlap(box, taken + [other.box for other in objects]) <= most_overlap:
                objects.append(_random_shape(rng, CLASSES, box))
                break
    return objects


def random_lookalikes(
    rng: np.random.Generator,
    image: Floats,
    taken: list[Floats],
    counts: tuple[int, int] = (2, 8),
    sizes: tuple[float, float] = (16, 90),
) -> list[Shape]:
    """Look-alikes, their number and sizes in px between two bounds, inside the image and clear of `taken`; in two
    images of three they gather around a spot away from it. `image` (2,) is width and height."""
    spots = rng.uniform(0.1, 0.9, size=(16, 2)) * image
    centres = np.array([(box[:2] + box[2:]) / 2 for box in taken] or [image / 2])
    spot = spots[np.argmax(np.linalg.norm(spots[:, None] - centres, axis=2).min(axis=1))]
    gather = rng.random() < 2 / 3
    count = rng.integers(counts[0], counts[1] + 1)
    lookalikes: list[Shape] = []
    for attempt in range(100):
        sides = _random_sides(rng, _log_uniform(rng, *sizes))
        # Wider with each attempt, as the spot fills up.
        centre = rng.normal(spot, 60 + 4 * attempt) if gather else rng.uniform(0, image)
        box = _box(centre - sides / 2, centre + sides / 2)
        inside = bool(np.all(box[:2] >= 0) and np.all(box[2:] <= image))
        if inside and _overlap(box, taken + [other.box for other in lookalikes]) == 0:
            lookalikes.append(_random_shape(rng, LOOKALIKES, box))
        if len(lookalikes) == count:
            break
    return lookalikes


def random_scene(rng: np.random.Generator, index: int) -> Scene:
    """Lay out the image at `index`. One in ten has no objects, one in eight a crowd: by index, not by chance,
    so that small sets have both."""
    long_side = round(_log_uniform(rng, 640, SIDES[1]))
    sides = [long_side, max(round(long_side / rng.uniform(1, 2)), SIDES[0])]
    width, height = sides if rng.random() < 0.6 else sides[::-1]
    image = np.array([width, height])
    crowd = _random_crowd(rng, image) if index % 8 == 2 else []
    taken = [_union(crowd)] if crowd else []
    objects = _random_objects(rng, image, taken) if index % 10 != 7 else []
    lookalikes = random_lookalikes(rng, image, taken + [shape.box for shape in objects])
    return Scene(width, height, lookalikes, crowd, objects)


def draw(canvas: Floats, shape: Shape) -> None:
    """Draw the shape and its soft shadow on `canvas` (H, W, 3), RGB in 0..255; edges blend over one pixel."""
    size = _size(shape.box)
    box_x1, box_y1, box_x2, box_y2 = shape.box.tolist()
    margin = 0.2 * size + 2
    left, top = max(int(box_x1 - margin), 0), max(int(box_y1 - margin), 0)
    patch = canvas[top : int(box_y2 + margin), left : int(box_x2 + margin)]
    x = np.arange(left, left + patch.shape[1], dtype=np.float32) + 0.5
    y = np.arange(top, top + patch.shape[0], dtype=np.float32)[:, None] + 0.5

    shadow = 0.5 - _signed_distance(shape, x - 0.05 * size, y - 0.07 * size) / (0.1 * size)
    patch *= 1 - 0.45 * np.clip(shadow, 0, 1)[..., None]

    u = (2 * x - box_x1 - box_x2) / (box_x2 - box_x1)
    v = (2 * y - box_y1 - box_y2) / (box_y2 - box_y1)
    ground, mark = shape.colours
    body = ground + _texture(shape, u, v)[..., None] * (mark - ground)
    body *= (0.95 - 0.15 * (u + v))[..., None]
    distance = _signed_distance(shape, x, y)
    rim = np.clip(distance + max(1.0, 0.04 * size) + 0.5, 0, 1)[..., None]
    body += rim * (0.3 * ground - body)
    patch += np.clip(0.5 - distance, 0, 1)[..., None] * (np.minimum(body, 255) - patch)


def _signed_distance(shape: Shape, x: Floats, y: Floats) -> Floats:
    """Distance in pixels from the outline, (h, w), negative inside, at x (w,), y (h, 1); exact near sides."""
    if shape.kind[0] == "disc":
        x1, y1, x2, y2 = shape.box.tolist()
        p, q = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)
        radius = np.hypot(p, q)
        slope = np.hypot(2 * p / (x2 - x1), 2 * q / (y2 - y1))
        return np.asarray((radius - 1) * radius / np.maximum(slope, 1e-6))
    points = outline_points(shape)
    along = np.roll(points, -1, axis=0) - points
    normals = np.stack([along[:, 1], -along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    offsets = np.sum(normals * points, axis=1)
    sides = np.column_stack([normals, offsets]).tolist()
    return np.asarray(np.max([x * a + (y * b - c) for a, b, c in sides], axis=0))


def _texture(shape: Shape, u: Floats, v: Floats) -> Floats:
    """Share of the mark's colour, 0..1, (h, w), at u (w,), v (h, 1), which span -1 to 1 across the box."""
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    s, t = u * cos + v * sin, v * cos - u * sin
    # Each pattern is the distance from its edges in units of half the size, so they too blend over one pixel.
    match shape.kind[1]:
        case "ring":
            pattern = 0.17 - np.abs(np.hypot(s, t) - 0.5)
        case "checker":
            pattern = np.sin(2 * math.pi * s) * np.sin(2 * math.pi * t) / (2 * math.pi)
        case "stripes":
            pattern = np.sin(3 * math.pi * t) / (3 * math.pi)
        case "plain":
            return np.zeros_like(s)
    return np.clip(0.5 + pattern * (_size(shape.box) / 2), 0, 1)


def _noise(rng: np.random.Generator, width: int, height: int, cell: int) -> Floats:
    """Smooth noise in -1..1, (height, width), whose features are about `cell` pixels wide."""
    grid = rng.uniform(-1, 1, size=(height // cell + 3, width // cell + 3)).astype(np.float32)
    rows, columns = grid.shape
    smooth = Image.fromarray(grid).resize((columns * cell, rows * cell), Image.Resampling.BICUBIC)
    return np.asarray(smooth)[cell : cell + height, cell : cell + width]


def _background(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Muted coloured noise of five octaves with a gradient and faint stripes, (height, width, 3), 0..255."""
    # Drawn at half the resolution: a quarter of the work, and about as soft as a lens.
    w, h = (width + 1) // 2, (height + 1) // 2
    hue = rng.uniform(0, 1)
    hsv = ((0.0, rng.uniform(0.35, 0.65)), (0.12, 0.75), (0.3, 0.3))
    colours = [colorsys.hsv_to_rgb((hue + turn) % 1, rng.uniform(0.1, 0.4), value) for turn, value in hsv]
    middle, bright, dark = np.array(colours, dtype=np.float32) * 255
    octaves = [_noise(rng, w, h, cell) for cell in (160, 64, 24, 8, 3)]
    angle, frequency = rng.uniform(0, math.pi), rng.uniform(0.04, 0.25)
    x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
    ramp = (x - w / 2) * math.cos(angle) + (y - h / 2) * math.sin(angle)
    stripes = np.sin(ramp * frequency + 3 * octaves[1]) * np.clip(2 * octaves[0], 0, 1)
    mix = (0.5 * octaves[0] + 0.35 * octaves[1] + 0.2 * octaves[2])[..., None]
    light = 1 + 0.15 * octaves[2] + 0.12 * octaves[3] + 0.08 * octaves[4] + 0.12 * stripes + 0.0005 * ramp
    pixels = middle + np.maximum(mix, 0) * (bright - middle) + np.maximum(-mix, 0) * (dark - middle)
    half = Image.fromarray(np.clip(pixels * light[..., None], 0, 255).astype(np.uint8))
    full = np.asarray(half.resize((2 * w, 2 * h), Image.Resampling.BICUBIC))
    return full[:height, :width].astype(np.float32)


def render(rng: np.random.Generator, scene: Scene) -> npt.NDArray[np.uint8]:
    """The picture of a scene, (height, width, 3) RGB."""
    canvas = _background(rng, scene.width, scene.height)
    for shape in (*scene.lookalikes, *scene.crowd, *scene.objects):
        draw(canvas, shape)
    return np.asarray(np.clip(canvas + 0.5, 0, 255), dtype=np.uint8)


def _xywh(box: Floats) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def _crowd_mask(scene: Scene) -> tuple[dict[str, list[int]], int]:
    """The union of the members' boxes as COCO's uncompressed RLE, runs down the columns, and its area."""
    mask = np.zeros((scene.height, scene.width), dtype=np.bool_)
    for shape in scene.crowd:
        x1, y1, x2, y2 = np.round(shape.box).astype(int)
        mask[y1:y2, x1:x2] = True
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat, prepend=False, append=~flat[-1]))
    return {"counts": np.diff(ends, prepend=0).tolist(), "size": list(mask.shape)}, int(mask.sum())


def _annotations(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    """COCO annotations: a tight box, clipped to the image, per object, `area` its area; one box per crowd."""
    found: list[dict[str, Any]] = []
    for shape in scene.objects:
        bbox = _xywh(visible_box(shape, scene.width, scene.height))
        found.append({"category_id": CATEGORY_IDS[shape.kind], "bbox": bbox, "area": bbox[2] * bbox[3]})
    if scene.crowd:
        bbox, (rle, area) = _xywh(_union(scene.crowd)), _crowd_mask(scene)
        category_id = CATEGORY_IDS[scene.crowd[0].kind]
        found.append({"category_id": category_id, "bbox": bbox, "area": area, "segmentation": rle})
    return [
        {"id": 100 * image_id + n, "image_id": image_id, "iscrowd": int("segmentation" in record), **record}
        for n, record in enumerate(found)
    ]


def _write_image(
    folder: Path, seed: int, split: int, make_scene: Callable[[np.random.Generator, int], Scene], index: int
) -> dict[str, list[dict[str, Any]]]:
    """Write one JPEG, which depends on seed, split, `make_scene` and index alone; return its records by JSON key."""
    rng = np.random.default_rng((seed, split, index))
    scene = make_scene(rng, index)
    # Odd in train and even in val: unique over both, whatever the counts.
    image_id = 2 * index + 1 + split
    name = f"{image_id:06d}.jpg"
    Image.fromarray(render(rng, scene)).save(folder / name, quality=JPEG_QUALITY)
    return {
        "images": [{"id": image_id, "file_name": name, "width": scene.width, "height": scene.height}],
        "annotations": _annotations(scene, image_id),
        "lookalikes": [{"image_id": image_id, "bbox": _xywh(shape.box)} for shape in scene.lookalikes],
    }


def make_demo_data(
    out: Path,
    num_train: int = 96,
    num_val: int = 24,
    seed: int = 0,
    make_scene: Callable[[np.random.Generator, int], Scene] = random_scene,
) -> None:
    """Write OUT/train.json and OUT/val.json, their JPEGs in OUT/train/ and OUT/val/. With the same JPEG codec
    the same seed gives the same bytes, and image i of a split is the same for any counts. `make_scene` lays out
    the image at an index."""
    for split, (name, count) in enumerate((("train", num_train), ("val", num_val))):
        (out / name).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(partial(_write_image, out / name, seed, split, make_scene), range(count)))
        document: dict[str, Any] = {
            "info": {"description": f"SNIPER demo data, {name}, seed {seed}"},
            "licenses": [],
            "categories": [{"id": number, "name": kind[0]} for kind, number in CATEGORY_IDS.items()],
        }
        for key in ("images", "annotations", "lookalikes"):
            document[key] = [record for part in parts for record in part[key]]
        (out / f"{name}.json").write_text(json.dumps(document) + "\n", encoding="utf-8")


@click.command(help="Generate a small COCO detection set of drawn shapes.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Target folder.")
@click.option("--train", type=click.IntRange(min=1), default=96, show_default=True, help="Training images.")
@click.option("--val", type=click.IntRange(min=1), default=24, show_default=True, help="Validation images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything.")
def main(out: Path, train: int, val: int, seed: int) -> None:
    make_demo_data(out, train, val, seed)


if __name__ == "__main__":
    main()
