"""What begins with files: proposals on whole images. All data are generated."""

from pathlib import Path

from PIL import Image

from pipeline.coco import SourceImage
from pipeline.pyramid.search import SearchLog
from schemas.settings import Settings, load_settings
from scripts.gpu_check.setting import Setting
from scripts.gpu_check.steps import clock
from scripts.make_demo_data import make_demo_data
from trainer.inference.extract import propose_images
from trainer.inference.opening import Inference
from trainer.model import Detector

PHOTOS = 8  # files that are searched


def demo_data(setting: Setting) -> Path:
    """Generated images, made once per run: train.json and val.json with their folders."""
    folder = setting.work / "demo"
    if not (folder / "val.json").exists():  # written last
        make_demo_data(folder, setting.sizes.scenes, PHOTOS)
    return folder


def settings_of(setting: Setting) -> Settings:
    """The paper's settings at the sizes of this device, for a run on one of its ranks."""
    sizes = setting.sizes
    assignments = [f"model.backbone={sizes.backbones[-1]}", f"train.batch_size={sizes.chips}"]
    assignments += [f"train.chips_per_rank={sizes.chips}", f"train.precision={sizes.precisions[0]}"]
    assignments += ["train.learning_rate=0.01", "train.norm=train", f"chips.size={sizes.side}"]
    if sizes.side < 512:
        assignments += ["chips.scales=[0.5, {long_side: 128}]", "chips.ranges=[[0, 120], [100, null]]"]
    return load_settings(None, tuple(assignments))


def photos(setting: Setting) -> tuple[list[SourceImage], Path]:
    """Images of COCO's size, a few files again and again, and the folder that they lie in."""
    folder, sizes = setting.work / "photos", setting.sizes
    folder.mkdir(exist_ok=True)
    files = []
    for path in sorted((demo_data(setting) / "val").iterdir()):
        with Image.open(path) as image:
            image.thumbnail((sizes.photo, sizes.photo))
            image.save(folder / path.name, quality=92)
            files.append((path.name, *image.size))
    return [SourceImage(i, *files[i % len(files)]) for i in range(sizes.images)], folder


def extraction_seconds(model: Detector, setting: Setting) -> float:
    """Seconds per image for the RPN's proposals at all scales."""
    images, root = photos(setting)
    settings = settings_of(setting)
    precision = setting.sizes.precisions[0]
    inference = Inference(model.eval(), settings.chips, settings.detect, setting.device, precision)
    everything = [range(len(images))]
    for _ in propose_images(inference, everything, images, root, SearchLog()):
        pass  # warms up
    started = clock(setting.device)
    for _ in propose_images(inference, everything, images, root, SearchLog()):
        pass
    return (clock(setting.device) - started) / len(images)
