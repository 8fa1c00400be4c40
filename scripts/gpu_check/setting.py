"""What the functions behind the questions are called with, and the sizes that follow from it."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from schemas.settings import Precision


class Setting(NamedTuple):
    """What a function is called with.

    Attributes:
        device_type: "cuda", or "cpu", where all sizes are tiny.
        work: folder that all questions of a run share.
    """

    device_type: str
    work: Path

    @property
    def device(self) -> "torch.device":
        """Where the networks run."""
        import torch  # what starts other processes does without

        return torch.device(self.device_type)

    @property
    def sizes(self) -> "Sizes":
        """The sizes for this device."""
        return TINY if self.device_type == "cpu" else FULL


class Sizes(NamedTuple):
    """How much is computed.

    Attributes:
        chips: of a forward pass; side: theirs, in pixels.
        backbones: those that are compared with torchvision's; the last one serves all other questions.
        precisions: those that are compared.
        rounds: measured ones; one more warms up.
        block: steps that are taken one after the other where a loader has to keep up.
        scenes: generated images that chips are cut from, some ten from each.
        images: whole images that proposals are made on; searched: those that are detected on.
        photo: their longer side, in pixels.
        product: side of the matrices that are multiplied.
    """

    chips: int
    side: int
    backbones: tuple[str, ...]
    precisions: "tuple[Precision, ...]"
    rounds: int
    block: int
    scenes: int
    images: int
    searched: int
    photo: int
    product: int


FULL = Sizes(16, 512, ("resnet50", "resnet101"), ("bf16", "fp16"), 5, 20, 48, 128, 24, 640, 8192)
TINY = Sizes(2, 128, ("resnet18",), ("bf16", "fp32"), 1, 2, 4, 4, 2, 160, 256)


class SkippedError(Exception):
    """A question cannot be answered here; the message says why."""
