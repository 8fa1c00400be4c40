"""`sniper suggest`: settings for a data set, with the reason for each, and what they cost beside the paper's."""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from pipeline.coco.read import read_coco
from pipeline.coco.source import Source
from pipeline.engines.progress import log, showing
from pipeline.insight.suggestion.cost import Cost, plan_cost, sample
from pipeline.insight.suggestion.scales import STEPS, Name, comfort, propose
from pipeline.insight.suggestion.training import Choice, Device, choose_training
from pipeline.planning.scales import scale_name
from pipeline.storage import Location, location
from schemas.errors import DataError, refuse_unknown
from schemas.settings import ChipSettings, Settings, settings_or_defaults
from schemas.settings.listing import comment
from schemas.settings.section import as_yaml
from schemas.wording import interval

CPU_SIZE = 256
"""Side of the chips for a CPU, unless one was given: a quarter of the pixels, with objects half as large."""
GIVEN, PAPER = "as given", "paper"


class Suggestion(NamedTuple):
    """Settings for a data set.

    Attributes:
        settings: all of them, as `text` sets them.
        text: a YAML file for --config, in which each setting has a comment that says why.
        chosen: the name of the proposal that it holds.
        proposals: the settings of chips by name, the paper's last.
        costs: what each of them does to the data set.
    """

    settings: Settings
    text: str
    chosen: str
    proposals: dict[str, ChipSettings]
    costs: dict[str, Cost]


def suggest(
    annotations: Location | str | Sequence[Location | str],
    settings: Settings | None = None,
    *,
    proposal: Name = "balanced",
    device: Device = "gpu",
    max_nowhere: float = 0.01,
) -> Suggestion:
    """Suggest settings for a data set; settings that are given stay as they are (docs/method.md, 15).

    Args:
        annotations: COCO JSON file, or several that become one data set.
        settings: those that were given are kept, and scales with ranges are judged beside the proposals.
        proposal: which one is written, if no scales and ranges are given.
        device: what will train; for `cpu` chips, network and schedule are small.
        max_nowhere: largest share of boxes that may be valid in no chip.

    Raises:
        DataError: the annotation file cannot be trusted, has no boxes, or more boxes than `max_nowhere` allows would
            be valid in no chip.
        UsageError: there is no such proposal or device, or no category has one of the names in
            chips.ignore_categories.
    """
    settings = settings_or_defaults(settings)
    refuse_unknown("proposal", proposal, get_args(Name))
    refuse_unknown("device", device, get_args(Device))
    given = settings.chips
    files = [location(annotations)] if isinstance(annotations, Location | str) else [*map(location, annotations)]
    with showing(f"reading {', '.join(map(str, files))}"):
        apart = [str(number) for number in range(len(files))]  # no image is opened, so equal names do not matter
        source = read_coco(files, given.max_pixels, given.ignore_categories, folders=apart)
    for warning in source.warnings:  # of boxes that are read wrongly the sizes are wrong, too
        log.warning(warning)
    if source.crowd.all():
        raise DataError(f"{files[0]}: no box is an object, so there is nothing to suggest; `sniper check` says why")
    proposals = _proposals(source, given, device)
    spans = sample(source)
    with showing("planning each proposal"):
        costs = {name: plan_cost(spans, chips) for name, chips in proposals.items()}
    chosen = GIVEN if GIVEN in proposals else proposal
    share = costs[chosen].nowhere / max(costs[chosen].boxes, 1)
    if share > max_nowhere:
        raise DataError(
            f"{files[0]}: with the settings `{chosen}` {share:.1%} of {costs[chosen].boxes:,} boxes would be valid in "
            f"no chip, more than --max-nowhere {max_nowhere:g} allows; `sniper chips --plan-only` tells how many are "
            "too small or too long at each scale. Give other chips.scales and chips.ranges, a lower chips.min_side, "
            "or a higher --max-nowhere"
        )
    chips = proposals[chosen]
    reasons = [*_explain(chips), *choose_training(costs[chosen], source.num_images, device)]
    choices = _with_given(reasons, settings)
    tree: dict[str, dict[str, Any]] = {}
    for choice in choices:
        tree.setdefault(choice.section, {})[choice.name] = choice.value
    head = f"Written by `sniper suggest` for {files[0]}: proposal `{chosen}`, to be trained on a {device.upper()}."
    return Suggestion(Settings.model_validate(tree), _as_yaml_file(choices, head), chosen, proposals, costs)


