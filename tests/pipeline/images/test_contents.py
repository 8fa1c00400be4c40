"""Equal image files have equal hashes, whatever they are called."""

from pathlib import Path

from pipeline.commands.chips import chips
from pipeline.images.contents import hash_images
from pipeline.storage.parquet import read_frame
from schemas.settings import Settings
from tests.pipeline.conftest import DataSet
from tests.s3 import S3


def test_hash_images__are_those_of_the_ledger(demo_set: DataSet, tmp_path: Path) -> None:
    chips(demo_set.annotations, demo_set.images, tmp_path, Settings())
    ledger = read_frame(tmp_path / "images.parquet")
    assert hash_images(demo_set.images, ledger["file_name"].to_list()) == ledger["hash"].to_list()


def test_hash_images__one_that_cannot_be_read_has_none(s3: S3, tmp_path: Path) -> None:
    from pipeline.storage import location

    (tmp_path / "a.jpg").write_bytes(b"pixels")
    for name in ("b.jpg", "folder/c.jpg"):
        s3.put(name, b"pixels")
    (here,) = hash_images(tmp_path, ["a.jpg"])
    assert hash_images(tmp_path, ["a.jpg", "gone.jpg"]) == [here, None]
    assert hash_images(location(s3.url), ["b.jpg", "gone.jpg", "./folder/c.jpg"]) == [here, None, here]
