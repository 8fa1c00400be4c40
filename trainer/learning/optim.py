"""What the optimiser does at which step: parameter groups, the rate's schedule, the average of weights."""

import torch
from torch import nn

from schemas.settings import REFERENCE_BATCH, TrainSettings

WARMUP_START = 1 / 30  # of the rate: 0.0005 of 0.015 (docs/method.md, 9.3)
DECAY = 0.1


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.SGD:
    """SGD with two groups by one rule: what has more than one dimension decays, biases and norms do not."""
    learn = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learn if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in learn if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)


def learning_rate(step: int, epoch: int, settings: TrainSettings) -> float:
    """The rate of one step, a pure function of where it stands.

    Args:
        step: global, from 0; warm-up is linear in it.
        epoch: from 0; the rate is divided by ten at every decay epoch reached.
    """
    full = settings.learning_rate * settings.batch_size / REFERENCE_BATCH
    full *= DECAY ** sum(epoch >= decay for decay in settings.decay_epochs)
    if step >= settings.warmup_steps:
        return full
    return full * (WARMUP_START + (1 - WARMUP_START) * step / settings.warmup_steps)


class Ema:
    """The exponential moving average of a model's floating-point state; the rest is copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        new = model.state_dict()
        moving = [name for name, value in self.state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in moving], [new[n] for n in moving], 1 - self.decay)
        for name in self.state.keys() - set(moving):
            self.state[name].copy_(new[name])
