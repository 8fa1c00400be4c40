"""Single chips by index, from one process and many."""

import gc
import multiprocessing
import pickle
import shutil
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from schemas.codes import Status
from schemas.errors import DataError
from tests.trainer.manifests import reference_pixels, rows_of
from tests.trainer.remote import PROTOCOL, downloads, num_open, remote
from trainer.loading.cache import Cache
from trainer.loading.dataset import ChipDataset
from trainer.loading.fetch import RECENT


def digest(dataset: ChipDataset, rows: range) -> str:
    """A hash over pixels and boxes."""
    sha = sha256()
    for index in rows:
        image, target = dataset[index]
        sha.update(image.permute(1, 2, 0).contiguous().numpy().tobytes() + target["boxes"].numpy().tobytes())
    return sha.hexdigest()


def test_getitem__pixels_and_boxes_equal_the_shards(dataset: ChipDataset, pool_folder: Path) -> None:
    rows = rows_of(pool_folder).to_dicts()
    assert len(dataset) == len(rows)
    for index, row in enumerate(rows):
        image, target = dataset[index]
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), reference_pixels(pool_folder, row))
        assert image.shape == (3, row["height"], row["width"])
        assert target["key"] == row["key"]
        assert target["scale"] == np.float32(row["scale"])
        assert target["range"] == (row["range_min"], row["range_max"])
        boxes = row["boxes"]
        assert target["boxes"].tolist() == [[box["x1"], box["y1"], box["x2"], box["y2"]] for box in boxes]
        assert target["boxes"].shape == (len(boxes), 4)
        assert target["labels"].tolist() == [box["label"] for box in boxes]
        assert [Status(code).name.lower() for code in target["status"].tolist()] == [box["status"] for box in boxes]
        assert target["visible"].tolist() == [box["visible"] for box in boxes]
    assert {image.dtype, target["labels"].dtype, target["status"].dtype} == {torch.uint8, torch.int64}
    assert (
        len({tuple(image.shape) for image, _ in map(dataset.__getitem__, range(len(rows)))}) > 1
    )  # chips of several sizes were seen


def test_getitem__indices(dataset: ChipDataset) -> None:
    assert dataset[-1][1]["key"] == dataset[len(dataset) - 1][1]["key"]
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[index]


def test_pickle__a_few_kilobytes(dataset: ChipDataset) -> None:
    dataset[0]
    data = pickle.dumps(dataset)
    assert len(data) < 4096
    assert digest(pickle.loads(data), range(3)) == digest(dataset, range(3))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_dataloader__standard_torch(dataset: ChipDataset, method: str) -> None:
    dataset[0]  # a forked worker inherits the open shard
    loader = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=list, multiprocessing_context=method)
    keys = [target["key"] for batch in loader for _, target in batch]
    assert keys == dataset.manifest.keys.to_pylist()


def test_remote__as_the_local_one(pool_folder: Path, tmp_path: Path) -> None:
    local = ChipDataset(pool_folder)
    place, cache = remote(pool_folder, tmp_path / "log"), Cache(tmp_path / "cache", 10**9)
    dataset = ChipDataset(place, cache=cache)
    expected = digest(local, range(len(local)))
    assert digest(dataset, range(len(dataset))) == expected
    assert digest(pickle.loads(pickle.dumps(dataset)), range(len(dataset))) == expected
    names = Counter(Path(name).name for name in dataset.manifest.shards)
    assert downloads(tmp_path / "log") == names
    assert num_open(tmp_path) <= RECENT
    for method in ("fork", "spawn"):
        loader = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=list, multiprocessing_context=method)
        assert [target["key"] for batch in loader for _, target in batch] == local.manifest.keys.to_pylist()
    assert downloads(tmp_path / "log") == names


def test_remote__smaller_cache_than_data(pool_folder: Path, tmp_path: Path) -> None:
    """Chip after chip in the manifest's order needs each shard once."""
    dataset = ChipDataset(remote(pool_folder, tmp_path / "log"), cache=Cache(tmp_path / "cache", 1))
    local = ChipDataset(pool_folder)
    assert digest(dataset, range(len(dataset))) == digest(local, range(len(local)))
    assert downloads(tmp_path / "log").total() == len(dataset.manifest.shards)


