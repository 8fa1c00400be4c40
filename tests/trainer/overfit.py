"""A few chips that a slim network learns by heart: the shortest training whose end says that all of it works."""

import torch
from torchvision.ops import batched_nms

from pipeline.pyramid.merging import Detections
from schemas.codes import Status
from schemas.settings import Precision
from tests.trainer.chips import CLASSES, SLIM, chip_boxes, make_batch, slim_detector
from tests.trainer.columns import objects_of
from trainer.evaluation.coco_scores import run_coco
from trainer.evaluation.results import join_results, of_image
from trainer.learning.objective import Objective
from trainer.loading.batch import Batch
from trainer.model import Detector, predict
from trainer.model.heads import autocast
from trainer.runtime.weights import set_norm_policy

STEPS = 80


def bright_rectangles() -> Batch:
    """Four chips of dark noise, a bright rectangle in each; three classes, each of one colour."""
    boxes = torch.tensor([[8.0, 8, 40, 44], [50, 20, 88, 52], [20, 30, 70, 60], [10, 55, 42, 90]])
    images = torch.randint(0, 60, (4, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for chip, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
        images[chip, chip % 3, y1:y2, x1:x2] = 230
    batch = make_batch([1] * 4, statuses=[Status.VALID])
    values = {"images": images, "boxes": boxes, "labels": torch.tensor([1, 2, 3, 1])}
    values |= {"sizes": torch.full((4, 2), 96), "scales": torch.ones(4), "ranges": torch.tensor([[0, torch.inf]] * 4)}
    return Batch(**{**vars(batch), **values})


def ap50(model: Detector, batch: Batch) -> float:
    """COCO's AP at an IoU of 0.5 of all that the network finds in the chips, the mean over their classes."""
    labels = list(range(1, CLASSES + 1))
    results, truth = [], []
    for chip, found in enumerate(predict(model.eval(), batch.images, batch.sizes)):
        kept = batched_nms(found.boxes, found.scores, found.labels, 0.5)  # a second box on an object is an error
        results.append(of_image(chip, Detections(*(each[kept].cpu().numpy() for each in found)), labels))
        for (x1, y1, x2, y2), label, _ in chip_boxes(batch, chip):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            truth.append({**box, "image_id": chip, "category_id": label})
    areas = {"all": (0.0, 1e10)}
    precision = run_coco(objects_of(truth), labels, join_results(results), areas, 100).precision(0.5)
    assert precision is not None
    return precision


def overfit(device: torch.device, precision: Precision) -> tuple[float, float]:
    """Train for STEPS steps; returns AP50 before and after, on the same chips."""
    batch = bright_rectangles().to(device)
    model = slim_detector(settings=SLIM.model_copy(update={"width": 32, "pooled": 5, "head_width": 128})).to(device)
    set_norm_policy(model, "train", freeze_stem=False, momentum=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, 2 - 2 * step / STEPS))
    before = ap50(model, batch)
    model.train()
    for step in range(STEPS):
        with autocast(device, precision):
            losses = Objective(model)(batch, seed=0, epoch=step, batch_size=4)
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        optimizer.step()
        schedule.step()
    return before, ap50(model, batch)
