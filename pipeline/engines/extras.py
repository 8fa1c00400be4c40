"""Optional packages: absent ones are an error with the line that installs them."""

from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import UsageError


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """Import inside; a missing package becomes a UsageError that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("pipeline", "trainer", "schemas"):
            raise
        raise UsageError(
            f"this command needs the package {error.name}: run `make setup` in the clone of this project, or, in an "
            f"environment of your own, pip install 'PATH_OF_THE_CLONE[{extra}]'"
        ) from error
    except RuntimeError as error:  # torchvision built for another torch
        if "torchvision::" not in str(error):
            raise
        raise UsageError(
            f"torch and torchvision do not belong together ({error}); install one release pair, such as torch 2.14 "
            "with torchvision 0.29"
        ) from error
