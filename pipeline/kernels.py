"""The one decorator for functions that numba compiles, and the folder where their machine code is kept.

To see whether machine code is up to date, numba looks at the kernel's own file alone. It does not notice that a kernel
of another file, which it has compiled in, has changed. So the folder's name carries a hash of all files that kernels
are made from: once any of them has changed, the old machine code is not found and cannot run.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

Array = TypeVar("Array", bound=npt.NDArray[Any])

CONFIG: Any = numba.config
ROOT = Path(__file__).resolve().parents[1]

SOURCES = (
    "pipeline/planning/bins.py",
    "pipeline/planning/cover.py",
    "pipeline/planning/geometry.py",
    "pipeline/planning/mine.py",
    "pipeline/pyramid/nms.py",
    "schemas/codes.py",
)
"""Every file with a kernel, and the one whose numbers they take over as constants."""


def version() -> str:
    """Return 16 hexadecimal digits that change whenever one of SOURCES does."""
    digest = hashlib.sha256()
    for name in SOURCES:
        data = (ROOT / name).read_bytes()
        digest.update(f"{name} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


def cache_folder() -> Path | None:
    """Make and return the first folder of `_candidates` that can be written; None where there is none."""
    for folder in _candidates(f"kernels-{version()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.parent == Path(tempfile.gettempdir()) and not _is_private(folder):
                continue  # anybody may have made it, and put machine code there
            tempfile.TemporaryFile(dir=folder).close()
            return folder
        except OSError:
            continue
    return None


def _candidates(name: str) -> Iterator[Path]:
    """Yield folders to try: what `NUMBA_CACHE_DIR` names, beside the source, the user's cache, the temporary folder.

    The last one serves a user without a home, such as an arbitrary uid in a container.
    """
    if chosen := CONFIG.CACHE_DIR:
        yield Path(chosen) / name
    yield ROOT / "pipeline" / "__pycache__" / name
    with contextlib.suppress(RuntimeError):  # neither HOME nor an entry for this uid
        yield Path("~/.cache/sniper-chips").expanduser() / name
    with contextlib.suppress(OSError):  # no temporary folder can be written
        yield Path(tempfile.gettempdir()) / f"sniper-chips-{os.getuid()}-{name}"


def _is_private(folder: Path) -> bool:
    """Tell whether the folder belongs to this user and nobody else can write to it."""
    status = folder.lstat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


FOLDER = cache_folder()


def kernel(function: Kernel) -> Kernel:
    """Have numba compile a function on its first call, and keep the machine code in FOLDER for the next process.

    Where no folder can be written, every process compiles for itself.
    """
    before = CONFIG.CACHE_DIR
    CONFIG.CACHE_DIR = str(FOLDER)
    try:
        compiled: Any = numba.njit(cache=FOLDER is not None)(function)
    finally:
        CONFIG.CACHE_DIR = before  # other packages keep their own folder
    return compiled  # type: ignore[no-any-return]


def writable(array: Array) -> Array:
    """Return an array as kernels are compiled for, a copy where it is read-only or not contiguous.

    numba compiles once more for arrays that cannot be written, such as Ray and Arrow give.
    """
    return np.require(array, requirements=("C", "W"))  # type: ignore[no-any-return]
