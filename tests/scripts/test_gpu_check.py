import importlib
import json
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from scripts.bench.step_models import plausible_batch, stepper
from scripts.gpu_check.__main__ import QUESTIONS, WANTED, Question, check, judgement, summary
from scripts.gpu_check.correctness import LAYERS, counted, outcome_of, run_tests
from scripts.gpu_check.graphed import Maps, gradients, use_maps
from scripts.gpu_check.profiling import SYNC, syncs_of, traced_on_gpu
from scripts.gpu_check.setting import Setting
from scripts.gpu_check.steps import FUSED, compare, default_model, fused_flops, is_fault
from tests.paths import ROOT

HERE = "tests.scripts.gpu_questions"


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_check__goes_on_whatever_becomes_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.gpu_check.__main__.CPU_PATIENCE", 3)
    names = ("fails", "hangs", "lacks_a_package", "imports_what_we_do_not_have", "refuses", "answers")
    questions = [Question(name, 2 if name == "hangs" else 60, f"{HERE}:{name}", f"how it {name}") for name in names]
    questions.insert(1, Question("gpu", 60, f"{HERE}:answers", "", "nothing else will do"))
    check(tuple(questions), "cpu", tmp_path)
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    found = {question["question"]: question for question in report["questions"]}
    assert list(found) == [question.name for question in questions]
    assert {name: question["status"] for name, question in found.items()} == {
        "fails": "failed",
        "gpu": "skipped",
        "hangs": "timed out",
        "lacks_a_package": "skipped",
        "imports_what_we_do_not_have": "failed",
        "refuses": "skipped",
        "answers": "done",
    }
    assert found["fails"]["figures"] == {"before": 1}
    assert found["fails"]["reason"] == "ValueError: a bug"
    assert found["gpu"]["reason"] == "needs a GPU: nothing else will do"
    assert found["lacks_a_package"]["reason"] == "needs the package no_such_package"
    assert found["refuses"] == found["refuses"] | {"reason": "it is Sunday", "figures": {"before": 4}}
    assert found["answers"]["figures"] == {"device": "cpu", "ratio": 1.25, "rows": ["first", "second"]}
    assert 5 <= found["hangs"]["seconds"] < 30
    until = time.monotonic() + 10
    while is_running(found["hangs"]["figures"]["child"]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(found["hangs"]["figures"]["child"])  # what it had started ends with it
    text = (tmp_path / "gpu-check.txt").read_text()
    assert "how it answers" in text
    assert "ValueError: a bug" in (tmp_path / "fails.log").read_text()


def test_check__runs_no_part_when_its_time_is_used_up(tmp_path: Path) -> None:
    (result,) = check((Question("answers", 60, f"{HERE}:answers", ""),), "cpu", tmp_path, budget=0)
    assert (result["status"], result["reason"]) == ("skipped", "the time was used up")


def test_check__a_part_that_the_end_of_the_time_cuts_short_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs and wants twice as long as is left; the next one would have too little."""
    monkeypatch.setattr("scripts.gpu_check.__main__.CPU_PATIENCE", 2)
    questions = tuple(Question(name, 2, f"{HERE}:{name}", "") for name in ("hangs", "answers"))
    results = check(questions, "cpu", tmp_path, budget=1)
    assert [result["status"] for result in results] == ["cut short", "skipped"]


def test_fused_flops__are_those_of_the_convolution_alone() -> None:
    images, weights = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3, 3)
    with FlopCounterMode(display=False) as counter:
        found = F.conv2d(images, weights, padding=1)
    shapes = [list(tensor.shape) for tensor in (images, weights)]
    assert fused_flops(*shapes, None, (1, 1), out_shape=list(found.shape)) == counter.get_total_flops()
    assert all(torch.ops.aten.conv2d != operation for operation in FUSED)


def test_questions__exist() -> None:
    assert len({question.name for question in QUESTIONS}) == len(QUESTIONS)
    for question in QUESTIONS:
        module, _, function = question.function.partition(":")
        assert callable(getattr(importlib.import_module(module, "scripts.gpu_check"), function)), question.name
    assert {name.split(".")[0] for name in WANTED} <= {question.name for question in QUESTIONS}


def test_questions__of_the_model_need_no_package_that_reads_data() -> None:
    modules = ", ".join(
        f"scripts.gpu_check.{name}" for name in ("steps", "profiling", "correctness", "forms", "graphed")
    )
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"pyarrow", "polars", "pycocotools", "numba", "simplejpeg"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("machine", "matrix_tflops"),
        ("profile", "step_ms"),
        ("kernels", "compiling_s"),
        ("loader", "of_fixed_batch"),
        ("rpn", "stage_share"),
        ("search", "tries_kernels_chips_per_s"),
        ("paper", "rpn_chips_per_s"),
        ("forms", "rpn_plain_over_ours"),
    ],
)
def test_questions__are_answered_at_tiny_sizes(name: str, wanted: str, tmp_path: Path) -> None:
    (question,) = (question for question in QUESTIONS if question.name == name)
    module, _, function = question.function.partition(":")
    answer = getattr(importlib.import_module(module, "scripts.gpu_check"), function)
    found = {key: value for figures in answer(Setting("cpu", tmp_path)) for key, value in figures.items()}
    assert found[wanted] > 0
    assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))
    assert summary([{"question": name, "status": "done", "seconds": 1, "asks": "", "figures": found}], "cuda")


def test_compare__takes_medians_of_ratios_and_leaves_out_what_fails() -> None:
    """The first call of each step warms up; afterwards the machine becomes four times as slow in the last round."""

    def steps(*seconds: float) -> Callable[[], float]:
        return iter(seconds).__next__

    def fails() -> float:
        raise torch.OutOfMemoryError("no memory")

    taken = {"ours": steps(9, 1, 1, 4), "theirs": steps(9, 2, 3, 12), "bare_layers": steps(9, 0.5, 0.5, 2)}
    found = {
        key: value for figures in compare("a", {**taken, "large": fails}, 3, 16) for key, value in figures.items()
    }
    assert found["a_large"] == "OutOfMemoryError: no memory"
    assert (found["a_ours_chips_per_s"], found["a_theirs_chips_per_s"]) == (16, 16 / 3)
    assert (found["a_over_theirs"], found["a_of_bare_layers"]) == (3, 0.5)
    assert found["a_ours_slowest_over_fastest"] == 4
    assert not {"a_over_large", "a_large_chips_per_s"} & found.keys()


def test_compare__without_ours_there_is_no_answer() -> None:
    def fails() -> float:
        raise TypeError("a fault")

    found: list[dict[str, object]] = []
    with pytest.raises(TypeError):
        found.extend(compare("a", {"ours": fails, "theirs": lambda: 1.0}, 3, 16))
    assert found == [{"a_ours": "TypeError: a fault"}]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (RuntimeError("input tensor has more than INT_MAX elements"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
    ],
)
def test_is_fault__of_a_batch_that_is_too_large(error: RuntimeError, fault: bool) -> None:
    assert is_fault(error) == fault


def test_stepper__a_loss_that_is_not_finite_is_no_step_to_measure() -> None:
    layer = torch.nn.Linear(1, 1)
    losses = iter([1.0, math.nan])
    step = stepper(layer, lambda: {"loss": layer(torch.ones(1)).sum() * next(losses)}, "fp32")
    assert step() > 0
    with pytest.raises(FloatingPointError):
        step()


def test_traced_on_gpu__launches_and_idle_time_of_a_step() -> None:
    """Rows as CUPTI gives them: of three steps of 10 ms, in which the device works for 6 ms."""

    def row(key: str, device: str, count: int, device_us: float, *, is_own: bool = False) -> SimpleNamespace:
        kind = SimpleNamespace(name=device)
        return SimpleNamespace(
            key=key, count=count, self_device_time_total=device_us, device_type=kind, is_user_annotation=is_own
        )

    rows = [
        row("cudaLaunchKernel", "CPU", 6, 0),
        row("cuLaunchKernelEx", "CPU", 3, 0),
        row("cudaLaunchKernelExC_v11060", "CPU", 3, 0),
        row("cudaMemcpyAsync", "CPU", 3, 0),
        row("aten::mul", "CPU", 6, 15000),
        row("elementwise", "CUDA", 9, 15000),
        row("Memcpy HtoD", "CUDA", 3, 3000),
        row("Optimizer.step", "CUDA", 3, 9000, is_own=True),
    ]
    found = {key: value for figures in traced_on_gpu(rows, 0.01) for key, value in figures.items()}
    assert (found["launches_per_step"], found["kernels_per_step"]) == (4, 4)
    assert (found["busy_ms"], found["idle_share"]) == (pytest.approx(6), pytest.approx(0.4))
    assert [line.split() for line in found["kernels"]] == [
        ["5.000", "ms", "3", "x", "elementwise"],
        ["1.000", "ms", "1", "x", "Memcpy", "HtoD"],
    ]
    assert [line.split()[-1] for line in found["operations"]] == ["aten::mul"]


def test_run_tests__of_a_gpu_are_found_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cases = run_tests(Setting("cpu", tmp_path), "few", "--noconftest", "tests/trainer/model/test_boxes.py")
    found = counted(cases)
    assert found["passed"] + found["skipped_tests"] == 5
    assert found["failed"] == 0
    assert found["reasons"] in ([], ["needs a GPU"])


def test_syncs_of__counts_the_waits_of_a_step_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step() -> float:
        for text in (SYNC, SYNC, "of something else"):
            warnings.warn(f"it {text}", stacklevel=1)
        warnings.warn_explicit(SYNC, UserWarning, stepper.__code__.co_filename, 1)  # of the measurement itself
        return 0.0

    places = syncs_of(step)
    assert places.total() == 2
    assert next(iter(places)).startswith("test_gpu_check.py:")
    assert modes == ["warn", "default"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        ("ModuleNotFoundError: No module named 'no_such_package'", "left out"),
        ("ModuleNotFoundError: No module named 'trainer.no_such_module'", "failed"),
        ("AssertionError", "failed"),
    ],
)
def test_outcome_of__a_file_that_lacks_a_package_of_others_has_not_failed(error: str, outcome: str) -> None:
    case = ElementTree.fromstring(
        f'<testcase name="tests.a"><error message="collection failure">E {error}</error></testcase>'
    )
    assert outcome_of(case) == outcome
    assert ("files_left_out" in counted([case])) == (outcome == "left out")


def test_maps__as_a_module_of_their_own_change_no_gradient(tmp_path: Path) -> None:
    """What becomes a CUDA graph where there is a GPU, here without one."""
    setting = Setting("cpu", tmp_path)
    batch = plausible_batch(2, setting.device, setting.sizes.side)
    model = default_model(setting, batch)
    before = gradients(model, batch, setting)
    use_maps(model, Maps(model))
    after = gradients(model, batch, setting)
    assert all(after[name].equal(before[name]) for name in LAYERS)


@pytest.mark.parametrize(("value", "verdict"), [(1.5, "met"), (1.49, "MISSED"), ("OutOfMemoryError", "")])
def test_judgement__at_least(value: float | str, verdict: str) -> None:
    assert verdict in judgement("step.resnet101_bf16_over_torchvision", value)


@pytest.mark.parametrize(("value", "verdict"), [(0.2, "met"), (0.21, "MISSED")])
def test_judgement__at_most(value: float, verdict: str) -> None:
    assert f"at most 0.2 wanted: {verdict}" in judgement("rpn.stage_share", value)
    assert judgement("rpn.full_ms_per_chip", value) == ""
