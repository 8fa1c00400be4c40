"""Where the benchmarks find real images and boxes."""

import os
from pathlib import Path

REAL_DATA = Path(os.environ.get("SNIPER_TEST_DATA") or Path(__file__).resolve().parents[2] / "../shared/data")
