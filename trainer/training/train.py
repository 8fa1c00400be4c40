"""`sniper train`: opens the data and the run, says what is worth knowing, and runs the loop."""

from contextlib import ExitStack
from typing import Any, Literal

import msgspec
import torch

from pipeline.dataset.build_file import NAME, NEGATIVES, POSITIVES, finished_builds, refuse_other_chips
from pipeline.engines.progress import log
from pipeline.pyramid.focus import focus_limits
from pipeline.storage import Location, is_file, location, locked, make_folder, read_bytes
from schemas.build import Build
from schemas.errors import UsageError, refuse_other_number
from schemas.settings import ModelSettings, Settings, TrainSettings, settings_or_defaults
from schemas.settings.section import differing
from schemas.wording import counted, shell
from trainer.evaluation.seen import note_seen
from trainer.loading.cache import cache_of
from trainer.loading.dataset import ChipDataset
from trainer.runtime.checkpoint import (
    BEST,
    DamagedError,
    Score,
    find_checkpoints,
    read_checkpoint,
    read_last,
    read_scores,
)
from trainer.runtime.memory import explained_memory
from trainer.runtime.ranks import Rank, breakable, from_first, joined, stoppable
from trainer.training.loop import run_loop
from trainer.training.outline import mismatches, outline
from trainer.training.report import anchor_report, focus_report
from trainer.training.resuming import changed_settings, check_resumable, resumed_settings
from trainer.training.run import NORM_CHIPS, Run, make_run, norm_by_chips, passes_of_step, tell, warn
from trainer.training.validate import open_validation

NETWORK = "network.json"
"""Settings of the network whose RPN proposed, in data/proposals."""


def train(
    data: Location | str,
    out: Location | str,
    settings: Settings | None = None,
    *,
    resume: bool | Literal["auto"] = False,
    rpn_only: bool = False,
    validation: tuple[Location | str, Location | str] | None = None,
    allow_seen: bool = False,
) -> Location:
    """Train a detector on a chip data set. Under torchrun, this process is one of several that train together.

    Args:
        data: folder that `sniper chips` wrote; a pool of negatives in it is used, too.
        out: folder of the run: checkpoints, log, pictures. It must hold no other run unless `resume`.
        settings: the sections `model`, `loader`, `train` and, for validation, `detect` are used. What is given of
            `chips` must be as the chips were made. A resumed run takes what is not given from its checkpoint.
        resume: go on from the last checkpoint in `out`, at the very next batch; "auto": begin where there is none.
        rpn_only: train nothing behind the RPN, on positive chips alone.
        validation: (annotation file, image folder) to score on; the best checkpoint stays as RUN/best.pt.
        allow_seen: score on images that are trained on, too.

    Returns:
        The last checkpoint.

    Raises:
        DataError: the data set, the weights or the validation data cannot be read, a loss is not finite, or a
            checkpoint cannot be written.
        UsageError: the settings do not go together, the run in `out` cannot be resumed with them, or another process
            is at work in `out`.
        StoppedError: a signal asked for an end; a checkpoint of the last whole step has been written.
    """
    data, out, current = location(data), location(out), settings_or_defaults(settings)
    if validation is not None:
        refuse_other_number("validation", validation, ("annotation file", "image folder"))
    judged = None if validation is None else (location(validation[0]), location(validation[1]))
    advice = f"Go on with: {shell('sniper', 'train', '--data', data, '--out', out, '--resume')}"
    with (
        joined() as rank,
        stoppable(advice),
        ExitStack() as held,
        explained_memory(rank.device, lambda: _memory_remedy(out, current.train, rank.count, rpn_only=rpn_only)),
    ):
        with breakable():
            from_first(lambda: finished_builds(data, pool=not rpn_only))  # before a folder is made for the run
            from_first(lambda: _take(out, resume, held))
            run = _prepare(data, out, current, rank, rpn_only=rpn_only)
            held.enter_context(run.writer)  # however the run ends, what is being written is written first
            truth = None if judged is None else open_validation(run, *judged, allow_seen=allow_seen)
            if truth is None and run.scores:
                warn(rank, "the run was validated before; give --val-annotations and --val-images to go on with that")
            current = run.settings
        return run_loop(run, truth)


def _take(out: Location, resume: bool | Literal["auto"], held: ExitStack) -> None:
    """Hold the folder of the run against other trainings, on the first rank alone."""
    if resume is True and not find_checkpoints(out):
        raise UsageError(
            f"{out}: holds no checkpoint, so there is nothing to resume; look whether the folder is the right one, or "
            "begin a run without --resume (--resume=auto does whichever fits)"
        )
    is_part = out.name in (POSITIVES, NEGATIVES) and is_file(out.parent / NAME)
    if is_file(out / NAME) or is_part:
        raise UsageError(f"{out}: is {'part of ' if is_part else ''}a chip data set; choose another --out")
    held.enter_context(locked(out, "sniper train"))
    checkpoints = find_checkpoints(out)
    if checkpoints and not resume:
        raise UsageError(f"{out}: holds a run already ({checkpoints[-1].name}); --resume it, or choose another --out")
    if not checkpoints and is_file(out / BEST):
        raise UsageError(
            f"{out}: holds {BEST} of a run whose other checkpoints are gone, which would pass for the new run's; move "
            "it away, or choose another --out"
        )


