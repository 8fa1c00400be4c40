"""What begins with files: the loader in the training loop, and inference on whole images. All data are generated."""

import itertools
import math
import runpy
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.coco import SourceImage
from pipeline.commands.chips import chips
from pipeline.pyramid.nms import nms, soft_nms
from pipeline.pyramid.search import SearchLog
from schemas.settings import DetectSettings, Settings, load_settings
from scripts.bench.bench_detect import model_rate, pipeline_rate
from scripts.bench.bench_loader import repeat_chips
from scripts.bench.step_models import calibrated_state, plausible_batch
from scripts.gpu_check.setting import Setting
from scripts.gpu_check.steps import clock, default_model
from scripts.make_demo_data import make_demo_data
from trainer.inference.extract import propose_images
from trainer.inference.opening import Inference
from trainer.loading.batch import Batch
from trainer.loading.dataset import ChipDataset
from trainer.loading.loader import Step
from trainer.loading.order import State
from trainer.model import Detector
from trainer.runtime.checkpoint import find_checkpoints
from trainer.runtime.ranks import Rank
from trainer.training.loop import train_step
from trainer.training.run import Run, make_run

PHOTOS = 8  # files that are searched
SHAPES = ((640, 480), (640, 427), (480, 640), (640, 480))
"""Of the photos, width and height at full size: those that are most common in COCO."""
ALONE = 5  # blocks that the loader brings with nobody to train on them, so that what it had ready hardly counts


def demo_data(setting: Setting) -> Path:
    """Generated images, made once per run: train.json and val.json with their folders."""
    folder = setting.work / "demo"
    if not (folder / "val.json").exists():  # written last
        make_demo_data(folder, setting.sizes.scenes, PHOTOS)
    return folder


def settings_of(setting: Setting) -> Settings:
    """The paper's settings at the sizes of this device, for a run on one rank that begins from some weights."""
    sizes = setting.sizes
    weights = setting.work / f"{sizes.backbones[-1]}.pth"
    if not weights.exists():
        batch = plausible_batch(sizes.chips, setting.device, sizes.side)
        torch.save(calibrated_state(sizes.backbones[-1], batch), weights)
    assignments = [f"model.backbone={sizes.backbones[-1]}", f"train.batch_size={sizes.chips}"]
    assignments += [f"train.chips_per_rank={sizes.chips}", f"train.precision={sizes.precisions[0]}"]
    assignments += ["train.learning_rate=0.01", "train.norm=train", f"chips.size={sizes.side}"]
    assignments += [f"train.weights={weights}"]
    if sizes.side < 512:
        assignments += ["chips.scales=[0.5, {long_side: 128}]", "chips.ranges=[[0, 120], [100, null]]"]
    return load_settings(None, tuple(assignments))


def kernels(setting: Setting) -> Iterator[dict[str, Any]]:
    """Compile what cutting and searching need, so that no other question waits for it."""
    started = time.perf_counter()
    runpy.run_module("scripts.compile_kernels")
    yield {"compiling_s": time.perf_counter() - started}


def with_loader(setting: Setting) -> Iterator[dict[str, Any]]:
    """The training loop's own step: blocks of it on the same batches again and again, and on what the loader brings.

    Then how long a checkpoint lets the training wait, and how long it is being written.
    """
    data, settings, block = demo_data(setting), settings_of(setting), setting.sizes.block
    num_steps = block * (setting.sizes.rounds + 1 + ALONE) + 1
    num = setting.sizes.chips * num_steps  # all in one epoch, so that it begins only once
    started = time.perf_counter()
    dataset = ChipDataset(repeated_chips(data, setting.work, settings, num))
    yield {"num_chips": len(dataset), "preparing_s": time.perf_counter() - started}
    rank = Rank(0, 1, setting.device)
    run = make_run(dataset, setting.work / "run", settings, rank, last=None, rpn_only=False)
    run.is_timed = True  # it tells nothing of its passes
    whole = whole_steps(run)
    fixed = list(itertools.islice(whole, block))  # as many boxes as others have, and so as much work
    num = fixed[0].num_chips
    started = time.perf_counter()
    for _ in itertools.islice(whole, ALONE * block):
        pass
    yield {"loader_alone_chips_per_s": ALONE * block * num / (time.perf_counter() - started)}
    for step in fixed[:3]:
        train_step(run, step)
    seconds: dict[str, list[float]] = {"fixed": [], "loaded": []}
    for _ in range(setting.sizes.rounds):
        for name, steps in (("fixed", iter(fixed)), ("loaded", whole)):
            began = clock(setting.device)
            for step in itertools.islice(steps, block):
                train_step(run, step)
            seconds[name].append((clock(setting.device) - began) / block)
    for name, taken in seconds.items():
        yield {f"{name}_chips_per_s": num / statistics.median(taken)}
    ratios = [a / b for a, b in zip(seconds["fixed"], seconds["loaded"], strict=True)]
    yield {"of_fixed_batch": statistics.median(ratios)}
    run.out.mkdir()
    started = clock(setting.device)
    run.keep()
    waited = time.perf_counter()
    run.settle()
    yield {"checkpoint_waits_ms": (waited - started) * 1e3, "checkpoint_written_s": time.perf_counter() - waited}
    yield {"checkpoint_mb": sum(path.stat().st_size for path in find_checkpoints(run.out)) / 1e6}


