"""Settings of the loader. None of them is part of a chip; seed, batch size and ranks come from the training run."""

from pydantic import Field

from schemas.settings.section import Section


class LoaderSettings(Section):
    """What an epoch holds, in which order, and how far the loader works ahead.

    Threads, prefetch and the cache change nothing but the time.
    """

    negatives_per_image: int = Field(2, ge=0, description="pool chips of one image drawn per epoch, at most")
    flip: bool = Field(True, description="mirror half of the chips, drawn anew each epoch")
    repeat_threshold: float | None = Field(
        None, gt=0, le=1, description="chips with classes in a smaller share of the positives repeat; null: none do"
    )
    threads: int | None = Field(None, ge=1, description="reading and decoding; null: the cores this rank may use")
    prefetch: int = Field(3, ge=1, description="batches prepared ahead of the one in use")
    window: int | None = Field(
        None, ge=1, description="chips are drawn from so many shuffled shards at a time; null: from all of them"
    )
    cache: str | None = Field(
        None, description="folder on this machine for shards from a bucket; null: ~/.cache/sniper-chips"
    )
    cache_gb: float = Field(100, gt=0, description="size the cache keeps to, 10^9 bytes")