def _proposals(source: Source, given: ChipSettings, device: Device) -> dict[str, ChipSettings]:
    """Return the settings of chips that are compared, by name."""
    size = CPU_SIZE if device == "cpu" and "size" not in given.model_fields_set else given.size
    base = given.model_copy(update={"size": size})
    proposals: dict[str, ChipSettings] = {name: propose(source, base, name) for name in STEPS}
    if given.model_fields_set & {"scales", "ranges"}:
        proposals[GIVEN] = base
    defaults = ChipSettings()
    paper = {name: getattr(defaults, name) for name in ("size", "scales", "ranges")}
    return {**proposals, PAPER: given.model_copy(update=paper)}


def _explain(chips: ChipSettings) -> list[Choice]:
    """Give the reasons for the settings of chips (docs/method.md, 15.1 and 15.2)."""
    low, high = comfort(chips.size)
    size = "the paper's" if chips.size == ChipSettings().size else "small, as a CPU needs"
    scales = f"small objects get {low:g} chip px where an enlargement can give them that, large ones fit a chip"
    ranges = f"an object becomes at most {high:g} chip px; ranges overlap, so that none falls between two scales"
    dumped = chips.model_dump(mode="json")
    whys = {"size": size, "scales": scales, "ranges": ranges}
    return [Choice("chips", name, dumped[name], why) for name, why in whys.items()]


def _with_given(choices: list[Choice], settings: Settings) -> list[Choice]:
    """Return choices in the order of the settings, with those that were given in their place or added."""
    by_name = {(choice.section, choice.name): choice for choice in choices}
    ordered = []
    for section in Settings.model_fields:
        values = getattr(settings, section)
        dumped = values.model_dump(mode="json")
        for name in type(values).model_fields:
            if name in values.model_fields_set:
                ordered.append(Choice(section, name, dumped[name], "as given"))
            elif (section, name) in by_name:
                ordered.append(by_name[section, name])
    return ordered


def _as_yaml_file(choices: list[Choice], head: str) -> str:
    """Write settings as a YAML file for --config, each below a comment that says why."""
    lines = [*comment(head, ""), *comment("`sniper settings` lists all settings and what they mean.", "")]
    section = ""
    for choice in choices:
        if choice.section != section:
            section = choice.section
            lines += ["", f"{section}:"]
        lines += [*comment(choice.why, "  "), f"  {choice.name}: {as_yaml(choice.value)}"]
    return "\n".join([*lines, ""])


def describe(suggestion: Suggestion) -> str:
    """Put the proposals and what they cost into a table."""
    columns = f"{'comfortable':>12}{'nowhere':>9}{'chips':>8}{'megapixels':>12}{'of 800x1333':>13}"
    lines = [f"{'':<10}{columns}  scales and ranges"]
    for name, chips in suggestion.proposals.items():
        cost = suggestion.costs[name]
        scales = ", ".join(
            f"{scale_name(scale)} {interval(*bounds)}"
            for scale, bounds in zip(chips.scales, chips.ranges, strict=True)
        )
        lines.append(
            f"{name:<10}{cost.comfortable / cost.boxes:>12.1%}{cost.nowhere / cost.boxes:>9.2%}"
            f"{cost.chips / cost.images:>8.2f}{cost.pixels / cost.images / 1e6:>12.2f}"
            f"{cost.pixels / cost.single_scale_pixels:>13.0%}  {scales}"
        )
    sizes = sorted({chips.size for chips in suggestion.proposals.values()})
    ease = " and ".join("{:g} to {:g} px in a chip of {} px".format(*comfort(size), size) for size in sizes)
    cost = suggestion.costs[suggestion.chosen]
    alike = [name for name, chips in suggestion.proposals.items() if chips == suggestion.proposals[suggestion.chosen]]
    same = (
        f" {', '.join(f'`{name}`' for name in alike)} are the same here: these objects have too few sizes for more "
        "scales."
        if len(alike) > 1
        else ""
    )
    return "\n".join(
        [
            *lines,
            "",
            f"comfortable: share of the objects that some chip shows whole at {ease}; nowhere: valid in no chip;",
            "chips and megapixels: of positive chips, per image; of 800x1333: against one pass over the whole images.",
            f"Planned on {cost.images:,} images with {cost.boxes:,} objects. "
            f"The proposal is `{suggestion.chosen}`.{same}",
        ]
    )
