"""The exported network in onnxruntime against the network itself in PyTorch: the same views, threads and machine.

Both take bytes and give scored boxes; they take turns within a round, and the ratio is the median over rounds, so
other load on the machine hits both alike. The largest difference of what they find is printed beside it. The network
is random, with norms that fit the images, so what it finds means nothing and costs what it costs after training.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch

from schemas.settings import ChipSettings, Settings
from scripts.bench.step_models import CLASSES, calibrated_state, our_model, plausible_batch, tell
from trainer.inference.export_model import ViewNetwork, export_model, largest_difference
from trainer.inference.opening import open_detector
from trainer.runtime.checkpoint import Checkpoint, write_checkpoint


def random_checkpoint(path: Path, backbone: str, side: int) -> None:
    """A checkpoint of a network that was never trained."""
    batch = plausible_batch(2, torch.device("cpu"), side)
    model = our_model(backbone, calibrated_state(backbone, batch), side)
    settings = {"model": model.settings.model_dump(mode="json"), "train": {"epochs": 1}}
    categories = [(label, f"class {label}") for label in range(1, CLASSES + 1)]
    chips = ChipSettings(size=side).model_dump(mode="json")
    state = model.state_dict()
    write_checkpoint(
        path,
        Checkpoint(state, None, {}, {}, 0, (0, 0, 0), settings, "frozen", "fp32", False, categories, chips, {}, -1.0),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="measured; one more warms up")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_checkpoint(folder / "random.pt", args.backbone, args.side)
        started = time.perf_counter()
        checked = export_model(folder / "random.pt", folder / "network.onnx")
        exporting = time.perf_counter() - started
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(folder / "network.onnx", options, providers=["CPUExecutionProvider"])
        megabytes = (folder / "network.onnx").stat().st_size / 1e6
        _, inference = open_detector(folder / "random.pt", Settings(), torch.device("cpu"))
    network = ViewNetwork(inference.model, by_area=True)
    batch = plausible_batch(args.batch_size, torch.device("cpu"), args.side)
    views, sizes = batch.images.permute(0, 2, 3, 1).contiguous(), batch.sizes
    seconds: dict[str, list[float]] = {"eager": [], "onnxruntime": []}
    for number in range(args.rounds + 1):
        started = time.perf_counter()
        with torch.inference_mode():
            expected = [values.numpy() for values in network(views, sizes)]
        between = time.perf_counter()
        found = session.run(None, {"images": views.numpy(), "sizes": sizes.numpy()})
        taken = {"eager": between - started, "onnxruntime": time.perf_counter() - between}
        if number:
            for key, value in taken.items():
                seconds[key].append(value)
        print(f"round {number} of {args.rounds}: {taken}", file=sys.stderr)
    ratios = [a / b for a, b in zip(seconds["eager"], seconds["onnxruntime"], strict=True)]
    result: dict[str, object] = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    result["ratio"] = round(statistics.median(ratios), 2)
    result["ratios"] = [round(ratio, 2) for ratio in sorted(ratios)]
    result["largest_difference"] = max(checked, largest_difference(expected, found, args.side))
    result |= {"export_seconds": round(exporting, 1), "megabytes": round(megabytes, 1), "backbone": args.backbone}
    result |= {"side": args.side, "batch_size": args.batch_size, "threads": torch.get_num_threads()}
    tell(result, args.json)


if __name__ == "__main__":
    main()
