"""What `sniper export` writes is what other programs read, and train on."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from pipeline.exchange.export import ExportReport, export
from schemas.codes import IGNORED_NAMES
from tests.builders import read_manifest

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def exports(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ExportReport]]:
    """Folder and report of the export to each format."""
    folder = tmp_path_factory.mktemp("exports")
    return {
        kind: (folder / kind, export(data, folder / kind, format=kind, workers=1)) for kind in ("coco", "yolo", "hf")
    }


def test_ultralytics__trains_an_epoch_without_a_download(exports: dict[str, Any], tmp_path: Path) -> None:
    import numpy as np
    from ultralytics import YOLO

    out, report = exports["yolo"]
    network = YOLO("yolo11n.yaml")
    options = {"epochs": 1, "imgsz": 160, "batch": 8, "workers": 0, "device": "cpu", "plots": False, "amp": False}
    metrics = network.train(data=str(out / "data.yaml"), project=str(tmp_path), name="run", **options)
    assert metrics.names == yaml.safe_load((out / "data.yaml").read_text())["names"]
    assert (tmp_path / "run/weights/last.pt").is_file()
    (cache,) = (out / "labels").glob("train.cache")
    labels = np.load(cache, allow_pickle=True).item()["labels"]
    assert len(labels) == report.tally.num_chips
    assert sum(len(one["cls"]) for one in labels) == report.tally.num_objects


def test_datasets__loads_the_export_and_the_shards_themselves(
    exports: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    from datasets import load_dataset

    out, report = exports["hf"]
    loaded = load_dataset(str(out), cache_dir=str(tmp_path))["train"]
    assert len(loaded) == report.tally.num_chips
    names = loaded.features["objects"]["category"].feature.names
    rows = {row["key"]: row for row in read_manifest(data).iter_rows(named=True)}
    for one in loaded:
        row = rows[one["key"]]
        assert one["image"].size == (row["width"], row["height"])
        assert [names[label] for label in one["objects"]["category"]] == [names[b["label"] - 1] for b in row["boxes"]]
        assert one["objects"]["iscrowd"] == [box["status"] in IGNORED_NAMES for box in row["boxes"]]
        for (x, y, width, height), box in zip(one["objects"]["bbox"], row["boxes"], strict=True):
            assert [x, y, x + width, y + height] == pytest.approx([box[n] for n in ("x1", "y1", "x2", "y2")], abs=0.01)
    shards = sorted(map(str, (data / "positives").glob("*.tar")))
    plain = load_dataset("webdataset", data_files={"train": shards}, cache_dir=str(tmp_path))["train"]
    assert sorted(plain["__key__"]) == sorted(rows)
    assert plain[0]["jpg"].size == (plain[0]["json"]["width"], plain[0]["json"]["height"])


def test_torchvision__collates_as_its_reference_does_and_takes_a_step(exports: dict[str, Any]) -> None:
    import torch
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
    from torchvision.transforms import v2

    out, report = exports["coco"]
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    found = CocoDetection(out / "train", out / "annotations/instances_train.json", transforms=to_tensor)
    chips = wrap_dataset_for_transforms_v2(found, target_keys=("boxes", "labels"))
    assert len(chips) == report.tally.num_chips
    loader = torch.utils.data.DataLoader(chips, batch_size=4, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    network = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=91).train()
    pairs = zip(*next(iter(loader)), strict=True)
    with_boxes = [(image, target) for image, target in pairs if "boxes" in target]
    images, targets = zip(*with_boxes, strict=True)
    losses = network(list(images), list(targets))
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_supervision__loads_coco_and_yolo(exports: dict[str, Any]) -> None:
    import supervision

    out, report = exports["coco"]
    content = json.loads((out / "annotations/instances_train.json").read_bytes())
    coco = supervision.DetectionDataset.from_coco(str(out / "train"), str(out / "annotations/instances_train.json"))
    assert len(coco) == report.tally.num_chips
    assert sum(len(found) for _, _, found in coco) == len(content["annotations"])
    out, report = exports["yolo"]
    yolo = supervision.DetectionDataset.from_yolo(
        str(out / "images/train"), str(out / "labels/train"), str(out / "data.yaml")
    )
    assert len(yolo) == report.tally.num_chips
    assert sum(len(found) for _, _, found in yolo) == report.tally.num_objects
    assert yolo.classes == coco.classes


def test_polars__reads_the_hugging_face_files(exports: dict[str, Any]) -> None:
    out, report = exports["hf"]
    frame = pl.scan_parquet(sorted((out / "data").glob("*.parquet")), glob=False)
    assert frame.select(pl.len()).collect().item() == report.tally.num_chips
