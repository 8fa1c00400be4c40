"""What the focus head costs in a training step of ResNet-101, with a feature pyramid and with c5, on chips of 512 px.

    python -m scripts.bench.bench_focus_step --json bench-results/focus-step.json

The share of floating-point operations is counted by torch and depends on no machine. For the times, networks with it
and without it take turns, and the ratio is the median over rounds.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.pyramid.focus import focus_limits
from schemas.settings import ChipSettings, ModelSettings
from scripts.bench.step_models import CLASSES, plausible_batch
from trainer.learning.objective import Objective
from trainer.model import Detector
from trainer.runtime.weights import set_norm_policy


def make_step(neck: str, *, focus: bool, num_chips: int) -> Callable[[], None]:
    """Return what takes a forward and a backward pass, without the optimiser."""
    torch.manual_seed(0)
    chips = ChipSettings()
    settings = ModelSettings.model_validate({"neck": neck, "focus": focus})
    model = Detector(settings, CLASSES, chips.size)
    set_norm_policy(model, "frozen")
    objective = Objective(model.train(), focus_limits(chips.bounds()))
    batch = plausible_batch(num_chips, torch.device("cpu"))

    def step() -> None:
        losses = objective(batch, seed=0, epoch=0, batch_size=num_chips)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())

    return step


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--chips", "num_chips", default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(rounds: int, num_chips: int, json_file: Path | None) -> None:
    """Print for each neck by which share a step has more operations, and takes more time of all cores."""
    figures = {}
    for neck in ("fpn", "c5"):
        steps = {focus: make_step(neck, focus=focus, num_chips=num_chips) for focus in (False, True)}
        operations = {}
        for focus, step in steps.items():
            with FlopCounterMode(display=False) as counter:
                step()
            operations[focus] = counter.get_total_flops()
        ratios = []
        for _ in range(rounds):
            seconds = {}
            for focus, step in steps.items():
                began = time.process_time()
                step()
                seconds[focus] = time.process_time() - began
            ratios.append(seconds[True] / seconds[False] - 1)
        share = operations[True] / operations[False] - 1
        figures[neck] = {"operations": share, "core_time": statistics.median(ratios)}
        click.echo(f"{neck}: {share:+.1%} operations, {statistics.median(ratios):+.1%} core time")
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