def test_remote__damage_and_loss_are_named(own_folder: Path, tmp_path: Path) -> None:
    dataset = ChipDataset(remote(own_folder, tmp_path / "log"), cache=Cache(tmp_path / "cache", 10**9))
    rows = [row_of(dataset, f"positives/chips-0000{number}.tar") for number in range(3)]
    (own_folder / "positives/chips-00000.tar").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=rf"{PROTOCOL}://.*/positives/chips-00000\.tar: .* bytes .* 8 with "):
        dataset[rows[0]]
    (own_folder / "positives/chips-00001.tar").unlink()
    with pytest.raises(DataError, match=rf"{PROTOCOL}://.*/positives/chips-00001\.tar: cannot be read: No such file"):
        dataset[rows[1]]
    dataset[rows[2]]
    cached = dataset.cache.path(dataset.manifest.shard_sha256[2])
    cached.write_bytes(bytes(cached.stat().st_size))  # by somebody else, while it is in use
    with pytest.raises(DataError, match=rf"chips-00002\.tar: chip .*: the JPEG is damaged.*; delete {cached}"):
        dataset[rows[2]]


def test_eight_processes__read_one_data_set(own_folder: Path) -> None:
    """All open it at once, without the columns' file there yet."""
    with ProcessPoolExecutor(8, multiprocessing.get_context("fork")) as pool:
        digests = list(pool.map(_open_and_digest, [own_folder] * 8))
    assert len(set(digests)) == 1
    assert sorted(path.suffix for path in (own_folder / ".loader").iterdir() if path.name != ".lock") == [".arrow"]


def _open_and_digest(out: Path) -> str:
    dataset = ChipDataset(out)
    return digest(dataset, range(len(dataset)))


def test_threads__share_one(dataset: ChipDataset) -> None:
    expected = digest(dataset, range(len(dataset)))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(digest, [dataset] * 16, [range(len(dataset))] * 16)) == {expected}


def test_descriptors__bounded_and_given_back(own_folder: Path) -> None:
    dataset = ChipDataset(own_folder)
    dataset.max_files = 1
    digest(dataset, range(len(dataset)))
    assert num_open(own_folder) == 1
    dataset.max_files = 100
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(digest, [dataset] * 8, [range(len(dataset))] * 8))
    assert num_open(own_folder) == len(dataset.manifest.shards)
    del dataset
    gc.collect()
    assert num_open(own_folder) == 0


def row_of(dataset: ChipDataset, shard: str) -> int:
    """The second chip of a shard."""
    return int(np.flatnonzero(dataset.manifest.shard_indices == dataset.manifest.shards.index(shard))[1])


def test_damage__names_shard_and_chip(own_folder: Path) -> None:
    shard = "positives/chips-00001.tar"
    path = own_folder / shard
    dataset = ChipDataset(own_folder)
    row = row_of(dataset, shard)
    whole, offset, size = path.read_bytes(), dataset.manifest.jpeg_offsets[row], dataset.manifest.jpeg_sizes[row]
    names = rf"{shard}: chip {dataset.key(row)}: "

    def damage(start: int, data: bytes) -> None:
        path.write_bytes(whole[:start] + data + whole[start + len(data) :])

    damage(offset, bytes(int(size)))
    with pytest.raises(DataError, match=names + "the JPEG is damaged"):
        dataset[row]
    damage(offset + size // 2, bytes(int(size - size // 2)))
    with pytest.raises(DataError, match=names + "the JPEG is damaged"):
        dataset[row]
    header = offset + whole[offset:].index(b"\xff\xc0") + 5
    damage(header, (8).to_bytes(2, "big"))
    with pytest.raises(DataError, match=names):
        dataset[row]
    path.write_bytes(whole[: offset + 10])
    with pytest.raises(DataError, match=names + rf"{size} bytes expected at byte {offset}, 10 found"):
        dataset[row]
    dataset[row - 1]


def test_damage__every_flipped_bit_is_noticed_at_the_first_reading(own_folder: Path) -> None:
    """Most of them would decode to other pixels without an error."""
    shard = "positives/chips-00001.tar"
    path, draw = own_folder / shard, np.random.default_rng(0)
    manifest = ChipDataset(own_folder).manifest
    row = row_of(ChipDataset(own_folder), shard)
    whole = path.read_bytes()
    for bit in draw.integers(8 * int(manifest.jpeg_sizes[row]), size=40).tolist():
        content = bytearray(whole)
        content[int(manifest.jpeg_offsets[row]) + bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"the JPEG is damaged \(CRC-32 .* expected, .* found\)"):
            ChipDataset(own_folder)[row]
    path.write_bytes(whole)
    ChipDataset(own_folder)[row]


def test_missing_shard__names_shard_and_chip(own_folder: Path) -> None:
    (own_folder / "negatives/chips-00000.tar").unlink()
    dataset = ChipDataset(own_folder)
    row = row_of(dataset, "negatives/chips-00000.tar")
    with pytest.raises(DataError, match=rf"negatives/chips-00000\.tar: chip {dataset.key(row)}: No such file"):
        dataset[row]
    shutil.rmtree(own_folder)
