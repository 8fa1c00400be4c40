"""What this machine lends: cores by affinity and quota, memory by its own size and the container's."""

import os
from pathlib import Path

import pytest

from pipeline.engines import tasks
from pipeline.engines.tasks import cores, memory_limit


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which control groups are looked for; this process is in those of the real machine."""
    monkeypatch.setattr(tasks, "CGROUPS", tmp_path)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_cores__without_a_quota_are_those_of_the_affinity(cgroups: Path) -> None:
    assert cores() == len(os.sched_getaffinity(0))
    write(cgroups, cpu__max="max 100000", memory__max="max")
    assert cores() == len(os.sched_getaffinity(0))
    assert memory_limit() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_cores__follow_the_quota_of_a_container(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    membership = cgroups / "membership"
    monkeypatch.setattr(tasks, "MEMBERSHIP", membership)
    membership.write_text("0::/pods/one\n")
    write(cgroups / "pods" / "one", cpu__max="350000 100000", memory__max=str(3 << 30))
    assert cores() == 4
    assert memory_limit() <= 3 << 30  # less on a smaller machine
    write(cgroups / "pods", cpu__max="200000 100000", memory__max=str(1 << 28))
    assert cores() == 2, "a group above may allow less"
    assert memory_limit() == 1 << 28


def test_cores__follow_the_quota_of_version_1(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    membership = cgroups / "membership"
    monkeypatch.setattr(tasks, "MEMBERSHIP", membership)
    membership.write_text("4:cpu,cpuacct:/box\n5:memory:/box\n")
    write(cgroups / "cpu,cpuacct" / "box", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    write(cgroups / "memory" / "box", memory__limit_in_bytes=str(1 << 28))
    write(cgroups / "memory", memory__limit_in_bytes=str(0x7FFFFFFFFFFFF000))
    assert cores() == 3
    assert memory_limit() == 1 << 28
    write(cgroups / "cpu,cpuacct" / "box", cpu__cfs_quota_us="-1")
    assert cores() == 64
