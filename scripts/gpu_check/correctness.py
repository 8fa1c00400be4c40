"""Whether a device computes what a CPU does."""

import importlib
import importlib.util
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.settings import Precision
from scripts.bench.step_models import calibrated_state, losses_of, our_model, plausible_batch
from scripts.gpu_check.setting import Setting, SkippedError
from trainer.loading.batch import Batch
from trainer.model.heads import autocast

WITHOUT_FILES = ("tests/trainer/model", "tests/trainer/learning", "tests/trainer/loading/test_batch.py")
"""Tests that need no data set, and so none of the packages that read one."""
SIDE, CHIPS = 256, 2
LIMITS = {"fp32": 0.01, "tf32": 0.05, "bf16": 0.15, "fp16": 0.05}
"""How far the sum of the losses may lie from the CPU's, as a share of it."""
LAYERS = ("backbone.body.layer3.0.conv2.weight", "rpn.conv.weight", "head.layers.0.weight")


def tests(setting: Setting) -> Iterator[dict[str, Any]]:
    """The tests marked gpu, all that can be collected with the packages that are here."""
    cases = run_tests(setting, "without_files", "--noconftest", *WITHOUT_FILES)
    yield counted(cases)
    try:
        importlib.import_module("tests.trainer.conftest")
    except ModuleNotFoundError as error:
        yield {"left_out": f"tests that read data sets, which need the package {error.name}"}
    else:
        cases += run_tests(setting, "others", *(f"--ignore={path}" for path in WITHOUT_FILES), "tests/trainer")
        yield counted(cases)
    if failed := [str(case.get("name")) for case in cases if outcome_of(case) == "failed"]:
        raise AssertionError(f"failed: {', '.join(failed)}")


def run_tests(setting: Setting, name: str, *chosen: str) -> list[Element]:
    """Run some of the tests marked gpu; a file that cannot be collected counts as one that failed.

    Each name is printed before its test begins, so that the report tells which one hangs.
    """
    report = setting.work / f"tests-{name}.xml"
    options = ["-v", "-m", "gpu", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
    options += ["--continue-on-collection-errors", f"--junitxml={report}"]
    status = subprocess.run([sys.executable, "-m", "pytest", *options, *chosen]).returncode
    if not report.exists():
        importlib.import_module("pytest")  # names the package where it is the one that is missing
        raise RuntimeError(f"pytest ended with status {status} and no report")
    return list(ElementTree.parse(report).iter("testcase"))


def outcome_of(case: Element) -> str:
    """Tell whether a test passed, failed, was skipped, or stands in a file that needs a package that is not here."""
    if missing_package(case):
        return "left out"
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"


def missing_package(case: Element) -> str | None:
    """Name the package for want of which a file of tests could not be collected; None where there is no such."""
    error = case.find("error")
    found = re.search(r"No module named '([\w]+)", "" if error is None else error.text or "")
    return found[1] if found and importlib.util.find_spec(found[1]) is None else None


def counted(cases: list[Element]) -> dict[str, Any]:
    """Count tests by what became of them, and list why some were skipped."""
    counts = Counter(map(outcome_of, cases))
    reasons = sorted({node.get("message", "") for case in cases for node in case.iter("skipped")})
    numbers = {"passed": counts["passed"], "failed": counts["failed"], "skipped_tests": counts["skipped"]}
    missing = sorted({f"{case.get('name')} needs {name}" for case in cases if (name := missing_package(case))})
    return {**numbers, "reasons": reasons, **({"files_left_out": missing} if missing else {})}


def numerics(setting: Setting) -> Iterator[dict[str, Any]]:
    """Losses of one batch in every precision against a CPU's in fp32, and the directions of some gradients."""
    side = min(SIDE, setting.sizes.side)
    batch = plausible_batch(CHIPS, torch.device("cpu"), side)
    backbone = setting.sizes.backbones[0]
    state = calibrated_state(backbone, batch)
    right, right_gradients = outcome(backbone, state, batch, torch.device("cpu"), "fp32")
    kinds: list[tuple[str, Precision]] = [("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16")]
    if setting.device.type == "cuda":
        kinds.insert(1, ("tf32", "fp32"))
    wrong = []
    for name, precision in kinds:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        losses, gradients = outcome(backbone, state, batch, setting.device, precision)
        off = {key: abs(losses[key] / right[key] - 1) for key in right}
        yield {f"{name}_{key}_off": value for key, value in off.items()}
        for layer in LAYERS:
            cosine = F.cosine_similarity(gradients[layer], right_gradients[layer], 0).item()
            yield {f"{name}_{layer.split('.')[0]}_gradient_cosine": cosine}
        total = abs(sum(losses.values()) / sum(right.values()) - 1)
        yield {f"{name}_total_off": total}
        if not total <= LIMITS[name]:  # also where it is not a number
            wrong.append(f"{name}: the losses are off by {total:.3g}, at most {LIMITS[name]} was expected")
    if wrong:
        raise AssertionError("; ".join(wrong))


def outcome(
    backbone: str, state: dict[str, Tensor], batch: Batch, device: torch.device, precision: Precision
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The losses by name, and the gradients of LAYERS as float32 vectors on the CPU."""
    model = our_model(backbone, state, batch.images.shape[2]).to(device)
    with autocast(device, precision):
        losses = losses_of(model, batch.to(device))()
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    parameters = dict(model.named_parameters())
    gradients = {}
    for layer in LAYERS:
        gradient = parameters[layer].grad
        assert gradient is not None, layer
        gradients[layer] = gradient.float().cpu().flatten()
    return {name: value.item() for name, value in losses.items()}, gradients


def overfit(setting: Setting) -> Iterator[dict[str, Any]]:
    """A slim network learns four chips by heart."""
    if setting.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise SkippedError("this GPU has no bf16")
    from tests.trainer.overfit import overfit as learn

    before, after = learn(setting.device, "bf16" if setting.device.type == "cuda" else "fp32")
    yield {"ap50_before": before, "ap50": after}
    if after < 0.95:
        raise AssertionError(f"AP50 is {after:.3f}, at least 0.95 was expected")
