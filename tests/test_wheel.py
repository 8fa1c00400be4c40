"""The program as a wheel: complete, installed read-only, without torch, for a user without a writable home."""

import ctypes
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.make_demo_data import make_demo_data
from tests.paths import ROOT
from tests.trainer.runs import TINY_CHIPS

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2  # of Linux
PACKAGES = ("sniper_chips", "pipeline", "trainer", "schemas")
NO_TORCH = "import sys; sys.modules.update(dict.fromkeys(('torch', 'torchvision')))\n"
SNIPER = "from sniper_chips import main; main()"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel built from the tree, in a folder that nobody may write in."""
    folder = tmp_path_factory.mktemp("wheel")
    tree, site = folder / "tree", folder / "site"
    tree.mkdir()
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    build = [sys.executable, "-c", f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"]
    subprocess.run(build, cwd=tree, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    for path in (site, *site.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return site


def drop_the_right_to_write_anywhere() -> None:
    """Take from root what would let it write into a read-only folder; nothing happens to other users."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def sniper(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command from the wheel without torch, as a user who can write neither beside it nor at home."""
    environment = {**os.environ, "PYTHONPATH": str(site), "HOME": str(site), "OMP_NUM_THREADS": "1"}
    environment["NUMBA_DISABLE_JIT"] = "1"  # compiling takes half a minute, and another test does it without a cache
    environment.pop("XDG_CACHE_HOME", None)
    command = [sys.executable, "-P", "-c", NO_TORCH + SNIPER, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd="/",
        env=environment,
        text=True,
        capture_output=True,
        preexec_fn=drop_the_right_to_write_anywhere if os.getuid() == 0 else None,
    )


def test_wheel__holds_every_module_and_the_marks_of_typed_packages(installed: Path) -> None:
    for package in PACKAGES:
        modules = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
        assert modules == {path.relative_to(installed) for path in (installed / package).rglob("*.py")}
        assert (installed / package / "py.typed").is_file()


def test_wheel__cuts_chips_without_torch_or_a_home(installed: Path, tmp_path: Path) -> None:
    make_demo_data(tmp_path, num_train=1, num_val=1)
    out = tmp_path / "out"
    settings = [word for assignment in TINY_CHIPS for word in ("--set", assignment)]
    source = ["--annotations", tmp_path / "train.json", "--images", tmp_path / "train"]
    result = sniper(installed, "chips", *source, "--out", out, *settings)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert (out / "run.json").is_file()


def test_wheel__commands_that_need_torch_say_which_extra_has_it(installed: Path) -> None:
    result = sniper(installed, "train", "--data", "/nowhere", "--out", "/nowhere")
    assert result.returncode == 2
    assert "PATH_OF_THE_CLONE[train]" in result.stderr
    assert "Traceback" not in result.stderr
