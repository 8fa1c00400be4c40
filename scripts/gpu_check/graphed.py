"""A trial: backbone and neck as a CUDA graph, which the host launches as one. The program itself has none."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from scripts.bench.step_models import losses_of, plausible_batch, stepper
from scripts.gpu_check.correctness import LAYERS
from scripts.gpu_check.setting import Setting
from scripts.gpu_check.steps import STEPS, compare, default_model
from trainer.loading.batch import Batch
from trainer.model import Detector
from trainer.model.detector import Features
from trainer.model.heads import autocast

MOST_OFF = 0.05
"""How far a gradient with the graph may lie from the one without, as a share of it: bf16 adds up in any order."""


class Maps(nn.Module):
    """Backbone and neck of a network with a feature pyramid, whose output is tensors alone, as a graph wants it."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck
        self._whole = [model]  # in a list, so that the graph knows of no other parameters

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """The maps, and behind them their rows."""
        features = Detector.forward(self._whole[0], images, sizes)
        return (*(level.detach() for level in features.maps), features.rows)  # gradients come by the rows alone


def use_maps(model: Detector, maps: Callable[..., Any]) -> None:
    """Have a network take its features from what takes and returns the same as `Maps`."""

    def forward(images: Tensor, sizes: Tensor) -> Features:
        *levels, rows = maps(images, sizes)
        return Features(levels, rows, rows, levels[model.focus_level])

    model.forward = forward  # type: ignore[method-assign]


def graph(setting: Setting) -> Iterator[dict[str, Any]]:
    """A step with and without the graph, and how far gradients with it lie from those without."""
    batch = plausible_batch(setting.sizes.chips, setting.device, setting.sizes.side)
    precision = setting.sizes.precisions[0]
    plain, graphed = default_model(setting, batch), default_model(setting, batch)
    # the cache of casts would hand the graph tensors that are gone when it runs again
    with torch.autocast(setting.device_type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        use_maps(graphed, torch.cuda.make_graphed_callables(Maps(graphed), (batch.images, batch.sizes)))
    without, with_it = (gradients(model, batch, setting) for model in (plain, graphed))
    off = {name: ((with_it[name] - without[name]).norm() / without[name].norm()).item() for name in LAYERS}
    yield {f"gradient_off_{name}": value for name, value in off.items()}
    if not max(off.values()) <= MOST_OFF:
        raise AssertionError(f"gradients with the graph are other ones: off by {off}, at most {MOST_OFF} was expected")
    steps = {
        "ours": stepper(plain, losses_of(plain, batch), precision, STEPS),
        "graphed": stepper(graphed, losses_of(graphed, batch), precision, STEPS),
    }
    yield from compare("step", steps, setting.sizes.rounds, len(batch))


def gradients(model: Detector, batch: Batch, setting: Setting) -> dict[str, Tensor]:
    """The gradients of LAYERS, float32."""
    with autocast(setting.device, setting.sizes.precisions[0]):
        losses = losses_of(model, batch)()
    total, parameters = torch.stack(list(losses.values())).sum(), dict(model.named_parameters())
    found = torch.autograd.grad(total, [parameters[name] for name in LAYERS])
    return {name: gradient.float() for name, gradient in zip(LAYERS, found, strict=True)}
