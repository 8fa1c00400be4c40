"""Settings of a training run. Rates are for a global batch of 128 with averaged gradients (docs/method.md, 9.2)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.settings.section import Section

Norm = Literal["train", "sync", "frozen"]
Precision = Literal["bf16", "fp16", "fp32"]
REFERENCE_BATCH = 128
"""The batch that `learning_rate` is for; it is scaled in proportion to another."""


class TrainSettings(Section):
    """How the detector is trained. What a chip or an epoch is stands in other sections."""

    epochs: int = Field(12, ge=1)
    """How often the run goes through the chips; half as often as the paper (docs/method.md, 9.1)."""

    batch_size: int = Field(128, ge=1)
    """Chips of one step, over all ranks."""

    chips_per_rank: int = Field(16, ge=1)
    """Chips that a rank takes in one forward pass. Where its share of the step is larger, it takes several passes and
    sums their gradients. Lower it where memory runs out; batch norm, where it learns, has the statistics of one
    pass."""

    learning_rate: float = Field(0.12, gt=0, le=1000)
    """The rate for 128 chips in a step. It is scaled in proportion to train.batch_size."""

    decay_epochs: list[Annotated[float, Field(gt=0)]] = Field([5 / 6])
    """Where the rate is divided by ten: shares of the run if below 1, finished epochs from 1 up."""

    warmup_steps: int = Field(1000, ge=0)
    """Steps in which the rate rises linearly from a thirtieth of itself. They are at most a quarter of the run
    (docs/method.md, 9.3)."""

    weight_decay: float = Field(1.25e-5, ge=0, le=1)
    """Weight decay of convolutions and linear layers. Biases and norms have none."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of the optimiser, which is SGD."""

    precision: Precision | None = None
    """Number format of the forward pass. null means bf16 on a GPU and fp32 on a CPU."""

    weights: str | None = None
    """What the network starts from: a name of torchvision such as ResNet101_Weights.IMAGENET1K_V2, a file, or the
    folder of a run. null means from scratch."""

    norm: Norm | None = None
    """Whether batch norm learns from the chips of each rank (train) or of all (sync), or keeps its statistics
    (frozen). null means train where the run starts from scratch or every forward pass has 8 chips or more, and frozen
    elsewhere."""

    norm_momentum: float = Field(0.005, gt=0, le=1)
    """Share of each forward pass in the running statistics of batch norm (docs/method.md, 6.5)."""

    clip_gradient: float | None = Field(None, gt=0)
    """A gradient with a larger norm is scaled down to it. null means that none is."""

    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of a running average of the weights, which is then what detects. null means no average."""

    compile: bool = False
    """Whether torch.compile compiles the backbone."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Decides the weights that start anew and every draw."""

    log_every: int = Field(20, ge=1)
    """Steps from one record of the log to the next."""

    save_minutes: float = Field(10, gt=0)
    """Minutes from one checkpoint to the next, which comes with a record of the log. Each epoch ends with one as well.
    Training goes on while it is written."""

    save_every: int | None = Field(None, ge=1)
    """Steps from one checkpoint to the next, beside those by time. null means no such steps."""

    keep: int = Field(3, ge=1)
    """How many of the last checkpoints stay. From 2 up, one or two from well before stay beside them."""

    evaluate_every: int = Field(1, ge=1)
    """Epochs from one validation to the next, where validation data are given."""

    picture_every: int = Field(500, ge=1)
    """Steps from one picture of a batch to the next."""

    tensorboard: bool = False
    """Whether the log is also written for TensorBoard, into RUN/tensorboard."""

    @model_validator(mode="after")
    def _decays_ascend(self) -> Self:
        if sorted(set(self.decay_epochs)) != self.decay_epochs:
            raise ValueError(f"decay_epochs {self.decay_epochs} must ascend")
        if self.decay_epochs and self.decay_epochs[0] < 1 <= self.decay_epochs[-1]:
            raise ValueError(f"decay_epochs {self.decay_epochs}: give either shares below 1 or epochs from 1 up")
        return self
