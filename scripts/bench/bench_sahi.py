"""Whole images by the pyramid and by SAHI's get_sliced_prediction: the same network and images, time and AP of both.

Run it in .venv-peers, with a network that `sniper train` made:

    .venv-peers/bin/python -m scripts.bench.bench_sahi --checkpoint RUN --annotations VAL.json --images VAL/

Both get the same function, which runs the network on a list of pixel arrays of any size. The pyramid asks it at the
scales that the network was trained at. SAHI cuts slices of the image and adds the image as a whole, as it does by
default; a wrapper of SAHI's model class brings each to the side of a chip, as SAHI's models bring it to their input.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sahi.models.base import DetectionModel
from sahi.predict import get_sliced_prediction
from sahi.prediction import ObjectPrediction
from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list

from pipeline.pyramid.merging import Detections
from pipeline.pyramid.search import search
from pipeline.storage import location
from schemas.settings import Settings, load_settings
from scripts.scoring import score_found
from trainer.evaluation.ground_truth import open_ground_truth
from trainer.evaluation.matching import MAX_DETS
from trainer.inference.predictor import Predictor
from trainer.model import predict

Pixels = npt.NDArray[np.uint8]
Detect = Callable[[Sequence[Pixels]], list[list[npt.NDArray[Any]]]]


class Way(NamedTuple):
    """One way to search an image: a name, and a function from its pixels to detections."""

    name: str
    search: Callable[[Pixels], Detections]


def on_pixels(predictor: Predictor) -> Detect:
    """Run the network on arrays of any size: boxes in their pixels, scores and labels for each."""
    model, _, options, device, _ = predictor.inference

    def detect(arrays: Sequence[Pixels]) -> list[list[npt.NDArray[Any]]]:
        height, width = (-(-max(array.shape[axis] for array in arrays) // 32) * 32 for axis in (0, 1))
        batch = torch.zeros((len(arrays), height, width, 3), dtype=torch.uint8)
        for slot, array in zip(batch, arrays, strict=True):
            slot[: array.shape[0], : array.shape[1]] = torch.from_numpy(np.array(array))
        sizes = torch.tensor([array.shape[:2] for array in arrays], device=device)
        with torch.inference_mode():
            found = predict(
                model,
                batch.permute(0, 3, 1, 2).to(device),
                sizes,
                min_score=options.min_score,
                by_area=options.by_area,
            )
        return [[column.cpu().numpy() for column in one] for one in found]

    return detect


def resized(image: Pixels, zoom: float) -> Pixels:
    """Enlarge or shrink an image as the pyramid does."""
    if zoom == 1:
        return image
    size = round(image.shape[1] * zoom), round(image.shape[0] * zoom)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


class SahiModel(DetectionModel):  # type: ignore[misc]
    """The network behind SAHI's interface. Whatever comes is brought to `image_size` on its longer side."""

    def load_model(self) -> None:
        """Do nothing: the network is given."""

    def set_model(self, model: Detect, **_: Any) -> None:
        """Take the function that runs the network."""
        self.model = model

    def perform_inference(self, image: Pixels) -> None:
        """Run the network on one image or slice."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: list[Pixels]) -> None:
        """Run the network on several slices at once."""
        zooms = [self.image_size / max(image.shape[:2]) for image in images]
        sized = [resized(image, zoom) for image, zoom in zip(images, zooms, strict=True)]
        self._original_predictions = [
            (boxes / zoom, scores, labels)
            for (boxes, scores, labels), zoom in zip(self.model(sized), zooms, strict=True)
        ]

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: list[list[int]] | None = None, full_shape_list: list[list[int]] | None = None
    ) -> None:
        shifts = fix_shift_amount_list(shift_amount_list)
        shapes = fix_full_shape_list(full_shape_list)
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=box,
                    category_id=label,
                    category_name=str(label),
                    score=value,
                    shift_amount=shifts[i],
                    full_shape=None if shapes is None else shapes[i],
                )
                for box, value, label in zip(
                    *(column.tolist() for column in self._original_predictions[i]), strict=True
                )
                if value >= self.confidence_threshold and box[2] > box[0] and box[3] > box[1]
            ]
            for i in range(len(self._original_predictions))
        ]


def by_pyramid(detect: Detect, settings: Settings, max_side: int) -> Way:
    """Our search, with views of at most a side."""
    options = settings.detect.model_copy(update={"max_side": max_side})
    limited = settings.model_copy(update={"detect": options})
    return Way(f"ours, views up to {max_side} px", lambda pixels: next(search([pixels], detect, limited)))


def by_sahi(detect: Detect, side: int, slice_side: int, min_score: float, batch: int) -> Way:
    """SAHI with slices of a side, and else as its documentation shows."""
    names = {str(label): str(label) for label in range(1000)}
    model = SahiModel(
        model=detect, confidence_threshold=min_score, image_size=side, category_mapping=names, device="cpu"
    )

    def find(pixels: Pixels) -> Detections:
        result = get_sliced_prediction(
            pixels, model, slice_height=slice_side, slice_width=slice_side, verbose=0, batch_size=batch
        )
        found = result.object_prediction_list
        order = np.argsort([-one.score.value for one in found], kind="stable")
        boxes = np.array([found[i].bbox.to_xyxy() for i in order], np.float32).reshape(-1, 4)
        scores = np.array([found[i].score.value for i in order], np.float32)
        return Detections(boxes, scores, np.array([found[i].category.id for i in order], np.int64))

    return Way(f"SAHI, slices of {slice_side} px", find)


@click.command()
@click.option("--checkpoint", required=True, help="run of `sniper train`")
@click.option("--annotations", required=True)
@click.option("--images", required=True)
@click.option("--num-images", default=24)
@click.option("--min-score", default=0.05, help="of both; SAHI takes 0.3 by default, which costs AP")
@click.option(
    "--slices", default="", help="sides of SAHI's slices, px; default: what its finest scale makes of a chip"
)
@click.option("--max-side", default="4096,512", help="of the pyramid's views, px; a CPU likes small ones")
@click.option("--rounds", default=3)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    checkpoint: str,
    annotations: str,
    images: str,
    num_images: int,
    min_score: float,
    slices: str,
    max_side: str,
    rounds: int,
    json_file: Path | None,
) -> None:
    """Print AP, and the median time per image over interleaved rounds, of each way."""
    settings = load_settings(None, (f"detect.min_score={min_score}",))
    predictor = Predictor(checkpoint, settings)
    chips = predictor.inference.chips
    detect = on_pixels(predictor)
    truth = open_ground_truth(location(annotations), location(images), chips, predictor.categories, MAX_DETS)
    sources = truth.source.images(0, min(num_images, truth.source.num_images))
    pictures = [np.asarray(Image.open(Path(images) / source.file_name).convert("RGB")) for source in sources]
    finest = next(scale for scale in chips.scales if isinstance(scale, float))
    sides = [int(side) for side in slices.split(",")] if slices else [round(chips.size / finest), round(chips.size)]
    ways = [
        by_pyramid(detect, Settings(chips=chips, detect=settings.detect), int(side)) for side in max_side.split(",")
    ]
    ways += [by_sahi(detect, chips.size, side, min_score, batch=8) for side in dict.fromkeys(sides)]
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    results = {}
    for _ in range(rounds):
        for way in ways:
            started = time.perf_counter()
            results[way.name] = [way.search(picture) for picture in pictures]
            seconds[way.name].append((time.perf_counter() - started) / len(pictures))
    kept = truth._replace(
        objects=truth.objects.take(np.isin(truth.objects.image_id, [source.image_id for source in sources]))
    )
    figures = []
    for way in ways:
        summary, _ = score_found(kept, sources, results[way.name], chips.bounds())
        times = seconds[way.name]
        ratio = statistics.median(t / ours for t, ours in zip(times, seconds[ways[0].name], strict=True))
        figures.append(
            {"way": way.name, "ms_per_image": 1e3 * statistics.median(times), "time_over_ours": ratio}
            | {name: summary[name] for name in ("AP", "AP50", "AP_small", "AP_medium", "AP_large", "AR")}
        )
        shown = "  ".join(f"{name} {value:.3f}" for name, value in figures[-1].items() if isinstance(value, float))
        click.echo(f"{way.name:<26}{shown}")
    if json_file:
        json_file.write_text(json.dumps({"num_images": len(sources), "ways": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
