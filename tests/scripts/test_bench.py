from importlib import import_module
from importlib.util import find_spec

import pytest

from tests.paths import ROOT

NEED_PEERS = {"bench_sahi": "sahi", "bench_loader_peers": "webdataset", "bench_ultralytics": "ultralytics"}
MODULES = [
    f"scripts.{folder}.{path.stem}"
    for folder in ("bench", "gpu_check", "ablate")
    for path in sorted((ROOT / "scripts" / folder).glob("[!_]*.py"))
]


@pytest.mark.parametrize("module", MODULES)
def test_modules__are_found_by_their_full_names(module: str) -> None:
    """`make gpu-check` takes functions of the benchmarks, and would skip what it does not find."""
    needed = NEED_PEERS.get(module.rpartition(".")[2])
    if needed is not None and find_spec(needed) is None:
        pytest.skip(f"{needed} is in .venv-peers alone")
    import_module(module)
