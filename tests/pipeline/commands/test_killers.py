"""An image that kills the worker which decodes it is refused by name; everything else is built."""

import os
import signal
from pathlib import Path

import polars as pl
import pytest

from pipeline.commands.chips import chips
from pipeline.dataset.cutting import ShardJob, ShardResult, make_shard
from pipeline.engines.tasks import listening
from schemas.settings import ChipSettings, Settings
from tests.builders import CocoSet

KILLER = 3  # id of the image
SETTINGS = ChipSettings(images_per_shard=3)


def make_dangerously(job: ShardJob) -> ShardResult:
    """Make a shard; where one image's turn comes that is not refused, this process dies as of a bad pointer."""

    def watch(position: int, _: int) -> None:
        if job.images[position].image_id == KILLER and position not in job.killers:
            os.kill(os.getpid(), signal.SIGSEGV)

    with listening(watch):
        return make_shard(job)


def test_chips__refuse_an_image_that_kills_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CocoSet(tmp_path)
    for image_id in range(1, 8):
        data.add_image(image_id, boxes=[[8, 8, 30, 30]])
    annotations, out = data.write(), tmp_path / "out"
    monkeypatch.setattr("pipeline.commands.chips.make_shard", make_dangerously)
    report = chips(annotations, data.image_root, out, Settings(chips=SETTINGS), workers=2, max_bad=1.0)
    rejects = pl.read_parquet(out / "rejects.parquet")
    assert rejects.select("id", "reason").rows() == [(KILLER, "kills_worker")]
    message = rejects["message"][0]
    assert "died of SIGSEGV over it, 3 times" in message
    assert "delete" in message
    assert "`sniper chips`" in message
    assert report.counts["images"]["refused"] == {"kills_worker": 1}
    assert report.num_made == 3
    states = pl.read_parquet(out / "images.parquet").sort("image_id")["state"].to_list()
    assert states == ["kept" if image_id != KILLER else "refused" for image_id in range(1, 8)]
    again = chips(annotations, data.image_root, out, Settings(chips=SETTINGS), max_bad=1.0)
    assert again.num_made == 0
