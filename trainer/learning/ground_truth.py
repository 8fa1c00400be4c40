"""The boxes of a batch with one row per chip, and the draws that depend on a chip's key."""

from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from schemas.codes import Status
from trainer.loading.batch import Batch


@dataclass(frozen=True)
class PaddedBoxes:
    """The boxes of a batch with one row per chip, G = Batch.max_boxes of them.

    Attributes:
        boxes: float32 [B, G, 4], chip pixels.
        labels: int64 [B, G], 1..K.
        status: uint8 [B, G], schemas.codes.Status.
        visible: float32 [B, G], share of the whole box that the chip shows.
        real: bool [B, G]; False where a slot holds no box, and then the others mean nothing.
        max_crowds: the most crowds of one chip; with 0 nothing is compared with them.
    """

    boxes: Tensor
    labels: Tensor
    status: Tensor
    visible: Tensor
    real: Tensor
    max_crowds: int

    def having(self, *statuses: Status) -> Tensor:
        """Tell which slots hold a box with one of these statuses, bool [B, G]."""
        found = self.status == statuses[0]
        for status in statuses[1:]:
            found |= self.status == status
        return found & self.real


def pad_boxes(batch: Batch) -> PaddedBoxes:
    """Lay out the ragged boxes of a batch with one row per chip, on the batch's device."""
    slots = torch.arange(batch.max_boxes, device=batch.boxes.device)
    real = slots < batch.offsets.diff()[:, None]
    rows = torch.where(real, batch.offsets[:-1, None] + slots, 0)
    columns = (batch.boxes[rows], batch.labels[rows], batch.status[rows], batch.visible[rows])
    return PaddedBoxes(*columns, real, batch.max_crowds)


def key_states(keys: list[str], seed: int, epoch: int, device: torch.device) -> Tensor:
    """Hash each chip's (seed, epoch, key), the same on every machine (docs/method.md, 12.2).

    Args:
        keys: the chips' keys, B of them.
        seed: of the run.
        epoch: from 0.
        device: where the result lies.

    Returns:
        int64 [B], any bits.
    """
    # the two slashes in a row stay, since other texts would give other draws
    hashes = [xxhash.xxh3_64_intdigest(f"{seed}/{epoch}//{key}".encode()) for key in keys]
    signed = torch.tensor([h - 2**64 if h >= 2**63 else h for h in hashes], dtype=torch.int64)
    return signed.to(device, non_blocking=True)


def hash_slots(states: Tensor, num: int) -> Tensor:
    """Hash (state, position) for the positions 0 to num - 1, by splitmix64 (docs/method.md, 12.2).

    Multiplication wraps in two's complement, so signed numbers give the bits of unsigned ones; a logical shift is
    an arithmetic one with the copies of the sign masked off.

    Args:
        states: int64 [B], from `key_states`.
        num: positions of each chip.

    Returns:
        int64 [B, num], 0 to 2^62 - 1.
    """
    x = states[:, None] + torch.arange(1, num + 1, device=states.device) * -0x61C8864680B583EB
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return (x ^ ((x >> 31) & (2**33 - 1))) & (2**62 - 1)
