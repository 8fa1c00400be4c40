"""Settings of the loader. None of them is part of a chip; seed, batch size and ranks come from the training run."""

from pydantic import Field

from schemas.settings.section import Section


class LoaderSettings(Section):
    """What an epoch holds, in which order, and how far the loader works ahead.

    Threads, prefetch and the cache change nothing but the time.
    """

    negatives_per_image: int = Field(2, ge=0)
    """Negative chips of one image that an epoch draws at most."""

    flip: bool = True
    """Whether half of the chips are mirrored, drawn anew in each epoch."""

    vertical_flip: bool = False
    """Whether half of the chips are mirrored top to bottom, too (docs/augmentation.md)."""

    quarter_turns: bool = False
    """Whether chips are turned by 0, 1, 2 or 3 right angles, each as often (docs/augmentation.md)."""

    jitter: float = Field(0, ge=0, lt=1)
    """Most that brightness, contrast and saturation of a chip are changed by: 0.2 gives factors from 0.8 to 1.2."""

    scale_jitter: float = Field(0, ge=0, le=1)
    """Most that a chip's content is enlarged by, or shrunk by in return: 0.25 gives factors from 0.8 to 1.25."""

    repeat_threshold: float | None = Field(None, gt=0, le=1)
    """Chips with a class that is on a smaller share of the positive chips are repeated within an epoch. null means
    that no chip is."""

    threads: int | None = Field(None, ge=1)
    """Threads that read and decode. null means as many as this process may use cores."""

    prefetch: int = Field(3, ge=1)
    """Batches that are prepared while one is in use."""

    window: int | None = Field(None, ge=1)
    """Chips are drawn from this many shuffled shards at a time. null means from all shards."""

    cache: str | None = None
    """Folder of this machine that keeps shards of a bucket. null means ~/.cache/sniper-chips."""

    cache_gb: float = Field(100, gt=0)
    """Size that the cache keeps to, in 10^9 bytes."""
