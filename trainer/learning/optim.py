"""The optimiser: groups of parameters, the moving average of weights (docs/method.md, 9)."""

import torch
from torch import nn

from schemas.settings import TrainSettings


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.SGD:
    """Make SGD over the parameters that learn; those of more than one dimension decay (docs/method.md, 9.3)."""
    learn = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learn if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in learn if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)


class Ema:
    """The exponential moving average of the floating-point numbers in a model's state; integers are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with the model's numbers as they are; `decay` is the share of the old average at each update."""
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's numbers into the average, after an optimiser step."""
        new = model.state_dict()
        moving = [name for name, value in self.state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in moving], [new[n] for n in moving], 1 - self.decay)
        if counts := list(self.state.keys() - set(moving)):  # in one piece, since they are a hundred small kernels
            torch._foreach_copy_([self.state[n] for n in counts], [new[n] for n in counts])