def repeated_chips(data: Path, work: Path, settings: Settings, at_least: int) -> Path:
    """Chips of the demo's images, repeated under new keys until there are enough of them."""
    chips(data / "train.json", data / "train", work / "once", settings)
    repeat_chips(work / "once", work / "chips", at_least)
    shutil.copy(work / "once/categories.parquet", work / "chips")
    return work / "chips"


def whole_steps(run: Run) -> Iterator[Step]:
    """The loader's steps that are no short ones, epoch after epoch."""
    for epoch in itertools.count():
        for step in run.loader.epoch(State(0, epoch)):
            if step.num_chips == run.loader.batch_size:
                yield step


def photos(setting: Setting) -> tuple[list[SourceImage], Path]:
    """Images of COCO's shapes, a few files again and again, and the folder that they lie in."""
    folder, sizes = setting.work / "photos", setting.sizes
    folder.mkdir(exist_ok=True)
    files = []
    for path, (width, height) in zip(sorted((demo_data(setting) / "val").iterdir()), itertools.cycle(SHAPES)):
        with Image.open(path) as image:
            scaled = image.resize((width * sizes.photo // 640, height * sizes.photo // 640))
            scaled.save(folder / path.name, quality=92)
            files.append((path.name, *scaled.size))
    return [SourceImage(i, *files[i % len(files)]) for i in range(sizes.images)], folder


def whole_images(setting: Setting) -> Iterator[dict[str, Any]]:
    """Detection of files at all scales against the network alone on the same views, read before."""
    images, root = photos(setting)
    images = images[: setting.sizes.searched]
    batch = plausible_batch(setting.sizes.chips, setting.device, setting.sizes.side)
    model = default_model(setting, batch).eval()
    imitate_training(model, batch)
    nothing = np.empty((0, 4), np.float32)
    soft_nms(nothing, nothing[:, 0], np.empty(0, np.int64))  # compiled before any time is taken
    nms(nothing, 0.5)
    rows = []
    for _ in range(setting.sizes.rounds + 1):
        whole, waited = pipeline_rate(model, images, root, setting.device)
        alone = model_rate(model, images, root, setting.device)
        rows.append((whole, alone, whole / alone, waited))
        if len(rows) == 1:
            yield {"first_round_images_per_s": whole, "first_round_model_only_images_per_s": alone}
        names = ("images_per_s", "model_only_images_per_s", "of_model_only", "data_wait_share")
        columns = zip(*rows[1:], strict=True)  # the first one warms up: cuDNN chooses kernels for each shape in it
        yield {
            "rounds": len(rows[1:]),
            **{name: statistics.median(c) for name, c in zip(names, columns, strict=False)},
        }


@torch.no_grad()
def imitate_training(model: Detector, batch: Batch) -> None:
    """Let one score of a class in fifty be above the least that counts, some 8,000 in an image, as after a training.

    A random head has them all above it, and then what is measured is the merging of detections.
    """
    rois = torch.tensor([0.0, 0.0, 1.0, 1.0], device=batch.images.device) * batch.images.shape[2]
    logits, _ = model.detect(model(batch.images, batch.sizes), rois.expand(len(batch), 1, 4))
    model.head.scores.weight /= logits.std()  # as if drawn from N(0, 1); 2 % of these are above 2.05
    model.head.scores.bias[0] = 2.05 - math.log(DetectSettings().min_score)


def extraction_seconds(model: Detector, setting: Setting) -> tuple[float, float]:
    """Seconds per image for the RPN's proposals at all scales, and the share of them spent waiting for pixels."""
    images, root = photos(setting)
    settings = settings_of(setting)
    precision = setting.sizes.precisions[0]
    inference = Inference(model.eval(), settings.chips, settings.detect, setting.device, precision)
    everything = [range(len(images))]
    for _ in propose_images(inference, everything, images, root, SearchLog()):
        pass  # warms up
    log = SearchLog()
    started = clock(setting.device)
    for _ in propose_images(inference, everything, images, root, log):
        pass
    return (clock(setting.device) - started) / len(images), log.data_wait
