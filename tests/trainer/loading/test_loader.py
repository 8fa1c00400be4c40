"""Batches: each chip once over all ranks, resumable anywhere, pixels and boxes as in the shards."""

import gc
import json
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.commands.chips import chips
from schemas.errors import DataError, UsageError
from schemas.settings import LoaderSettings, Settings
from tests.paths import shared_data
from tests.trainer.gpus import CUDA, needs_gpu
from tests.trainer.manifests import reference_pixels, rows_of
from tests.trainer.remote import downloads, num_open, open_shards, remote, reshard
from trainer.learning.ground_truth import key_states
from trainer.loading.batch import Batch
from trainer.loading.cache import Cache
from trainer.loading.dataset import ChipDataset
from trainer.loading.fetch import RECENT
from trainer.loading.loader import BatchLoader, Step
from trainer.loading.order import State

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before  # those of other tests' servers may end meanwhile


def keys_of(steps: list[Step]) -> list[list[str]]:
    return [[key for micro in step.micros for key in micro.batch.keys] for step in steps]


def same(one: Batch, other: Batch) -> bool:
    tensors = ("images", "sizes", "scales", "ranges", "boxes", "labels", "status", "offsets")
    return one.keys == other.keys and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)


@settings(max_examples=40)
@given(
    ranks=st.integers(1, 16),
    batch_size=st.integers(1, 40),
    accumulation=st.integers(1, 3),
    threads=st.integers(1, 4),
    prefetch=st.integers(1, 4),
    negatives=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_epoch__each_chip_on_exactly_one_rank(
    dataset: ChipDataset,
    ranks: int,
    batch_size: int,
    accumulation: int,
    threads: int,
    prefetch: int,
    negatives: int,
    epoch: int,
) -> None:
    m = dataset.manifest
    wanted = LoaderSettings(negatives_per_image=negatives, threads=threads, prefetch=prefetch)
    every_rank = []
    for rank in range(ranks):
        loader = BatchLoader(dataset, wanted, batch_size, rank=rank, ranks=ranks, accumulation=accumulation)
        steps = loader.epoch(State(3, epoch))
        every_rank.append(list(steps))
        assert len(every_rank[-1]) == len(steps)
        assert all(len(step.micros) == accumulation for step in every_rank[-1])
    pool_counts = np.unique(m.image_ids[m.num_positives :], return_counts=True)[1]
    length = m.num_positives + int(np.minimum(pool_counts, negatives).sum())
    assert {len(steps) for steps in every_rank} == {-(-length // batch_size)}
    together: list[str] = []
    for row in zip(*every_rank, strict=True):
        assert len({(step.num_chips, step.after) for step in row}) == 1
        seen = [key for step in row for micro in step.micros for key in micro.batch.keys]
        assert len(seen) == row[0].num_chips <= batch_size
        together += seen
    assert len(set(together)) == len(together) == length
    assert set(m.keys.to_pylist()[: m.num_positives]) <= set(together)
    assert row[0].after == State(3, epoch + 1, 0)


def test_epoch__another_permutation_each_time(dataset: ChipDataset) -> None:
    loader = BatchLoader(dataset, LoaderSettings(), 7)
    orders = [keys_of(list(loader.epoch(State(seed, epoch)))) for seed in (0, 1) for epoch in (0, 1)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))
    assert orders[0] == keys_of(list(loader.epoch(State(0, 0))))


@pytest.mark.parametrize("ranks", [1, 3])
def test_epoch__resumed_at_every_position(dataset: ChipDataset, ranks: int) -> None:
    """With other threads, prefetch and ranks than before; down to the pixels."""
    whole = list(BatchLoader(dataset, LoaderSettings(), 5).epoch(State(1, 2)))
    resumed = [
        BatchLoader(dataset, LoaderSettings(threads=3, prefetch=1), 5, rank=rank, ranks=ranks) for rank in range(ranks)
    ]
    state = State(1, 2)
    for number, step in enumerate(whole):
        rest = [loader.epoch(state) for loader in resumed]
        assert {len(steps) for steps in rest} == {len(whole) - number}
        parts = [next(iter(steps)) for steps in rest]
        assert {part.after for part in parts} == {step.after}
        keys = [part.micros[0].batch.keys for part in parts]
        assert [keys[i % ranks][i // ranks] for i in range(step.num_chips)] == step.micros[0].batch.keys
        if ranks == 1:
            assert same(parts[0].micros[0].batch, step.micros[0].batch)
        state = step.after
    assert state == State(1, 3, 0)


def test_epoch__goes_on_with_another_batch_size(dataset: ChipDataset) -> None:
    whole = keys_of(list(BatchLoader(dataset, LoaderSettings(), 1).epoch(State(0))))
    steps = BatchLoader(dataset, LoaderSettings(), 6).epoch(State(0, 0, 4))
    assert sum(keys_of(list(steps)), []) == sum(whole[4:], [])


def test_epoch__state_of_other_data(dataset: ChipDataset) -> None:
    with pytest.raises(UsageError, match="position 100000 of an epoch"):
        BatchLoader(dataset, LoaderSettings(), 4).epoch(State(0, 0, 100_000))


def test_batch__equals_the_dataset(dataset: ChipDataset) -> None:
    index = {key: row for row, key in enumerate(dataset.manifest.keys.to_pylist())}
    side = dataset.manifest.chip_size
    for step in BatchLoader(dataset, LoaderSettings(negatives_per_image=9), 6).epoch(State(0)):
        batch = step.micros[0].batch
        assert batch.images.shape == (len(batch), 3, side, side)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.offsets[0] == 0
        assert batch.offsets[-1] == len(batch.boxes)
        for i, key in enumerate(batch.keys):
            image, target = dataset[index[key]]
            height, width = batch.sizes[i].tolist()
            assert torch.equal(batch.images[i, :, :height, :width], image)
            assert not batch.images[i, :, height:].any()
            assert not batch.images[i, :, :, width:].any()
            own = slice(int(batch.offsets[i]), int(batch.offsets[i + 1]))
            for name in ("boxes", "labels", "status"):
                assert torch.equal(getattr(batch, name)[own], target[name])
            assert float(batch.scales[i]) == target["scale"]
            assert tuple(batch.ranges[i].tolist()) == target["range"]


def test_batch__empty(dataset: ChipDataset) -> None:
    step = next(iter(BatchLoader(dataset, LoaderSettings(), 2, rank=3, ranks=4).epoch(State(0))))
    batch = step.micros[0].to(CPU)
    assert len(batch) == 0
    assert batch.images.shape == (0, 3, dataset.manifest.chip_size, dataset.manifest.chip_size)
    assert batch.offsets.tolist() == [0]
    assert batch.boxes.shape == (0, 4)


def test_flip__pixels_and_boxes_by_key(dataset: ChipDataset) -> None:
    flipped: dict[int, dict[str, bool]] = {}
    for epoch, batch_size in ((0, 5), (0, 3), (1, 5)):
        flags = {}
        for step in BatchLoader(dataset, LoaderSettings(), batch_size).epoch(State(0, epoch)):
            stored, moved = step.micros[0].batch, step.micros[0].to(CPU)
            for i, key in enumerate(stored.keys):
                flags[key] = bool(step.micros[0].draws.flips[i])
                _, width = stored.sizes[i].tolist()
                own = slice(int(stored.offsets[i]), int(stored.offsets[i + 1]))
                image, boxes = stored.images[i, :, :, :width], stored.boxes[own]
                if flags[key]:
                    image = image.flip(2)
                    boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
                assert torch.equal(moved.images[i, :, :, :width], image)
                assert torch.equal(moved.boxes[own], boxes)
        assert flipped.setdefault(epoch, flags) == flags  # whatever the batches
    assert flipped[0] != flipped[1]
    assert 0.2 < np.mean(list(flipped[0].values())) < 0.8
    unflipped = BatchLoader(dataset, LoaderSettings(flip=False), 50).epoch(State(0))
    assert not any(micro.draws.flips.any() for step in unflipped for micro in step.micros)


def test_repeat_threshold__rare_classes_come_again(dataset: ChipDataset) -> None:
    plain = BatchLoader(dataset, LoaderSettings(negatives_per_image=0), 8).epoch(State(0))
    loader = BatchLoader(dataset, LoaderSettings(negatives_per_image=0, repeat_threshold=1), 8)
    steps = loader.epoch(State(0))
    assert set(steps.order.tolist()) == set(plain.order.tolist())
    assert len(steps.order) > len(plain.order)
    assert sum(step.num_chips for step in steps) == len(steps.order)


def test_repeat_threshold__each_copy_has_draws_of_its_own(dataset: ChipDataset) -> None:
    """Copies of a chip are mirrored, and draw their anchors, each for itself; without copies nothing changes."""
    loader = BatchLoader(dataset, LoaderSettings(negatives_per_image=0, repeat_threshold=1), 8)
    plain = BatchLoader(dataset, LoaderSettings(negatives_per_image=0), 8)
    mirrored, alone = (
        {
            key: bool(flag)
            for epoch in range(8)
            for step in each.epoch(State(0, epoch))
            for micro in step.micros
            for key, flag in zip([f"{epoch}/{key}" for key in micro.batch.keys], micro.draws.flips, strict=True)
        }
        for each in (loader, plain)
    )
    assert alone.items() <= mirrored.items()
    copies = [key for key in mirrored if "~" in key]
    assert len(copies) > 8
    different = sum(mirrored[key] != mirrored[key.split("~")[0]] for key in copies)
    assert 0 < different < len(copies)
    device = torch.device("cpu")
    keys = [key.split("/")[1] for key in mirrored if key.startswith("0/")]
    assert len(set(key_states(keys, 0, 0, device).tolist())) == len(keys)


def test_buffers__never_overwritten_while_held_then_reused(dataset: ChipDataset) -> None:
    loader = BatchLoader(dataset, LoaderSettings(), 4)
    held = [step.micros[0].batch for step in loader.epoch(State(0))]
    fresh = [step.micros[0].batch for step in BatchLoader(dataset, LoaderSettings(), 4).epoch(State(0))]
    assert all(same(one, other) for one, other in zip(held, fresh, strict=True))
    view = held[0].images[0, 0, 0]  # any view keeps the whole batch
    expected = view.clone()
    num = len(held)
    del held, fresh
    gc.collect()
    assert len(loader._buffers._free) == num - 1
    for step in loader.epoch(State(0, 1)):
        del step
    assert torch.equal(view, expected)
    assert len(loader._buffers._free) == num - 1


def test_memory__no_more_buffers_over_epochs(dataset: ChipDataset) -> None:
    loader = BatchLoader(dataset, LoaderSettings(prefetch=2, threads=2), 2)
    for epoch in range(5):
        for step in loader.epoch(State(0, epoch)):
            del step
    assert len(loader._buffers._free) <= 2 + 1 + 2  # ahead, at hand, and a thread may let go of one a moment late


def test_iterator__left_early(dataset: ChipDataset) -> None:
    for step in BatchLoader(dataset, LoaderSettings(threads=4), 2).epoch(State(0)):
        assert step.num_chips == 2
        break  # _no_threads_left looks at the rest


def test_damage__raised_at_its_step(own_folder: Path) -> None:
    dataset = ChipDataset(own_folder)
    epoch = BatchLoader(dataset, LoaderSettings(), 3).epoch(State(0))
    bad = int(epoch.order[7])
    path = own_folder / dataset.manifest.shards[dataset.manifest.shard_indices[bad]]
    with path.open("r+b") as file:
        file.seek(int(dataset.manifest.jpeg_offsets[bad]) + 2)
        file.write(bytes(1000))
    steps = iter(epoch)
    assert len([next(steps), next(steps)]) == 2
    with pytest.raises(DataError, match=rf"{path.name}: chip {dataset.key(bad)}: the JPEG is damaged"):
        next(steps)


@pytest.fixture(scope="module")
def many_shards(pool_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ChipDataset:
    """The same chips, four per shard."""
    out = tmp_path_factory.mktemp("many") / "out"
    reshard(pool_folder, out, 4)
    return ChipDataset(out)


def cache_bytes(dataset: ChipDataset) -> int:
    """What the shards of a cache take on disk, unfinished and deleted ones that are open included.

    Threads fetch and delete meanwhile, so it looks until it has seen the same twice: else it might add up what was
    never there together.
    """
    folder = dataset.cache.folder / "shards"

    def seen() -> dict[int, int]:
        found = open_shards(folder)
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # gone meanwhile
                found[path.stat().st_ino] = path.stat().st_size
        return found

    before = seen()
    while (now := seen()) != before:
        before = now
    return sum(now.values())


@settings(max_examples=30)
@given(
    window=st.none() | st.integers(1, 12),
    ranks=st.integers(1, 4),
    batch_size=st.integers(1, 20),
    accumulation=st.integers(1, 3),
    prefetch=st.integers(1, 4),
    position=st.integers(0, 20),
)
def test_remote__the_same_batches(
    many_shards: ChipDataset,
    tmp_path_factory: pytest.TempPathFactory,
    window: int | None,
    ranks: int,
    batch_size: int,
    accumulation: int,
    prefetch: int,
    position: int,
) -> None:
    """As from the disk, from any position on. Each shard is fetched once for all ranks, and closed in the end."""
    log, cache = tmp_path_factory.mktemp("run") / "log", tmp_path_factory.mktemp("cache")
    wanted = LoaderSettings(window=window, prefetch=prefetch, threads=2)
    place = remote(Path(many_shards.data), log)
    dataset = ChipDataset(place, cache=Cache(cache, sum(many_shards.manifest.shard_bytes)))
    for rank in range(ranks):
        local, far = (
            BatchLoader(data, wanted, batch_size, rank=rank, ranks=ranks, accumulation=accumulation)
            for data in (many_shards, dataset)
        )
        pairs = zip(local.epoch(State(5, 1, position)), far.epoch(State(5, 1, position)), strict=True)
        for one, other in pairs:
            assert one.after == other.after
            for mine, its in zip(one.micros, other.micros, strict=True):
                assert same(mine.batch, its.batch)
    assert all(count <= 2 for count in downloads(log).values())  # shards of positives and pool have the same names
    assert num_open(cache) <= RECENT


@pytest.mark.parametrize("window", [2, 4])
def test_window__the_cache_keeps_to_its_size(many_shards: ChipDataset, tmp_path: Path, window: int) -> None:
    """Over epochs, without a shard of the epoch being fetched twice."""
    log, sizes = tmp_path / "log", sorted(many_shards.manifest.shard_bytes)[::-1]
    max_bytes = sum(sizes[: 2 * window])
    dataset = ChipDataset(remote(Path(many_shards.data), log, 0.01), cache=Cache(tmp_path / "cache", max_bytes))
    loader = BatchLoader(dataset, LoaderSettings(window=window, prefetch=1), 2)
    for epoch in range(3):
        steps = loader.epoch(State(0, epoch))
        needs = loader.needs(steps.state, steps.order)
        assert needs.at_once <= 2 * window
        already = downloads(log).total()
        for step in steps:
            assert cache_bytes(dataset) <= max_bytes
            del step
        assert num_open(tmp_path) == 0
        assert downloads(log).total() - already <= len(needs.shards) + window  # the next epoch's beginning


def test_window__fetched_while_the_one_before_is_read(many_shards: ChipDataset, tmp_path: Path) -> None:
    dataset = ChipDataset(remote(Path(many_shards.data), tmp_path / "log"), cache=Cache(tmp_path / "cache", 10**9))
    loader = BatchLoader(dataset, LoaderSettings(window=2, prefetch=1), 1)
    epoch = loader.epoch(State(0))
    shards = loader.needs(State(0), epoch.order).shards
    steps = iter(epoch)
    next(steps)
    wait_for(lambda: len(list((tmp_path / "cache/shards").glob("*.tar"))) == 4)
    time.sleep(0.1)
    fetched = {dataset.manifest.shard_sha256[shard] for shard in shards[:4]}
    assert {path.stem for path in (tmp_path / "cache/shards").glob("*.tar")} == fetched
    for _ in steps:
        time.sleep(0.002)
    beginning = loader.needs(State(0, 1), loader.epoch(State(0, 1)).order).shards[:2]
    assert all((tmp_path / f"cache/shards/{dataset.manifest.shard_sha256[shard]}.tar").exists() for shard in beginning)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_remote__left_early(many_shards: ChipDataset, tmp_path: Path) -> None:
    dataset = ChipDataset(remote(Path(many_shards.data), tmp_path / "log", 0.05), cache=Cache(tmp_path / "c", 10**9))
    for _ in BatchLoader(dataset, LoaderSettings(window=4), 2).epoch(State(0)):
        break  # _no_threads_left looks at the rest
    assert num_open(tmp_path) <= RECENT
    assert not list((tmp_path / "c/shards").glob(".tmp-*"))


def test_remote__loss_raised_at_its_step(own_folder: Path, tmp_path: Path) -> None:
    dataset = ChipDataset(remote(own_folder, tmp_path / "log"), cache=Cache(tmp_path / "cache", 10**9))
    epoch = BatchLoader(dataset, LoaderSettings(window=1), 1).epoch(State(0))
    shards = dataset.manifest.shard_indices[epoch.order]
    first_bad = int(np.flatnonzero(shards != shards[0])[0])
    (own_folder / dataset.manifest.shards[shards[first_bad]]).unlink()
    steps = iter(epoch)
    for _ in range(first_bad):
        next(steps)
    with pytest.raises(DataError, match=r"chips-0000\d\.tar: cannot be read: No such file"):
        next(steps)


def test_remote__too_small_a_cache_is_refused(many_shards: ChipDataset, tmp_path: Path) -> None:
    sizes = sorted(many_shards.manifest.shard_bytes)[::-1]
    place = remote(Path(many_shards.data), tmp_path / "log")
    dataset = ChipDataset(place, cache=Cache(tmp_path / "cache", sum(sizes[:6])))
    with pytest.raises(
        UsageError, match=r"without loader\.window all .* give loader\.window=3 \(or less\), or a larg"
    ):
        BatchLoader(dataset, LoaderSettings(), 4)
    with pytest.raises(UsageError, match=r"loader\.window=4 .* give loader\.window=3"):
        BatchLoader(dataset, LoaderSettings(window=4), 4)
    BatchLoader(dataset, LoaderSettings(window=3), 4)
    tiny = ChipDataset(place, cache=Cache(tmp_path / "cache", sizes[0]))
    with pytest.raises(UsageError, match=r"allows .* GB; give a larger loader\.cache_gb"):
        BatchLoader(tiny, LoaderSettings(window=1), 4)


def _load_remote(dataset: ChipDataset, rank: int) -> list[list[str]]:
    # A forked process replaces torch's pool of threads at its first use, which two threads may not do at once.
    torch.set_num_threads(1)
    loader = BatchLoader(dataset, LoaderSettings(window=3, threads=2), 6, rank=rank, ranks=4)
    return keys_of([step for epoch in range(2) for step in loader.epoch(State(0, epoch))])


def test_remote__ranks_share_downloads(many_shards: ChipDataset, tmp_path: Path) -> None:
    place = remote(Path(many_shards.data), tmp_path / "log", 0.01)
    dataset = ChipDataset(place, cache=Cache(tmp_path / "cache", 10**9))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.starmap(_load_remote, [(dataset, rank) for rank in range(4)], chunksize=1)
    whole = BatchLoader(many_shards, LoaderSettings(window=3), 6)
    expected = keys_of([step for epoch in range(2) for step in whole.epoch(State(0, epoch))])
    assert [sorted(sum(parts, [])) for parts in zip(*found, strict=True)] == [sorted(keys) for keys in expected]
    assert downloads(tmp_path / "log").total() == len(many_shards.manifest.shards)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"accumulation": 0}, {"rank": 2, "ranks": 2}, {"rank": -1}], ids=str
)
def test_batch_loader__numbers_out_of_range_are_refused(dataset: ChipDataset, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="expected a batch_size and an accumulation of at least 1, and a rank from 0"):
        BatchLoader(dataset, LoaderSettings(), **({"batch_size": 4} | wrong))


def test_no_chips__refused(own_folder: Path) -> None:
    run = (own_folder / "run.json").read_text()
    for path in (own_folder / "positives").iterdir():
        path.unlink()
    (own_folder / "run.json").write_text(run.replace('"num_shards": 3', '"num_shards": 0'))
    with pytest.raises(DataError, match="no positive chip"):
        BatchLoader(ChipDataset(own_folder, pool=False), LoaderSettings(), 4)


def _load_in_child(dataset: ChipDataset, rank: int) -> list[list[str]]:
    return keys_of(list(BatchLoader(dataset, LoaderSettings(threads=2), 6, rank=rank, ranks=2).epoch(State(0))))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes__each_a_rank(dataset: ChipDataset, method: str) -> None:
    dataset[0]
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.starmap(_load_in_child, [(dataset, 0), (dataset, 1)])
    assert found == [_load_in_child(dataset, 0), _load_in_child(dataset, 1)]


INTERRUPTED = """
import sys, time
from schemas.settings import LoaderSettings
from trainer.learning.ground_truth import key_states
from trainer.loading.dataset import ChipDataset
from trainer.loading.loader import BatchLoader
from trainer.loading.order import State
loader = BatchLoader(ChipDataset(sys.argv[1]), LoaderSettings(), 2)
for step in loader.epoch(State(0)):
    print("started", flush=True)
    time.sleep(60)
"""


def test_interrupt__ends_at_once_and_leaves_nothing(pool_folder: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(pool_folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    assert "/dev/shm" not in Path(f"/proc/{child.pid}/maps").read_text()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate()
    assert child.returncode in (-signal.SIGINT, 130)
    assert errors.strip().endswith("KeyboardInterrupt")


def test_real_images__pixels_equal_the_reference(tmp_path: Path) -> None:
    real = shared_data("coco-real")
    coco = json.loads((real / "train.json").read_bytes())
    coco["images"] = coco["images"][:10]
    wanted = {image["id"] for image in coco["images"]}
    coco["annotations"] = [box for box in coco["annotations"] if box["image_id"] in wanted]
    (tmp_path / "few.json").write_text(json.dumps(coco))
    chips(tmp_path / "few.json", real / "images", tmp_path / "out", Settings())
    dataset = ChipDataset(tmp_path / "out")
    rows = {row["key"]: row for row in rows_of(tmp_path / "out").to_dicts()}
    seen = 0
    for step in BatchLoader(dataset, LoaderSettings(), 8).epoch(State(0)):
        batch = step.micros[0].batch
        for key, image, (height, width) in zip(batch.keys, batch.images, batch.sizes.tolist(), strict=True):
            expected = reference_pixels(tmp_path / "out", rows[key])
            assert torch.equal(image[:, :height, :width].permute(1, 2, 0), torch.tensor(expected))
            seen += 1
    assert seen == len(rows)


@needs_gpu
def test_pin__the_same_batches_on_the_device(dataset: ChipDataset) -> None:
    device = torch.device("cuda")
    pinned = BatchLoader(dataset, LoaderSettings(), 4, pin=True).epoch(State(0))
    plain = BatchLoader(dataset, LoaderSettings(), 4).epoch(State(0))
    assert next(iter(pinned)).micros[0].batch.images.is_pinned()
    moved = [step.micros[0].to(device) for step in pinned]  # copies in flight while their memory is given back
    for one, step in zip(moved, plain, strict=True):
        assert same(one.to(CPU), step.micros[0].to(CPU))


@needs_gpu
def test_epoch__pinned_batches_arrive_on_a_gpu_as_they_are(dataset: ChipDataset) -> None:
    """Copies go on while later batches are decoded; no buffer is filled anew before its copy is done."""
    wanted = LoaderSettings(threads=2, prefetch=1)
    plain, pinned = (BatchLoader(dataset, wanted, 4, pin=pin).epoch(State(0)) for pin in (False, True))
    arrived = []
    for step in pinned:
        batch = step.micros[0].batch
        assert all(tensor.is_pinned() for tensor in (batch.images, batch.sizes, step.micros[0].draws.flips))
        arrived.append(step.micros[0].to(CUDA))
        del step, batch  # as in a training: the memory is free again, while the copy may still go on
    for here, there in zip(plain, arrived, strict=True):
        ours, theirs = here.micros[0].to(CPU), there.to(CPU)
        for chip, (height, width) in enumerate(ours.sizes.tolist()):  # padding holds anything
            content = (chip, slice(None), slice(height), slice(width))
            assert theirs.images[content].equal(ours.images[content])
        assert theirs.boxes.equal(ours.boxes)
        assert theirs.keys == ours.keys
