"""What bench_loader.py compares with, run in .venv-peers: one epoch of a peer's loader over the same chips.

Each peer works as its own documentation shows, with two worker processes, and hands out the tensors that our loader
does; with "_our_decoder" the JPEG's bytes reach us and are decoded by simplejpeg. Imports nothing of the project.
"""

import argparse
import json
import os
import tarfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import decode_image

SIDE, BATCH, WORKERS = 512, 16, 2
STATUSES = {name: code for code, name in enumerate(["crowd", "ignore", "rescued", "out_of_range", "cut", "valid"])}
Loader = Any  # an iterable of batches
Sample = tuple[Any, dict[str, Any]]  # pixels [h, w, 3] as an array or PIL image, or a tensor [3, h, w]; manifest row


def decode(data: bytes) -> Any:
    return simplejpeg.decode_jpeg(data, "RGB")


def collate(samples: list[Sample]) -> dict[str, Any]:
    """The batch that our loader makes, see trainer/loading/batch.py."""
    images = torch.zeros(len(samples), SIDE, SIDE, 3, dtype=torch.uint8)
    boxes: list[dict[str, Any]] = []
    for slot, (pixels, row) in zip(images, samples, strict=True):
        if isinstance(pixels, Tensor):
            image = pixels.permute(1, 2, 0)
        else:  # only an image of Pillow's needs the copy
            image = torch.from_numpy(pixels if isinstance(pixels, np.ndarray) else np.array(pixels))
        slot[: row["height"], : row["width"]] = image
        boxes += row["boxes"]
    rows = [row for _, row in samples]
    inf = float("inf")
    return {
        "keys": [row["key"] for row in rows],
        "images": images.permute(0, 3, 1, 2),
        "sizes": torch.tensor([[row["height"], row["width"]] for row in rows]),
        "scales": torch.tensor([row["scale"] for row in rows]),
        "ranges": torch.tensor(
            [[row["range_min"], inf if row["range_max"] is None else row["range_max"]] for row in rows]
        ),
        "boxes": torch.tensor([[box["x1"], box["y1"], box["x2"], box["y2"]] for box in boxes]).reshape(-1, 4),
        "labels": torch.tensor([box["label"] for box in boxes], dtype=torch.int64),
        "status": torch.tensor([STATUSES[box["status"]] for box in boxes], dtype=torch.uint8),
        "visible": torch.tensor([box["visible"] for box in boxes]),
        "offsets": torch.tensor(np.cumsum([0, *(len(row["boxes"]) for row in rows)])),
    }


# --- The same chips in each peer's own format -------------------------------------------------------------


def prepare(chips: Path, work: Path) -> None:
    """Plain files, litData's chunks and mosaicml-streaming's shards beside our tar files, once."""
    files = work / "files"
    files.mkdir()
    for tar_path in sorted((chips / "positives").glob("*.tar")):
        with tarfile.open(tar_path) as tar:
            tar.extractall(files, filter="data")
    keys = sorted(path.stem for path in files.glob("*.jpg"))

    litdata, mds_writer = import_module("litdata"), import_module("streaming").MDSWriter
    for kind, make in (("documented", as_image), ("our_decoder", as_bytes)):
        inputs = [str(files / key) for key in keys]
        litdata.optimize(
            fn=make, inputs=inputs, output_dir=str(work / f"litdata-{kind}"), chunk_bytes="64MB", num_workers=WORKERS
        )
        columns = {"image": "jpeg" if kind == "documented" else "bytes", "row": "json"}
        with mds_writer(out=str(work / f"streaming-{kind}"), columns=columns) as writer:
            for name in inputs:
                writer.write(make(name) | {"row": json.loads(Path(f"{name}.json").read_bytes())})


def as_image(name: str) -> dict[str, Any]:
    return {"image": Image.open(f"{name}.jpg"), "row": Path(f"{name}.json").read_bytes()}


def as_bytes(name: str) -> dict[str, Any]:
    return {"image": Path(f"{name}.jpg").read_bytes(), "row": Path(f"{name}.json").read_bytes()}


