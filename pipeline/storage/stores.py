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

from schemas.errors import UsageError

Location = Path | UPath
Result = TypeVar("Result")

AHEAD = 16  # requests to an object store at a time: each waits some ten milliseconds, mostly for nothing
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

NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound")
MISUSE = ("ParamValidationError", "NoRegionError", "InvalidRegionError")
"""Of botocore, which need not be installed. None of these passes."""

SIGNED = re.compile(
    r"[?&](x-amz-signature|x-amz-security-token|x-goog-signature|signature|sig|access_token|token)=", re.IGNORECASE
)


def location(text: str | Location) -> Location:
    """A path of this machine, made absolute, or an fsspec URL such as s3://bucket/folder.

    Raises:
        UsageError: an unknown protocol, one whose package is missing, no bucket, or a URL with credentials in it.
    """
    if isinstance(text, UPath):
        return text
    text = str(text)
    protocol, separator, rest = text.partition("://")
    if not separator:
        return Path(text).absolute()  # workers of a cluster run in folders of their own
    if protocol in ("file", "local"):
        return Path(rest).absolute()
    if _has_credentials(rest):
        raise UsageError(
            f"a {protocol}:// URL has credentials in it (before an @, or as a signature); leave them to the "
            "environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if protocol in OPTIONS and not rest.split("/")[0]:
        raise UsageError(f"{text}: no bucket; expected an URL such as {protocol}://bucket/folder")
    try:
        found = UPath(text, **OPTIONS.get(protocol, {}))
        found.fs  # noqa: B018 (imports the protocol's package)
    except ImportError as error:
        extra = "'sniper-chips[s3]'" if protocol in OPTIONS else "the package it names"
        raise UsageError(f"{text}: {error}; pip install {extra}") from error
    except ValueError as error:
        raise UsageError(f"{text}: expected a path or an fsspec URL such as s3://bucket/folder: {error}") from error
    return cast(UPath, found)


def _has_credentials(rest: str) -> bool:
    """Whether there are some in a URL, less its protocol. A secret key may have slashes in it."""
    host = rest.split("/")[0]
    user_and_secret = ":" in host and not re.search(r"^arn:|:\d+$", host)
    return "@" in (rest if user_and_secret else host) or bool(SIGNED.search(rest))


def client(place: UPath) -> Any:
    """The fsspec file system of a remote place, as this process may use it."""
    store = place.fs
    if getattr(store, "_pid", os.getpid()) != os.getpid():  # made before a fork, whose threads did not come along
        store = fsspec.filesystem(place.protocol, **place.storage_options)
    if place.protocol in OPTIONS:
        store.retries = 1  # of 5, twice over where a file is read; no option sets it
    return store


def insist(ask: Callable[[], Result], what: object) -> Result:
    """The answer of an object store, asked again after errors that may pass.

    Raises:
        FileNotFoundError, PermissionError: as the store says, or no credentials.
        OSError: no answer after ATTEMPTS, or none to be had.
    """
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except (IsADirectoryError, NotADirectoryError, TypeError, MemoryError):
            raise
        except Exception as error:  # each store's library has exceptions of its own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # this machine's disk is full
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
            if attempt == ATTEMPTS - 1:
                raise _os_error(
                    errno.EIO, f"no good answer in {ATTEMPTS} attempts, the last: {reason}", what
                ) from error
        longest = min(FIRST_WAIT * 3**attempt, LONGEST_WAIT)
        time.sleep(random.uniform(longest / 2, longest))  # so that many workers do not come back all at once
    raise AssertionError


def _os_error(number: int, reason: str, what: object) -> OSError:
    """As the system raises it for a local file, with a class of its own where the number has one."""
    return OSError(number, reason, str(what))
