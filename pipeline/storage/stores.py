"""How an object store is asked: its URL, its client's options, and what to do with bad answers."""

import errno
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import fsspec
from upath import UPath

from schemas.errors import StoppedError, UsageError

Location = Path | UPath
Result = TypeVar("Result")

AHEAD = 16  # requests to an object store at a time: each waits some ten milliseconds, mostly for nothing
AHEAD_BYTES = 256 << 20  # that files fetched ahead may hold
ATTEMPTS = 5
FIRST_WAIT, LONGEST_WAIT = 0.2, 10.0  # seconds

S3: dict[str, Any] = {
    "use_listings_cache": False,  # listings must show what other machines have written
    # A file goes through one connection, 50 MB at a time: with more, s3fs holds as many parts in memory, and asks for
    # the size of each file before it reads it.
    "max_concurrency": 1,
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 20,
        # Retries multiply, so those below ours are few: they save the parts of a large file that have arrived.
        "retries": {"total_max_attempts": 2, "mode": "standard"},
        "max_pool_connections": 4 * AHEAD,
    },
}
OPTIONS = {"s3": S3, "s3a": S3}
"""Options of the clients of object stores, by protocol."""

NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound")
MISUSE = ("ParamValidationError", "NoRegionError", "InvalidRegionError")
"""Errors of botocore by name, since botocore need not be installed. None of these passes by itself."""

PROGRAMMING = (TypeError, AttributeError, NameError, LookupError, AssertionError, ImportError, NotImplementedError)
"""A fault in a program, here or in a store's library. It is raised as it is: asking again would only hide it."""

NOT_REPEATED = (*PROGRAMMING, StoppedError, MemoryError, IsADirectoryError, NotADirectoryError)

SIGNED = re.compile(
    r"[?&](x-amz-signature|x-amz-security-token|x-goog-signature|signature|sig|access_token|token)=", re.IGNORECASE
)


def location(text: str | Location) -> Location:
    """Turn what a user gives into a place that the functions of this room take.

    Args:
        text: A path of this machine, or an fsspec URL such as s3://bucket/folder. A path is made absolute, since the
            workers of a cluster run in folders of their own. A remote place is returned as it is.

    Raises:
        UsageError: The protocol is unknown, its package is not installed, there is no bucket in the URL, the URL has a
            password or another secret in it, or the path is no text in UTF-8, so that no record could name it.
    """
    if isinstance(text, UPath):
        return text
    text = str(text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{ascii(text)}: the path is no text in UTF-8; rename the file or folder") from error
    protocol, separator, rest = text.partition("://")
    if not separator:
        return Path(text).absolute()
    if protocol in ("file", "local"):
        return Path(rest).absolute()
    if _has_credentials(protocol, rest):
        raise UsageError(
            f"a {protocol}:// URL has credentials in it (before an @, or as a signature); leave them to the "
            "environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if protocol in OPTIONS and not rest.split("/")[0]:
        raise UsageError(f"{text}: no bucket; expected an URL such as {protocol}://bucket/folder")
    try:
        for name in protocol.split("::"):
            fsspec.get_filesystem_class(name)  # imports the protocol's package, and connects to nothing yet
        return cast(UPath, UPath(text, **OPTIONS.get(protocol, {})))
    except ImportError as error:
        extra = "'PATH_OF_THE_CLONE[s3]'" if protocol in OPTIONS else "the package it names"
        raise UsageError(f"{text}: {error}; pip install {extra}") from error
    except ValueError as error:
        raise UsageError(f"{text}: expected a path or an fsspec URL such as s3://bucket/folder: {error}") from error


def _has_credentials(protocol: str, rest: str) -> bool:
    """Tell whether a URL carries a secret.

    A name alone before the @ is none (abfs://container@account, sftp://me@host), but for buckets, whose names have no
    @: what stands before it there is a key.

    Args:
        protocol: Such as "s3".
        rest: The URL behind "://".
    """
    host = rest.split("/")[0]
    user, at, _ = host.rpartition("@")
    if at:
        secret = ":" in user or protocol in OPTIONS
    else:  # a secret key may have slashes in it, so the @ may come later
        secret = ":" in host and not re.search(r"^arn:|:\d+$", host) and "@" in rest
    return secret or bool(SIGNED.search(rest))


def client(place: UPath) -> Any:
    """Return the fsspec file system of a remote place, as this process may use it."""
    store = place.fs
    if getattr(store, "_pid", os.getpid()) != os.getpid():  # made before a fork, whose threads did not come along
        store = fsspec.filesystem(place.protocol, **place.storage_options)
    if place.protocol in OPTIONS:
        store.retries = 1  # of 5, twice over where a file is read; no option sets it
    return store


def insist(ask: Callable[[], Result], what: object) -> Result:
    """Return the answer of an object store, asked again after errors that may pass, with growing waits.

    Args:
        ask: Makes the request.
        what: The place that is asked for; it goes into the error.

    Raises:
        FileNotFoundError: The store says that there is no such file or bucket.
        PermissionError: The store refuses, or there are no credentials.
        OSError: There was no good answer in ATTEMPTS, or the request makes no sense to the store.
        PROGRAMMING: A fault in a program, at once and as it was raised.
    """
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except NOT_REPEATED:
            raise
        except Exception as error:  # each store's library has exceptions of its own
            _raise_if_final(error, what, is_last=attempt == ATTEMPTS - 1)
        longest = min(FIRST_WAIT * 3**attempt, LONGEST_WAIT)
        time.sleep(random.uniform(longest / 2, longest))  # so that many workers do not come back all at once
    raise AssertionError


def _raise_if_final(error: Exception, what: object, *, is_last: bool) -> None:
    """Raise an error of a store's library as the system would for a local file, unless it may pass by itself.

    Args:
        error: What the library raised.
        what: The place that was asked for.
        is_last: Whether no attempt is left, so that any error is final.
    """
    if is_disk_full(error):
        raise error
    name = type(error).__name__
    reason = str(getattr(error, "strerror", None) or error) or name
    reason = re.sub(r"//[^/@\s]+@", "//", reason)  # what an endpoint's URL has before its @
    if isinstance(error, FileNotFoundError):
        no_bucket = reason.startswith("The specified bucket")
        raise _os_error(errno.ENOENT, reason if no_bucket else os.strerror(errno.ENOENT), what) from error
    if isinstance(error, PermissionError):
        raise _os_error(errno.EACCES, reason, what) from error
    if name in NO_CREDENTIALS:
        raise _os_error(errno.EACCES, f"{reason}; set the credentials in the environment", what) from error
    if isinstance(error, ValueError) or name in MISUSE:
        raise _os_error(errno.EINVAL, reason, what) from error
    if is_last:
        raise _os_error(errno.EIO, f"no good answer in {ATTEMPTS} attempts, the last: {reason}", what) from error


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error says that a disk of this machine, or the user's quota on it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _os_error(number: int, reason: str, what: object) -> OSError:
    """Make the error that the system raises for a local file; OSError takes the subclass that its number has."""
    return OSError(number, reason, str(what))


def lies_in(place: Location, folder: Location) -> bool:
    """Tell whether `place` is `folder` itself or lies in it, at any depth; links of this machine are followed."""
    if isinstance(place, Path) and isinstance(folder, Path):
        return place.resolve().is_relative_to(folder.resolve())
    inner, outer = (f"{one.path.rstrip('/')}/" if not isinstance(one, Path) else "" for one in (place, folder))
    return type(place) is type(folder) and inner.startswith(outer)
