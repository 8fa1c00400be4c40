"""Any chip by its index, with one read at the offset that the manifest gives and one decode."""

import os
import resource
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from simplejpeg import decode_jpeg
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.storage import Location, location
from schemas.errors import DataError
from schemas.settings import LoaderSettings
from trainer.loading.cache import Cache, cache_of
from trainer.loading.fetch import OpenShards
from trainer.loading.manifest import open_manifest

Pixels = npt.NDArray[np.uint8]
Target = dict[str, Any]


class ChipDataset(Dataset[tuple[Tensor, Target]]):
    """The chips of a data set: first the positives, then the pool of negatives, each in the manifest's order.

    ds[i] is what torchvision's detectors take, an image and its target:
        image: uint8 [3, height, width], RGB, the stored content without padding.
        key: str. scale: float, factor from source to chip pixels. range: (lo, hi), source pixels; hi may be infinite.
        boxes: float32 [n, 4], x1 y1 x2 y2, chip pixels. labels: int64 [n], 1..K.
        status: uint8 [n], schemas.codes.Status. visible: float32 [n], share of the box inside the chip.

    Threads and forked processes may share one. Pickled, it is a path that is opened again where it arrives.
    """

    def __init__(self, data: Location | str, *, pool: bool = True, cache: Cache | None = None) -> None:
        """Open a data set.

        Args:
            data: a folder of this machine, or a URL such as s3://bucket/folder.
            pool: take in its negatives where there are any.
            cache: where the shards of a remote data set are kept; None is the settings' default.

        Raises:
            DataError: the data set is unfinished or damaged.
            UsageError: the URL is of a kind that needs an extra which is not installed.
        """
        data = location(data) if isinstance(data, str) else data
        self.data: Location = data.absolute() if isinstance(data, Path) else data
        self.pool = pool
        self.cache = cache or cache_of(LoaderSettings())
        self.manifest = m = open_manifest(self.data, pool=pool, cache=self.cache.folder)
        self.remote: OpenShards | None = None
        if not isinstance(self.data, Path):
            self.remote = OpenShards(self.cache, self.data, m.shards, m.shard_bytes, m.shard_sha256)
        self._files: dict[int, int] = {}  # shard -> descriptor
        self._checked = np.zeros(len(m.key_hashes), bool)  # chips whose bytes were compared, by this process
        self.max_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_dataset, (self.data, self.pool, self.cache)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def __len__(self) -> int:
        return len(self.manifest.key_hashes)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"chip {index} of {len(self)}")
        row, m = index % len(self), self.manifest
        height, width = m.contents[row].tolist()
        pixels = np.empty((height, width, 3), np.uint8)
        self.decode(row, pixels)
        boxes = slice(m.box_offsets[row], m.box_offsets[row + 1])
        return torch.from_numpy(pixels).permute(2, 0, 1), {
            "key": self.key(row),
            "scale": float(m.scales[row]),
            "range": tuple(m.ranges[row].tolist()),
            "boxes": torch.tensor(m.corners[boxes]),
            "labels": torch.tensor(m.labels[boxes], dtype=torch.int64),
            "status": torch.tensor(m.status[boxes]),
            "visible": torch.tensor(m.visible[boxes]),
        }

    def key(self, row: int) -> str:
        """Return the key of a chip."""
        return str(self.manifest.keys[row].as_py())

    def decode(self, row: int, slot: Pixels) -> None:
        """Decode a chip into given memory.

        Args:
            row: index of the chip.
            slot: uint8 [S, S, 3], contiguous, at least as large as the content; it is filled with the content, top
                left, and zeros.

        Raises:
            DataError: its shard is missing or damaged there.
        """
        height, width = self.manifest.contents[row].tolist()
        data = self._read(row)
        in_place = slot.shape[1] == width  # rows of the content follow each other as the decoder writes them
        try:
            pixels = decode_jpeg(data, "RGB", buffer=slot[:height]) if in_place else decode_jpeg(data, "RGB")
        except (ValueError, OSError, SyntaxError) as error:
            raise self._damaged(row, f"the JPEG is damaged ({error})") from error
        if pixels.shape != (height, width, 3):
            raise self._damaged(row, f"{width} x {height} pixels expected, {pixels.shape[1::-1]} found")
        if not in_place:
            slot[:height, :width] = pixels
            slot[:height, width:] = 0
        slot[height:] = 0

    def _read(self, row: int) -> bytes:
        m = self.manifest
        size, offset = int(m.jpeg_sizes[row]), int(m.jpeg_offsets[row])
        shard = int(m.shard_indices[row])
        try:
            with self.remote.descriptor(shard) if self.remote else self._file(shard) as descriptor:
                data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise self._damaged(row, error.strerror or str(error)) from error
        if len(data) != size:
            raise self._damaged(row, f"{size} bytes expected at byte {offset}, {len(data)} found")
        if not self._checked[row]:  # damage comes to a disk, seldom to a page that has been read soundly
            if (found := zlib.crc32(data)) != m.jpeg_crc32s[row]:
                expected = f"CRC-32 {m.jpeg_crc32s[row]:08x} expected, {found:08x} found"
                raise self._damaged(row, f"the JPEG is damaged ({expected})")
            self._checked[row] = True
        return data

    @contextmanager
    def _file(self, shard: int) -> Iterator[int]:
        """Yield a descriptor of a local shard.

        It stays open for later reads, unless the process may not open many more files; then it is closed at once.
        """
        descriptor = self._files.get(shard)
        if descriptor is not None:
            yield descriptor
            return
        descriptor = os.open(f"{self.data}/{self.manifest.shards[shard]}", os.O_RDONLY)
        kept = len(self._files) < self.max_files and self._files.setdefault(shard, descriptor) == descriptor
        try:
            yield descriptor
        finally:
            if not kept:  # too many, or another thread was faster
                os.close(descriptor)

    def _damaged(self, row: int, what: str) -> DataError:
        shard = int(self.manifest.shard_indices[row])
        place = self.data / self.manifest.shards[shard]
        advice = "`sniper verify` names all that is damaged"
        if self.remote:
            advice = f"delete {self.remote.path(shard)}, a copy; if that does not help, {advice}"
        return DataError(f"{place}: chip {self.key(row)}: {what}; {advice}")


def _open_dataset(data: Location, pool: bool, cache: Cache) -> ChipDataset:
    return ChipDataset(data, pool=pool, cache=cache)
