"""Bytes on any disk or in any bucket, read and written whole.

In: a place (a path of this machine or an fsspec URL). Out: bytes, or files that appear whole or not at all. The only
room that talks to disks and stores. It imports `schemas`.
"""

from pipeline.storage.files import (
    Stamp,
    files_in,
    is_file,
    is_folder,
    make_folder,
    names_in,
    refuse_foreign,
    refuse_inputs,
    remove,
    remove_all,
    remove_files,
    remove_folder,
    size_of,
    stamp_of,
    touch,
)
from pipeline.storage.locks import locked, remove_temporary
from pipeline.storage.reading import (
    ahead,
    download,
    local_copy,
    open_binary,
    read_all,
    read_bytes,
    read_each,
    read_range,
)
from pipeline.storage.stores import Location, is_disk_full, lies_in, location
from pipeline.storage.writing import (
    TEMPORARY,
    HashingFile,
    atomic_file,
    explained,
    probe_writable,
    start_writeback,
    write_atomic,
    write_together,
)

__all__ = [
    "HashingFile",
    "Location",
    "Stamp",
    "TEMPORARY",
    "ahead",
    "atomic_file",
    "download",
    "explained",
    "files_in",
    "is_disk_full",
    "is_file",
    "is_folder",
    "local_copy",
    "lies_in",
    "location",
    "locked",
    "make_folder",
    "names_in",
    "open_binary",
    "probe_writable",
    "read_all",
    "read_bytes",
    "read_each",
    "read_range",
    "remove",
    "remove_all",
    "remove_files",
    "remove_folder",
    "remove_temporary",
    "size_of",
    "stamp_of",
    "start_writeback",
    "refuse_foreign",
    "refuse_inputs",
    "touch",
    "write_atomic",
    "write_together",
]
