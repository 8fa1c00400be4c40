"""What a GPU makes of this program, in eight minutes: python -m scripts.gpu_check, or `make gpu-check`.

Each question of the table below is answered in a process of its own, under its own time limit. What has been found
before a process fails or runs out of time is kept, and the next question is asked all the same. After each of them
OUT/gpu-check.json and OUT/gpu-check.txt are written anew. Nothing is fetched from a network.

Questions about the network need torch, torchvision and the small packages of `trainer.learning`: pydantic, pyyaml,
xxhash, msgspec, fsspec, universal-pathlib and tqdm. Those that begin with files need the rest of the lock, too. Where
a package is missing the question is skipped with the package's name.

With --device cpu sizes are tiny, and what only a GPU can answer is skipped.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BUDGET = 480.0  # seconds for all questions together
CPU_PATIENCE = 6  # times as many seconds for everything on a CPU, which may have other work: only what hangs is to end
LEAST_SHARE = 1 / 3
"""Of its time limit that must be left for a question to be asked."""
GRACE = 5.0  # seconds from the signal that ends a process to the one that kills it


class Question(NamedTuple):
    """One thing to find out.

    Attributes:
        name: in the report.
        seconds: its time limit.
        function: `module:function`, a dot before it for those here; it is called with a setting.Setting and yields
            figures as it finds them.
        asks: what it answers.
        needs_gpu: why a CPU cannot answer it; empty where it can.
    """

    name: str
    seconds: float
    function: str
    asks: str
    needs_gpu: str = ""


QUESTIONS = (  # by worth; what no GPU has answered yet comes before what one has
    Question("machine", 20, ".steps:machine", "versions, and the rates of matrix products and copies"),
    Question("step", 125, ".steps:against_torchvision", "a step against torchvision's, and against its bare layers"),
    Question("profile", 40, ".profiling:step", "where a step's time goes: kernels, launches, syncs, idle, memory"),
    Question("kernels", 60, ".data:kernels", "how long it takes to compile numba's kernels, once on a machine"),
    Question("loader", 60, ".data:with_loader", "the training loop on chips of the loader against a fixed batch"),
    Question("tests", 90, ".correctness:tests", "the tests marked gpu", "each compares CUDA with a CPU"),
    Question("inference", 70, ".data:whole_images", "three-scale inference of files against the network alone"),
    Question("rpn", 60, ".steps:rpn_stage", "the RPN's step against the full one: the share of the negatives"),
    Question("paper", 40, ".steps:paper", "the network of configs/coco-paper.yaml: a full step, and one of its RPN"),
    Question("sync", 40, ".several_ranks:empty_rank", "synchronised norms where a rank has no chip", "CUDA alone"),
    Question("resume", 60, ".several_ranks:resume", "a run that was stopped and goes on against a whole one"),
    Question("ranks", 90, ".several_ranks:ranks", "ranks train, and all end when one raises"),
    Question("numerics", 25, ".correctness:numerics", "losses and gradients in each precision against a CPU's"),
    Question("overfit", 30, ".correctness:overfit", "a few chips are learnt by heart: AP50 of 0.95 at least"),
    Question("graph", 30, ".graphed:graph", "a step with backbone and neck as a CUDA graph, a trial", "CUDA alone"),
    Question("forms", 25, ".forms:both_forms", "RoIAlign, RPN, norms, deformable layers: ours and plain"),
    Question("batch", 45, ".steps:largest_batch", "the most chips in a forward pass", "a CPU would swap"),
    Question("search", 60, ".steps:searched", "a step for which cuDNN tries its kernels, against ours in `step`"),
    Question("ways", 120, ".steps:ways", "a step as it is, with norms that learn, and compiled"),
)
WANTED = {  # the least that a figure should be on one H100 or H200, and where it is "at most"
    "step.resnet101_bf16_over_torchvision": 1.5,
    "step.resnet101_bf16_of_bare_layers": 0.7,
    "loader.of_fixed_batch": 0.97,
    "rpn.stage_share": -0.2,
    "inference.of_model_only": 0.9,
    "overfit.ap50": 0.95,
}
"""A negative number is an upper end."""


def ask(question: Question, device: str, work: Path, limit: float, *, is_cut: bool = False) -> dict[str, Any]:
    """Run one question in a process of its own; returns its entry in the report.

    Where the limit is cut, since the time of all questions ends, to run out of it is no failure.
    """
    if question.needs_gpu and device == "cpu":
        return skipped(question, f"needs a GPU: {question.needs_gpu}")
    found, log = work / f"{question.name}.jsonl", work / f"{question.name}.log"
    command = [sys.executable, "-m", "scripts.gpu_check.child", question.function, device, str(work), str(found)]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    started = time.perf_counter()
    with log.open("w") as output:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = "failed" if child.wait(limit) else "done"
        except subprocess.TimeoutExpired:
            status = "cut short" if is_cut else "timed out"
        finally:
            end_group(child)
    figures: dict[str, Any] = {}
    whole_lines = found.read_text().rpartition("\n")[0] if found.exists() else ""
    for line in whole_lines.splitlines():
        figures |= json.loads(line)
    if (reason := figures.pop("skipped", None)) is not None:
        return skipped(question, reason) | {"figures": figures}
    seconds = round(time.perf_counter() - started, 1)
    more = {"limit_s": round(limit, 1)} | ({} if status == "done" else {"reason": last_words(log)})
    return entry(question, status, seconds, **more, figures=figures)


def skipped(question: Question, reason: str) -> dict[str, Any]:
    """The entry of a question that was not run."""
    return entry(question, "skipped", 0, reason=reason, figures={})


def entry(question: Question, status: str, seconds: float, **more: Any) -> dict[str, Any]:
    """The entry of a question in the report."""
    return {"question": question.name, "asks": question.asks, "status": status, "seconds": seconds, **more}


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started; nothing happens where none is left."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sent)
            child.wait(GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def last_words(log: Path) -> str:
    """The last line that a process has printed."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def summary(results: list[dict[str, Any]], device: str) -> str:
    """The report as text: a line per question, and its figures below it."""
    lines = []
    for result in results:
        name, taken = result["question"], f"{result['seconds']:.0f} s"
        lines.append(f"{name:<10} {result['status']:<10} {taken:>6}  {result['asks']}")
        lines += [f"{'':<12}{result['reason']}"] if "reason" in result else []
        for key, value in result["figures"].items():
            verdict = judgement(f"{name}.{key}", value) if device == "cuda" else ""
            lines.append(f"{'':<12}{key:<44} {shown(value)}{verdict}")
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A figure as the summary prints it; a table has a line for each row."""
    if isinstance(value, list):
        return "".join(f"\n{'':<16}{row}" for row in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def judgement(name: str, value: Any) -> str:
    """What was wanted of a figure, and whether it is so."""
    if name not in WANTED or not isinstance(value, int | float):
        return ""
    wanted = WANTED[name]
    met = value <= -wanted if wanted < 0 else value >= wanted
    return f"  ({'at most' if wanted < 0 else 'at least'} {abs(wanted)} wanted: {'met' if met else 'MISSED'})"


def write_report(out: Path, device: str, results: list[dict[str, Any]]) -> None:
    """Write both files anew."""
    (out / "gpu-check.json").write_text(json.dumps({"device": device, "questions": results}, indent=1) + "\n")
    (out / "gpu-check.txt").write_text(summary(results, device))


def check(questions: tuple[Question, ...], device: str, out: Path, budget: float = BUDGET) -> list[dict[str, Any]]:
    """Run all questions, one after the other, and write the report after each.

    Args:
        questions: in the order in which they are run.
        device: "cuda" or "cpu".
        out: takes the report, and what each process has printed.
        budget: seconds for all of them; a question that would begin later is not run.
    """
    out.mkdir(parents=True, exist_ok=True)
    patience = CPU_PATIENCE if device == "cpu" else 1
    until = time.monotonic() + patience * budget
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        work = Path(folder)
        for question in questions:
            left, wanted = until - time.monotonic(), patience * question.seconds
            if left > wanted * LEAST_SHARE:
                result = ask(question, device, work, min(wanted, left), is_cut=left < wanted)
            else:
                result = skipped(question, "the time was used up")
            results.append(result)
            if (log := work / f"{question.name}.log").exists():
                (out / log.name).write_bytes(log.read_bytes())
            write_report(out, device, results)
            print(summary([result], device), end="", flush=True)
    return results


def main() -> None:
    """Run the questions that are named, or all; status 1 where one failed or ran out of time."""
    parser = argparse.ArgumentParser(
        "gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: a GPU if there is one"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench-results/gpu", help="folder of the report")
    parser.add_argument("--seconds", type=float, default=BUDGET, help="for all questions together")
    parser.add_argument(
        "questions", nargs="*", metavar="QUESTION", help=f"all, or some of {' '.join(p.name for p in QUESTIONS)}"
    )
    args = parser.parse_args()
    if unknown := set(args.questions) - {question.name for question in QUESTIONS}:
        parser.error(f"there is no question {', '.join(sorted(unknown))}")
    device = args.device
    if device == "auto":
        import torch  # takes seconds, and nothing else here needs it

        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            built_for = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            print(
                f"torch {torch.__version__}, {built_for}, finds no GPU that it can use: tiny sizes on the CPU follow"
            )
    chosen = tuple(question for question in QUESTIONS if not args.questions or question.name in args.questions)
    results = check(chosen, device, args.out, args.seconds)
    print(f"the report is in {args.out}/gpu-check.txt and gpu-check.json")
    sys.exit(any(result["status"] in ("failed", "timed out") for result in results))


if __name__ == "__main__":
    main()
