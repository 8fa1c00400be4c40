"""Machine code of the kernels: kept once per version, never stale, and made without a home or a writable source."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.kernels import SOURCES
from tests.paths import ROOT

PROGRAM = """
import json
from pipeline.kernels import FOLDER
from pipeline.planning.cover import greedy_cover, window_side
side = window_side(512, 1.0, 600.0, 400.0)
stats = window_side.stats
print(json.dumps([str(FOLDER), side, sum(stats.cache_hits.values()), sum(stats.cache_misses.values())]))
"""


def run(tree: Path, *wrapper: str, **env: str) -> Any:
    """Call one kernel of a copy of the program; gives the folder, the result, hits and misses of numba's cache."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", **env}
    command = [*wrapper, sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for package in ("pipeline", "schemas"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_sources__are_all_files_with_a_kernel() -> None:
    files = [path for package in ("pipeline", "trainer") for path in (ROOT / package).rglob("*.py")]
    kernels = {
        str(path.relative_to(ROOT)) for path in files if re.search(r"^@kernel$", path.read_text(), re.MULTILINE)
    }
    assert kernels | {"schemas/codes.py"} == set(SOURCES)
    assert not [path for path in files if "numba.njit" in path.read_text() and path.name != "kernels.py"]


def test_kernel__is_compiled_once_and_anew_when_a_file_that_it_is_made_from_has_changed(tree: Path) -> None:
    folder, side, *counts = run(tree, HOME=str(tree))
    assert (side, counts) == (512, [0, 1])
    assert Path(folder).is_relative_to(tree / "pipeline")
    assert run(tree, HOME=str(tree)) == [folder, 512, 1, 0]
    codes = tree / "schemas/codes.py"  # numba alone would not see this one
    codes.write_text(codes.read_text() + "\n")
    other, _, *counts = run(tree, HOME=str(tree))
    assert other != folder
    assert counts == [0, 1]


def test_kernel__without_a_home_and_a_writable_source(tree: Path) -> None:
    """As a container with an arbitrary uid has it: a folder of the user's own among the temporary ones."""
    temporary = tree / "temporary"
    temporary.mkdir()
    temporary.chmod(0o777)
    wrapper = []
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root can write everywhere, and there is no setpriv to become somebody else")
        rights = "+dac_read_search"  # to find Python; the right to write is gone
        wrapper = ["setpriv", "--reuid=54321", "--clear-groups", f"--inh-caps={rights}", f"--ambient-caps={rights}"]
    for path in [tree / "pipeline", *(tree / "pipeline").rglob("*")]:
        path.chmod(0o555)
    home = {} if wrapper else {"HOME": "/nonexistent"}
    try:
        folder, side, *counts = run(tree, *wrapper, TMPDIR=str(temporary), **home)
        assert Path(folder).parent == temporary
        assert (side, counts) == (512, [0, 1])
        assert run(tree, *wrapper, TMPDIR=str(temporary), **home) == [folder, 512, 1, 0]
        Path(folder).chmod(0o777)  # somebody else could have put machine code there
        assert run(tree, *wrapper, TMPDIR=str(temporary), **home) == ["None", 512, 0, 1]
    finally:
        for path in [tree / "pipeline", *(tree / "pipeline").rglob("*")]:
            path.chmod(0o755)