def _prepare(data: Location, out: Location, settings: Settings, rank: Rank, *, rpn_only: bool) -> Run:
    """Make the run, or open the one that is there, and say what is worth knowing before its first step."""
    last, scores = from_first(lambda: (read_last(out), _scores(out)))  # the others need not see the folder
    if last is not None:
        settings = resumed_settings(last, settings)
    torch.manual_seed(settings.train.seed)
    make_folder(out)
    builds = finished_builds(data, pool=not rpn_only)
    refuse_other_chips(data, builds[POSITIVES].settings["chips"], settings.chips)
    dataset = ChipDataset(data, pool=not rpn_only, cache=cache_of(settings.loader))
    run = make_run(dataset, out, settings, rank, last=last, rpn_only=rpn_only)
    if last is None:
        remarks = [anchor_report(dataset, run.chip_settings, settings.model)]
        if settings.model.focus and not rpn_only:
            limits = focus_limits(run.chip_settings.bounds(), settings.model.focus_limits)
            remarks.append(focus_report(dataset, run.chip_settings, limits))
        for remark in filter(None, remarks):
            tell(rank, remark)
    else:
        check_resumable(last, out, run.settings_tree(), run.data, run.categories)
        run.restore(last)
        run.scores = [score for score in scores if score.step <= run.step]
        run.changed = changed_settings(last, run.settings_tree())
        changes = [f"  {change}" for change in run.changed]
        heading = ["settings that have changed:"] if changes else []
        tell(rank, "\n".join([f"resumed: epoch {run.state.epoch}, step {run.step}", *heading, *changes]))
        if run.state.epoch >= run.settings.train.epochs:
            more = "--set negatives.rpn_epochs=N" if rpn_only else "--epochs N"
            done = counted(run.state.epoch, "epoch")
            tell(rank, f"{done} done: nothing is left to train; {more} with more goes on")
    tell(rank, outline(run))
    for warning in [*mismatches(run), *_other_network(data, builds, settings)]:
        warn(rank, warning)
    from_first(lambda: note_seen(out, data, anew=last is None))
    return run


def _memory_remedy(out: Location, options: TrainSettings, ranks: int, *, rpn_only: bool) -> str:
    """Tell what to lower when there is no memory for the network or for a step, and what else that changes."""
    chips, is_begun = passes_of_step(options, ranks).most, bool(find_checkpoints(out))
    remedy = "take a smaller network, such as model.backbone=resnet50"
    if chips > 1:
        fewer = options.model_copy(update={"chips_per_rank": chips // 2})
        remedy = (
            f"try --set train.chips_per_rank={chips // 2}{' with --resume' if is_begun and not rpn_only else ''}. "
            "Steps take longer"
        )
        if options.norm is None and not is_begun and norm_by_chips(options, ranks) != norm_by_chips(fewer, ranks):
            remedy += (
                f", and batch norm is frozen in passes of fewer than {NORM_CHIPS} chips, unless you add --set "
                "train.norm=train"
            )
        elif options.norm != "frozen":
            remedy += "; batch norm, where it learns, has the statistics of fewer chips"
    what = f"a forward pass has up to {counted(chips, 'chip')} (train.chips_per_rank = {options.chips_per_rank})"
    return f"{what}: {remedy}"


def _scores(out: Location) -> list[Score]:
    """Read the validations of a run; none where its best checkpoint is damaged, so that the next one is kept."""
    if not is_file(out / BEST):
        return read_scores(out)
    try:
        best = read_checkpoint(out / BEST)
    except DamagedError as error:
        log.warning(f"WARNING: {error}. The next validation writes a new one")
        return []
    return read_scores(out) or [Score(best.step, best.loader[1], best.best_ap)]


def _other_network(data: Location, builds: dict[str, Build], settings: Settings) -> list[str]:
    """Say where the network that found the negatives differs from the one to be trained."""
    if NEGATIVES not in builds or builds[NEGATIVES].proposals != str(data / "proposals"):
        return []
    try:
        recorded = msgspec.json.decode(read_bytes(data / "proposals" / NETWORK), type=dict[str, Any])
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return []  # made before it was noted, or damaged: a warning is not worth a run
    now = settings.model.model_dump(mode="json", exclude={"focus", "focus_limits"})  # no part of an RPN
    changed = differing(recorded, now, ModelSettings().model_dump(mode="json"))
    if not changed:
        return []
    named = ", ".join(f"model.{name} {there} there and {here} here" for name, there, here in changed)
    return [
        f"the negatives were found by the RPN of another network ({named}): they show what fooled that one; "
        "`sniper negatives --overwrite` with this --config finds them anew"
    ]