# --- The loaders ------------------------------------------------------------------------------------------


def webdataset(chips: Path, work: Path, ours: bool) -> Loader:
    wds = import_module("webdataset")
    urls = sorted(str(path) for path in (chips / "positives").glob("*.tar"))
    data = wds.WebDataset(urls, shardshuffle=100).shuffle(1000)
    data = data.decode(wds.handle_extension("jpg", decode)) if ours else data.decode("pil")
    data = data.to_tuple("jpg", "json").batched(BATCH, collation_fn=collate)
    return wds.WebLoader(data, batch_size=None, num_workers=WORKERS)


def litdata(chips: Path, work: Path, ours: bool) -> Loader:
    ld = import_module("litdata")

    class Chips(ld.StreamingDataset):  # type: ignore[misc, name-defined]
        def __getitem__(self, index: Any) -> Sample:
            sample = super().__getitem__(index)
            return decode(sample["image"]) if ours else sample["image"], json.loads(bytes(sample["row"]))

    data = Chips(str(work / f"litdata-{'our_decoder' if ours else 'documented'}"), shuffle=True)
    return ld.StreamingDataLoader(data, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate)


def streaming(chips: Path, work: Path, ours: bool) -> Loader:
    mds = import_module("streaming")

    class Chips(mds.StreamingDataset):  # type: ignore[misc, name-defined]
        def __getitem__(self, index: Any) -> Sample:
            sample = super().__getitem__(index)
            return decode(sample["image"]) if ours else sample["image"], sample["row"]

    folder = work / f"streaming-{'our_decoder' if ours else 'documented'}"
    data = Chips(local=str(folder), shuffle=True, batch_size=BATCH)
    return DataLoader(data, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate)


class Files(Dataset[Sample]):
    """Image files, as torch's own tutorial on data sets reads them."""

    def __init__(self, folder: Path, ours: bool) -> None:
        self.names = sorted(str(path.with_suffix("")) for path in folder.glob("*.jpg"))
        self.ours = ours

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        pixels = decode(Path(f"{name}.jpg").read_bytes()) if self.ours else decode_image(f"{name}.jpg")
        return pixels, json.loads(Path(f"{name}.json").read_bytes())


def dataloader(chips: Path, work: Path, ours: bool) -> Loader:
    data = Files(work / "files", ours)
    return DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=WORKERS, collate_fn=collate)


PEERS: dict[str, Callable[[Path, Path, bool], Loader]] = {
    function.__name__: function for function in (webdataset, litdata, streaming, dataloader)
}


def cpu_time() -> float:
    """Seconds of CPU time that this process and its workers have used."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return float(sum(process.cpu_times().user + process.cpu_times().system for process in processes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["prepare", *PEERS, *(f"{name}_our_decoder" for name in PEERS)])
    parser.add_argument("chips", type=Path)
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"
    if arguments.what == "prepare":
        prepare(arguments.chips, arguments.work)
        return
    peer = arguments.what.removesuffix("_our_decoder")
    loader = PEERS[peer](arguments.chips, arguments.work, arguments.what != peer)
    started, seen = time.perf_counter(), 0
    samples: list[tuple[int, float]] = []  # chips seen, CPU time
    for number, batch in enumerate(loader):
        if not seen:
            first = time.perf_counter()
            num_first = len(batch["keys"])
        seen += len(batch["keys"])
        assert batch["images"].shape[1:] == (3, SIDE, SIDE)
        if number % 32 == 0:
            samples.append((seen, cpu_time()))
    rate = (seen - num_first) / (time.perf_counter() - first)
    (seen_0, cpu_0), (seen_1, cpu_1) = samples[1], samples[-1]
    cpu_us = 1e6 * (cpu_1 - cpu_0) / (seen_1 - seen_0)
    print(json.dumps({"rate": rate, "first_batch_s": first - started, "num_chips": seen, "cpu_us": cpu_us}))


if __name__ == "__main__":
    main()
