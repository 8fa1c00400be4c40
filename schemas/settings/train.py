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

    epochs: int = Field(12, ge=1, description="passes over the chips; half of the paper's (docs/method.md, 9.1)")
    batch_size: int = Field(128, ge=1, description="chips of the global batch")
    chips_per_rank: int = Field(16, ge=1, description="chips of one forward pass; more are accumulated")
    learning_rate: float = Field(0.12, gt=0, description="at batch 128, scaled with the batch")
    decay_epochs: list[Annotated[float, Field(gt=0)]] = Field(
        [5 / 6],
        description="where the rate is divided by ten: shares of the run below 1, or epochs done from 1 up",
    )
    warmup_steps: int = Field(
        1000,
        ge=0,
        description="linear, from a thirtieth of the rate; at most a quarter of the run (docs/method.md, 9.3)",
    )
    weight_decay: float = Field(1.25e-5, ge=0, description="of matrices; not of biases and norms")
    momentum: float = Field(0.9, ge=0, lt=1, description="of the optimiser")
    precision: Precision | None = Field(None, description="null: bf16 on a GPU, fp32 on a CPU")
    weights: str | None = Field(
        None, description="torchvision weights name, a file, or the folder of a run; null: from scratch"
    )
    norm: Norm | None = Field(
        None, description="batch norm; null: train from 8 chips per rank up, else frozen (train from scratch)"
    )
    norm_momentum: float = Field(0.005, gt=0, le=1, description="of running statistics (docs/method.md, 6.5)")
    clip_gradient: float | None = Field(None, gt=0, description="largest norm of the whole gradient")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the average of weights that detects")
    compile: bool = Field(False, description="torch.compile the backbone")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights that start anew, and of every draw")
    log_every: int = Field(20, ge=1, description="steps")
    save_every: int = Field(1000, ge=1, description="steps; also at the end of every epoch")
    keep: int = Field(3, ge=1, description="last checkpoints; from 2 up, one or two from well before stay beside them")
    evaluate_every: int = Field(1, ge=1, description="epochs between validations, where validation data are given")
    picture_every: int = Field(500, ge=1, description="steps")
    tensorboard: bool = Field(False, description="write RUN/tensorboard, too")

    @model_validator(mode="after")
    def _decays_ascend(self) -> Self:
        if sorted(set(self.decay_epochs)) != self.decay_epochs:
            raise ValueError(f"decay_epochs {self.decay_epochs} must ascend")
        if self.decay_epochs and self.decay_epochs[0] < 1 <= self.decay_epochs[-1]:
            raise ValueError(f"decay_epochs {self.decay_epochs}: give either shares below 1 or epochs from 1 up")
        return self
