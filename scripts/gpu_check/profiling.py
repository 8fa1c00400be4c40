"""Where the time of a training step goes."""

import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from scripts.bench.step_models import losses_of, plausible_batch, stepper
from scripts.gpu_check.setting import Setting
from scripts.gpu_check.steps import default_model

STEPS = 3  # under the profiler, and as many before anything is measured
ROWS = 25  # of the tables
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")
"""How the names of the calls that launch a kernel begin, such as cuLaunchKernelEx and cudaLaunchKernel_v7000."""
SYNC = "called a synchronizing CUDA operation"
"""What torch warns of in its sync-debug mode."""


def step(setting: Setting) -> Iterator[dict[str, Any]]:
    """One step of ours, without a loader: memory, syncs, then kernels and launches."""
    batch = plausible_batch(setting.sizes.chips, setting.device, setting.sizes.side)
    model = default_model(setting, batch)
    take = stepper(model, losses_of(model, batch), setting.sizes.precisions[0])
    for _ in range(STEPS):
        take()
    is_gpu = setting.device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(take() for _ in range(setting.sizes.rounds))
    yield {"step_ms": seconds * 1e3}
    if is_gpu:
        yield {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}
        places = syncs_of(take)
        yield {"syncs_per_step": places.total(), "syncs": [f"{n} at {place}" for place, n in places.most_common()]}
    yield from traced(take, seconds, is_gpu=is_gpu)


def syncs_of(take: Callable[[], float]) -> Counter[str]:
    """How often one step makes the host wait for the device, by file and line.

    The waits at the end of a measured step are not among them, since no training has them.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            take()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if SYNC in str(w.message) and w.filename != stepper.__code__.co_filename]
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits)


def traced(take: Callable[[], float], seconds: float, *, is_gpu: bool) -> Iterator[dict[str, Any]]:
    """What the profiler sees: the operations and kernels that take longest, and how long the device has nothing to do.

    The profiler slows the host down, so the device's busy time is compared with a step's time without it.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profile(activities=activities) as trace:
        for _ in range(STEPS):
            take()
    rows = trace.key_averages()
    if not is_gpu:
        longest = sorted(rows, key=lambda row: row.self_cpu_time_total, reverse=True)[:ROWS]
        yield {"operations": [f"{row.self_cpu_time_total / 1e3 / STEPS:9.2f} ms  {row.key}" for row in longest]}
    else:
        yield from traced_on_gpu(rows, seconds)


def traced_on_gpu(rows: list[Any], seconds: float) -> Iterator[dict[str, Any]]:
    """Launches, busy time and tables from the profiler's averages by name, of STEPS steps.

    Each operation and each call of CUDA is a row of the CPU, and an operation's repeats the time of its kernels. Each
    kernel and each copy is a row of the GPU. So is what a program has named itself, which is passed over.

    Args:
        rows: the averages.
        seconds: of one step, without the profiler.
    """
    yield {"launches_per_step": sum(row.count for row in rows if row.key.startswith(LAUNCHES)) / STEPS}
    kernels = [row for row in rows if row.device_type.name == "CUDA" and not row.is_user_annotation]
    busy = sum(row.self_device_time_total for row in kernels) / STEPS / 1e6
    yield {"busy_ms": busy * 1e3, "idle_share": 1 - busy / seconds, "kernels_per_step": total(kernels) / STEPS}
    yield {"kernels": table(kernels)}
    operations = [row for row in rows if row.device_type.name == "CPU"]
    yield {"operations": table(operations)}


def total(rows: list[Any]) -> int:
    """Calls of all rows."""
    return sum(row.count for row in rows)


def table(rows: list[Any]) -> list[str]:
    """The rows with most time on the device: milliseconds and calls per step, and the name."""
    longest = sorted(rows, key=lambda row: row.self_device_time_total, reverse=True)[:ROWS]
    return [
        f"{row.self_device_time_total / 1e3 / STEPS:9.3f} ms {row.count / STEPS:6.0f} x  {row.key[:150]}"
        for row in longest
        if row.self_device_time_total > 0
    ]
