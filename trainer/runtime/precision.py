"""The context that a network computes in."""

import torch

from schemas.settings import Precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")
