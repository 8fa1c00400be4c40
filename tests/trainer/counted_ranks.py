"""A tiny run on one of several ranks, and what a step exchanges: python counted_ranks.py DATA OUT [SETTING ...].

Each rank writes OUT/rank-N.json: keys, of the chips that it has in an epoch; sums, for each reduction over the ranks
how many numbers it has and when it begins and ends, in microseconds; backward, when that begins and ends; learning,
how many numbers learn; other, the names of all other collectives.
"""

import json
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.storage import Location
from tests.trainer.runs import tiny_settings
from trainer.evaluation.ground_truth import GroundTruth
from trainer.loading.order import State
from trainer.training import train as command
from trainer.training.loop import run_loop, train_step
from trainer.training.run import Run


def run_and_count(run: Run, truth: GroundTruth | None) -> Location:
    """Train as usual, then take one more step, whose weights nobody keeps, under torch's profiler."""
    kept = run_loop(run, truth)
    steps = list(run.loader.epoch(State(run.state.seed)))
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace:
        train_step(run, steps[0])
    events = sorted(trace.events() or [], key=lambda event: event.time_range.start)
    collectives = [event for event in events if event.name.startswith("gloo:")]
    sums = [(each.input_shapes[0], each.time_range) for each in collectives if each.name == "gloo:all_reduce"]
    backward = [event.time_range for event in events if event.name.endswith("convolution_backward")]
    found = {
        "keys": [key for step in steps for micro in step.micros for key in micro.to(run.rank.device).keys],
        "sums": [(torch.Size(shape).numel(), time.start, time.end) for shape, time in sums],
        "backward": (backward[0].start, backward[-1].end),
        "learning": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        "other": [each.name for each in collectives if each.name != "gloo:all_reduce"],
    }
    (Path(sys.argv[2]) / f"rank-{run.rank.index}.json").write_text(json.dumps(found))
    return kept


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, out, *assignments = sys.argv[1:]
    command.run_loop = run_and_count
    command.train(Path(data), Path(out), tiny_settings(*assignments))
