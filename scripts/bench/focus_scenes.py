"""Scenes for bench_focus.py: large images whose small objects gather in few places, and images full of them."""

import numpy as np

from scripts.make_demo_data import Floats, Scene, Shape, place_objects, random_lookalikes

WIDTH, HEIGHT = 1024, 768
SMALL = (14.0, 36.0)  # px, of the finest scale's range
LARGE = (40.0, 420.0)
SPREAD = 60.0  # px around the place where small objects gather


def _sizes(rng: np.random.Generator, low: float, high: float, count: int) -> list[float]:
    return np.exp(rng.uniform(np.log(low), np.log(high), count)).tolist()  # type: ignore[no-any-return]


def sparse_scene(rng: np.random.Generator, index: int) -> Scene:
    """One or two groups of 2 to 6 small objects, none in each sixth image, and up to three large ones."""
    image = np.array([WIDTH, HEIGHT])
    objects = place_objects(rng, image, [], _sizes(rng, *LARGE, int(rng.integers(0, 4))), 0.1)
    for _ in range(int(rng.integers(1, 3)) if index % 6 else 0):
        spot = rng.uniform(0.1, 0.9, 2) * image
        objects += _group(rng, spot, int(rng.integers(2, 7)), [one.box for one in objects])
    away = random_lookalikes(rng, image, [one.box for one in objects], counts=(1, 5), sizes=(14, 160))
    return Scene(WIDTH, HEIGHT, away, [], objects)


def _group(rng: np.random.Generator, spot: Floats, count: int, taken: list[Floats]) -> list[Shape]:
    """Small objects around a place, inside the image."""
    low = np.clip(spot - SPREAD, 0, [WIDTH - 2 * SPREAD, HEIGHT - 2 * SPREAD])
    around = np.array([2 * SPREAD, 2 * SPREAD])
    shifted = [box - np.tile(low, 2) for box in taken]
    return [
        Shape(one.kind, one.box + np.tile(low, 2), one.angle, one.colours)
        for one in place_objects(rng, around, shifted, _sizes(rng, *SMALL, count), 0.1)
    ]


def dense_scene(rng: np.random.Generator, _index: int) -> Scene:
    """Some 60 to 120 small objects everywhere, and up to six large ones."""
    image = np.array([WIDTH, HEIGHT])
    sizes = [*_sizes(rng, *SMALL, int(rng.integers(60, 121))), *_sizes(rng, *LARGE, int(rng.integers(0, 7)))]
    return Scene(WIDTH, HEIGHT, [], [], place_objects(rng, image, [], sizes, 0.1))


def mixed_scene(rng: np.random.Generator, index: int) -> Scene:
    """What the network is trained on: three sparse scenes to each dense one."""
    return dense_scene(rng, index) if index % 4 == 3 else sparse_scene(rng, index)
