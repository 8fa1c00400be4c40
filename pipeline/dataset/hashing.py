"""A file that is hashed while it is written, so that its bytes are gone through once."""

import hashlib
import io
from typing import IO, Any


class HashingFile(io.RawIOBase):
    """Hands on what is written to it, from its start to its end, and hashes it.

    Args:
        file: the file that takes the bytes. It stays open when this one is closed: who opened it closes it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha256, self._size = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        """Tell that the file can be written."""
        return True

    def write(self, data: Any) -> int:
        """Write anything that has bytes and return their number."""
        self._sha256.update(data)
        self._file.write(data)
        size = memoryview(data).nbytes
        self._size += size
        return size

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self._size

    def close(self) -> None:
        """Leave the file open."""

    def hexdigest(self) -> str:
        """Return the SHA-256 of all bytes written so far, hex."""
        return self._sha256.hexdigest()
