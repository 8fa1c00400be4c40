"""The text of an annotation file, block by block, whatever it is packed and encoded in."""

import codecs
import gzip
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from schemas.errors import DataError

BLOCK = 1 << 20  # bytes

MARKS = [  # the longer first: UTF-32's mark starts with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
NO_TEXT = (
    "its text is cut short, or in an encoding other than UTF-8, UTF-16, UTF-32 and GBK; fetch it again, or write it "
    "in UTF-8, such as with `iconv -f LATIN1 -t UTF-8 IN > OUT`"
)
"""What is wrong where none of `encodings` fits."""
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, or what a gzip or zip file holds, so that it can be read from its start more than once.

    Raises:
        DataError: a zip file that does not hold exactly one JSON file, or a damaged archive.
        OSError: it cannot be read.
    """
    with path.open("rb") as file, tempfile.TemporaryFile() as copy:
        plain: IO[bytes] = file
        if not file.seekable():  # a pipe gives its bytes but once
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            plain = copy
        magic = plain.read(4)
        plain.seek(0)
        try:
            if magic.startswith(b"\x1f\x8b"):
                with gzip.open(plain) as inner:
                    yield inner  # type: ignore[misc]  # it reads as any other file does
            elif magic == b"PK\x03\x04":
                with zipfile.ZipFile(plain) as archive, _member(archive) as inner:
                    yield inner
            else:
                yield plain
        except DAMAGED as error:
            raise DataError(f"is a damaged archive: {error}; fetch it again") from error


def _member(archive: zipfile.ZipFile) -> IO[bytes]:
    """Open the JSON file of a zip file.

    Raises:
        DataError: there is not exactly one, or it is encrypted or packed in a way that Python cannot unpack.
    """
    try:
        return archive.open(_only_json(archive))
    except (RuntimeError, NotImplementedError) as error:
        raise DataError(f"is a zip file that cannot be opened: {error}; unpack it and name the JSON file") from error


def _only_json(archive: zipfile.ZipFile) -> str:
    own = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    names = [name for name in own if name.lower().endswith(".json")]
    if len(names) != 1:
        found = ", ".join(names[:5]) or "none"
        raise DataError(f"is a zip file with {len(names)} JSON files ({found}); unpack it and name one of them")
    return names[0]


def encodings(file: IO[bytes]) -> list[str]:
    """Return the encodings to try, in order."""
    start = file.read(4)
    file.seek(0)
    marked = [encoding for mark, encoding in MARKS if start.startswith(mark)]
    return marked[:1] or ["utf-8", "gb18030"]  # GB18030 holds GBK and GB2312


def blocks(file: IO[bytes], encoding: str) -> Iterator[str]:
    """Yield the file's text from its start.

    Raises:
        UnicodeDecodeError: it is not in that encoding.
    """
    errors = "surrogatepass" if encoding.startswith("utf-8") else "strict"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    file.seek(0)
    while data := file.read(BLOCK):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)
