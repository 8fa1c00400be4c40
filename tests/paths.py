"""Where the project lies, and the real data that some tests want."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared_data(relative: str) -> Path:
    """A file below SNIPER_TEST_DATA (default ../shared/data); skips the test when it is not there."""
    root = Path(os.environ.get("SNIPER_TEST_DATA") or ROOT / "../shared/data")
    path = root / relative
    if not path.exists():
        pytest.skip(f"real data not found: {relative} is not below SNIPER_TEST_DATA ({root})")
    return path
