"""Whether a device computes what a CPU does."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import torch

from scripts.gpu_check.setting import Setting, SkippedError

WITHOUT_FILES = ("tests/trainer/model", "tests/trainer/learning", "tests/trainer/loading/test_batch.py")
"""Tests that need no data set, and so none of the packages that read one."""


def tests(setting: Setting) -> Iterator[dict[str, Any]]:
    """The tests marked gpu, all that can be collected with the packages that are here."""
    chosen: tuple[str, ...] = ("tests/trainer",)
    try:
        importlib.import_module("tests.trainer.conftest")
    except ModuleNotFoundError as error:
        yield {"left_out": f"tests that read data sets, which need the package {error.name}"}
        chosen = ("--noconftest", *WITHOUT_FILES)
    report = setting.work / "tests.xml"
    options = ["-q", "-m", "gpu", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *chosen]
    status = subprocess.run(command).returncode
    if not report.exists():
        importlib.import_module("pytest")  # names the package where it is the one that is missing
        raise RuntimeError(f"pytest ended with status {status} and no report")
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    yield {"passed": len(cases) - len(failed) - len(skipped), "failed": len(failed), "skipped_tests": len(skipped)}
    yield {"reasons": sorted({node.get("message", "") for case in skipped for node in case.iter("skipped")})}
    if failed:
        raise AssertionError(f"failed: {', '.join(str(case.get('name')) for case in failed)}")


def overfit(setting: Setting) -> Iterator[dict[str, Any]]:
    """A slim network learns four chips by heart."""
    if setting.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise SkippedError("this GPU has no bf16")
    from tests.trainer.overfit import overfit as learn

    before, after = learn(setting.device, "bf16" if setting.device.type == "cuda" else "fp32")
    yield {"ap50_before": before, "ap50": after}
    if after < 0.95:
        raise AssertionError(f"AP50 is {after:.3f}, at least 0.95 was expected")
