"""The boxes of a batch with one row per chip, and the draws that depend on a chip's key."""

from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from schemas.codes import Status
from trainer.loading.batch import Batch


@dataclass(frozen=True)
class PaddedBoxes:
    """The boxes of a batch with one row per chip, G = Batch.max_boxes. Slots without a box have `real` False.

    boxes: float32 [B, G, 4]; labels: int64 [B, G]; status: uint8 [B, G]; real: bool [B, G]
    """

    boxes: Tensor
    labels: Tensor
    status: Tensor
    real: Tensor

    def having(self, *statuses: Status) -> Tensor:
        """bool [B, G]: the real boxes with one of these statuses."""
        found = torch.zeros_like(self.real)
        for status in statuses:
            found |= self.status == status
        return found & self.real


def pad_boxes(batch: Batch) -> PaddedBoxes:
    slots = torch.arange(batch.max_boxes, device=batch.boxes.device)
    real = slots < batch.offsets.diff()[:, None]
    rows = torch.where(real, batch.offsets[:-1, None] + slots, 0)
    return PaddedBoxes(batch.boxes[rows], batch.labels[rows], batch.status[rows], real)


def key_states(keys: list[str], seed: int, epoch: int, device: torch.device, what: str = "") -> Tensor:
    """int64 [B]: a hash of (seed, epoch, key, what) per chip; the same on every machine."""
    hashes = [xxhash.xxh3_64_intdigest(f"{seed}/{epoch}/{what}/{key}".encode()) for key in keys]
    signed = torch.tensor([h - 2**64 if h >= 2**63 else h for h in hashes], dtype=torch.int64)
    return signed.to(device, non_blocking=True)


def hash_slots(states: Tensor, num: int) -> Tensor:
    """int64 [B, num] in 0..2^62-1: hash of (state, position), by splitmix64 (Steele, Lea, Flood 2014).

    Multiplication wraps in two's complement, so signed numbers give the bits of unsigned ones; a logical shift is
    an arithmetic one with the copies of the sign masked off.
    """
    x = states[:, None] + torch.arange(1, num + 1, device=states.device) * -0x61C8864680B583EB
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return (x ^ ((x >> 31) & (2**33 - 1))) & (2**62 - 1)
