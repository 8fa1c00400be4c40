"""A small chip data set with a pool of negatives, made once per test session; tests that change one copy it."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from pipeline.coco.read import read_coco
from pipeline.commands.chips import chips
from pipeline.dataset.cutting import cut_shard
from pipeline.dataset.job import ShardJob, Target
from pipeline.images.chip import codec
from pipeline.images.decode import decoders
from pipeline.planning.plan import plan_span
from schemas.settings import ChipSettings, Settings, load_settings
from scripts.make_demo_data import make_demo_data
from tests.trainer.runs import TINY_CHIPS, tiny_settings
from trainer.loading.dataset import ChipDataset
from trainer.training.train import train

SETTINGS = ChipSettings.model_validate({"size": 96, "scales": [0.5, 0.25, {"long_side": 96}], "images_per_shard": 2})
NUM_IMAGES = 5


@pytest.fixture(scope="session")
def chip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chips of five demo images, without negatives. Not to be changed."""
    folder = tmp_path_factory.mktemp("chips")
    make_demo_data(folder / "data", num_train=NUM_IMAGES, num_val=1)
    chips(folder / "data/train.json", folder / "data/train", folder / "out", Settings(chips=SETTINGS))
    return folder / "out"


@pytest.fixture(scope="session")
def pool_folder(chip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a pool: each positive once more as a negative. Not to be changed."""
    out = tmp_path_factory.mktemp("pool") / "out"
    shutil.copytree(chip_folder, out, ignore=shutil.ignore_patterns(".loader"))
    add_pool(out, chip_folder.parent / "data")
    return out


def add_pool(out: Path, data: Path) -> None:
    """Write OUT/negatives as `sniper negatives` would."""
    source = read_coco(data / "train.json")
    plan = plan_span(source, 0, NUM_IMAGES, SETTINGS).chips
    keys = pa.array([key.as_py().replace("p", "n") for key in plan["key"]])
    plan = plan.set_column(plan.schema.get_field_index("key"), "key", keys)
    plan = plan.set_column(
        plan.schema.get_field_index("kind"), "kind", pa.array(["negative"] * plan.num_rows, pa.string())
    )
    (out / "negatives").mkdir()
    images = source.images(0, NUM_IMAGES)
    recorded = SETTINGS.model_dump(mode="json")
    target = Target(out, "negatives", data / "train", SETTINGS, recorded, codec(), decoders())
    cut_shard(ShardJob(target, "chips-00000", images, plan), "pool")
    positives = json.loads((out / "run.json").read_bytes())["fingerprint"]
    run = {"fingerprint": "pool", "positives": positives, "num_shards": 1, "settings": {}, "files": {}, "counts": {}}
    (out / "negatives/run.json").write_text(json.dumps(run))


@pytest.fixture
def own_folder(pool_folder: Path, tmp_path: Path) -> Path:
    """A copy with a pool, to be changed at will; not opened yet."""
    out = tmp_path / "out"
    shutil.copytree(pool_folder, out, ignore=shutil.ignore_patterns(".loader"))
    return out


@pytest.fixture(scope="session")
def dataset(pool_folder: Path) -> ChipDataset:
    return ChipDataset(pool_folder)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo images, the chips of those for training, and no run. Not to be changed."""
    folder = tmp_path_factory.mktemp("evaluate")
    make_demo_data(folder, num_train=4, num_val=8)
    chips(folder / "train.json", folder / "train", folder / "chips", load_settings(None, TINY_CHIPS))
    return folder


@pytest.fixture(scope="session")
def checkpoint(demo: Path) -> Path:
    """The checkpoint of a tiny run on the demo's chips. Not to be changed."""
    torch.set_num_threads(1)
    return train(demo / "chips", demo / "run", tiny_settings("train.norm=train", "train.norm_momentum=0.3"))
