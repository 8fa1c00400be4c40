"""The precision that a network computes in."""

import torch

from schemas.settings import Precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a network computes with this precision on this device (docs/method.md, 6.6)."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")
