"""Does the method work, and what does each part of it give? Trains and scores the rows of docs/evidence.md.

Run it as: python -m scripts.ablate --out docs/evidence/runs.jsonl [--budget MINUTES] [--rows "full,two scales"]
All rows have the same backbone, number of optimiser steps, pixels in a step and validation images. Each finished run
is one JSON line; what is there is not run again, and a run that was interrupted goes on from its last checkpoint.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from schemas.settings import Settings, load_settings
from scripts.ablate import two_stage
from scripts.ablate.cuts import SETTINGS, pyramid_pixels, seconds
from scripts.ablate.data import DATA, AbsentError
from scripts.ablate.errors import costs
from scripts.ablate.rows import NUM_TRAIN, ROWS, STEPS, Row
from trainer.evaluation.results import write_results


class Run(NamedTuple):
    """A row, what it is run on, and a seed."""

    row: Row
    data: str
    seed: int


def planned(rows: list[Row], seeds: list[int] | None, data: list[str]) -> list[Run]:
    """Return the runs in the order in which they are done: the first seed of every row first."""
    runs = [
        Run(row, name, seed)
        for row in rows
        for name, count in row.seeds.items()
        if name in data
        for seed in (range(count) if seeds is None else seeds)
    ]
    return sorted(runs, key=lambda run: run.seed)  # stable


def done(out: Path, steps: int, num_train: int) -> set[tuple[str, str, int]]:
    """Read which runs, of so many steps and training images, stand in a file of JSON lines."""
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    same = [line for line in lines if line["steps"] == steps and line["num_train"] == num_train]
    return {(line["data"], line["row"], line["seed"]) for line in same}


def perform(run: Run, work: Path, steps: int, num_train: int, deadline: float) -> dict[str, Any]:
    """Do one run, from the data to the scores.

    Args:
        run: what to do.
        work: folder for data, chips and checkpoints; what stands there is used.
        steps: optimiser steps.
        num_train: training images at most.
        deadline: a reading of time.monotonic at which training stops.

    Returns:
        What became of it, as it is written.

    Raises:
        AbsentError: the data are not on this machine.
        OutOfTimeError: the deadline came first; the same call goes on from there.
    """
    row = run.row
    base, steps = steps, round(run.row.share * steps)
    settings = load_settings(SETTINGS, row.sets)
    data = DATA[run.data](work, num_train)
    folders = row.cut(data, settings)
    settings = load_settings(SETTINGS, (*row.sets, f"train.seed={run.seed}"))
    out = data.folder / "runs" / _run_name(run, folders, settings, steps)
    pace = row.network.fit(folders, out, settings, steps, deadline)
    if pace is not None:
        (out / "pace.json").write_text(json.dumps(pace._asdict()))
    num_chips, pixels = two_stage.epoch_of(folders[0], settings)
    scored = row.network.score(data, out, settings, steps)
    found = out / f"{row.name.replace(': ', '-').replace(' ', '-')}.json"
    results = scored.pop("found")
    write_results(found, results)
    num_val = len(json.loads(data.val.read_text())["images"])
    return {
        **{"data": run.data, "row": row.name, "seed": run.seed, "steps": base, "own_steps": steps},
        **{"num_train": num_train},
        **{"num_val": num_val, "device": _device(), "code": _code(), "batch": settings.train.batch_size},
        **{"found": str(found.relative_to(work)), "AP50_gains": costs(data, results)},
        **{"epoch_chips": num_chips, "epoch_pixels": pixels, "pyramid_pixels": pyramid_pixels(data)},
        **(json.loads((out / "pace.json").read_text()) if (out / "pace.json").exists() else {}),
        **{"prepare_cpu_s": seconds(folders[0]), "images_per_core_s": num_val / scored.pop("detect_cpu_s")},
        **scored,
    }


def _run_name(run: Run, folders: list[Path], settings: Settings, steps: int) -> str:
    """Name the folder of a run by what it learns from; rows that differ in detection alone share it."""
    learnt = settings.model_dump_json(include={"chips", "model", "loader", "train"})
    of = [run.row.network.__name__, *(folder.name for folder in folders), learnt, str(steps)]
    digest = hashlib.sha256("\n".join(of).encode()).hexdigest()[:8]
    return f"{run.row.cut.__name__}-{digest}-seed{run.seed}"


def _code() -> str:
    """Name the state of what decides the scores, so that lines of different states can be told apart."""
    root = Path(__file__).resolve().parents[2]
    rooms = ("pipeline/planning", "pipeline/pyramid", "trainer/model", "trainer/learning", "scripts/ablate")
    files = sorted(path for room in rooms for path in (root / room).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"


def _named(wanted: str | None, known: list[str], what: str) -> list[str]:
    names = known if wanted is None else [name.strip() for name in wanted.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise click.BadParameter(f"{unknown[0]!r}: expected some of {', '.join(known)}", param_hint=what)
    return names


@click.command(help="Train and score the rows of docs/evidence.md, as far as they are not done.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("docs/evidence/runs.jsonl"))
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("bench-results/ablate"))
@click.option("--budget", type=float, help="Minutes after which no more is trained; the same command goes on later.")
@click.option("--rows", help="Names of rows, with commas between them; all without it.")
@click.option("--data", help="Names of data sets, with commas between them; all without it.")
@click.option("--seeds", help="Numbers with commas between them; as many as each row wants without it.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="A GPU where there is one without it.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=STEPS, show_default=True, help="Optimiser steps of a run."
)
@click.option("--images", type=click.IntRange(min=3), default=NUM_TRAIN, show_default=True, help="Training images.")
@click.option("--list", "only_list", is_flag=True, help="List the runs and which of them are done.")
def main(
    out: Path,
    work: Path,
    budget: float | None,
    rows: str | None,
    data: str | None,
    seeds: str | None,
    device: str | None,
    steps: int,
    images: int,
    only_list: bool,
) -> None:
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    chosen = _named(rows, [row.name for row in ROWS], "--rows")
    sets = _named(data, list(DATA), "--data")
    numbers = None if seeds is None else [int(seed) for seed in seeds.split(",")]
    runs = planned([row for row in ROWS if row.name in chosen], numbers, sets)
    finished = done(out, steps, images)
    if only_list:
        for run in runs:
            is_done = (run.data, run.row.name, run.seed) in finished
            click.echo(f"{'done' if is_done else 'open':<6}{run.data:<12}{run.row.name:<26}seed {run.seed}")
        return
    deadline = time.monotonic() + (budget * 60 if budget is not None else float("inf"))
    todo = [run for run in runs if (run.data, run.row.name, run.seed) not in finished]
    for number, line in enumerate(_performed(todo, work, steps, images, deadline), 1):
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        scores = line["scores"]
        click.echo(f"{number}/{len(todo)} {line['data']}, {line['row']}, seed {line['seed']}: AP {scores['AP']:.4f}")


def _performed(runs: list[Run], work: Path, steps: int, num_train: int, deadline: float) -> Iterator[dict[str, Any]]:
    absent: set[str] = set()
    for run in runs:
        if time.monotonic() > deadline:
            click.echo("the time is over; the same command goes on")
            return
        try:
            yield perform(run, work, steps, num_train, deadline)
        except AbsentError as error:
            if run.data not in absent:
                absent.add(run.data)
                click.echo(f"left out: {error}")
        except two_stage.OutOfTimeError as error:
            click.echo(f"the time is over amid {run.data}, {run.row.name}, seed {run.seed}: {error}")
            return


if __name__ == "__main__":
    main()
