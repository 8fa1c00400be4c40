"""What each change of the chips costs on the device, beside a training step of our R50-FPN on as many chips.

The changes and the step take turns within a round, and shares of the step are medians over rounds, so other load on
the machine hits all alike. `mirror` is what every run does by default; the others are what is done on top of it.
"""

import statistics
import sys
import time

import numpy as np
import torch

from schemas.settings import LoaderSettings
from scripts.bench.step_models import (
    calibrated_state,
    device_name,
    losses_of,
    our_model,
    plausible_batch,
    step_arguments,
    stepper,
    tell,
)
from trainer.loading.augment import Draws, Limits, augment, draw_changes

CHANGES = {
    "mirror": LoaderSettings(),
    "vertical_flip": LoaderSettings(vertical_flip=True),
    "quarter_turns": LoaderSettings(quarter_turns=True),
    "jitter": LoaderSettings(jitter=0.2),
    "scale_jitter": LoaderSettings(scale_jitter=0.25),
    "all": LoaderSettings(vertical_flip=True, quarter_turns=True, jitter=0.2, scale_jitter=0.25),
}


def main() -> None:
    args = step_arguments(__doc__).parse_args()
    device = torch.device(args.device)
    batch = plausible_batch(args.batch_size, device)
    hashes = np.random.default_rng(0).integers(0, 2**63, args.batch_size, dtype=np.uint64)
    draws = {name: draw_changes(hashes, settings, 0, 0).to(device) for name, settings in CHANGES.items()}
    model = our_model("resnet50", calibrated_state("resnet50", batch)).to(device)
    step = stepper(model, losses_of(model, batch), args.precision)

    def changed(drawn: Draws) -> float:
        start = time.perf_counter()
        augment(batch, drawn, Limits())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds: dict[str, list[float]] = {name: [] for name in ("step", *draws)}
    for number in range(args.rounds + 1):
        taken = {"step": step()} | {name: changed(drawn) for name, drawn in draws.items()}
        if number:
            for name, value in taken.items():
                seconds[name].append(value)
        print(f"round {number} of {args.rounds}: step {taken['step']:.2f} s", file=sys.stderr)
    result: dict[str, object] = {
        "step_ms_per_chip": round(1000 * statistics.median(seconds["step"]) / args.batch_size, 3)
    }
    for name in draws:
        plain = zip(seconds[name], seconds["mirror"] if name != "mirror" else [0.0] * args.rounds, strict=True)
        added = [after - before for after, before in plain]
        shares = [value / whole for value, whole in zip(added, seconds["step"], strict=True)]
        result[f"{name}_ms_per_chip"] = round(1000 * statistics.median(added) / args.batch_size, 3)
        result[f"{name}_share_of_step"] = round(statistics.median(shares), 4)
    result |= {"device": device_name(device), "batch_size": args.batch_size, "precision": args.precision}
    tell(result, args.json)


if __name__ == "__main__":
    main()
