"""`sniper report` of a training run: one HTML page, and the same numbers as JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.coco.read import read_coco
from pipeline.coco.source import Source
from pipeline.images.sources import image_folder
from pipeline.pages.blocks import Block, Chart, Figures, Picture, Remarks, Row, Section, Table, Text
from pipeline.pages.charts import histogram, lines, listing, matrix
from pipeline.pages.page import page_place, write_facts, write_page
from pipeline.storage import Location, location
from schemas.errors import refuse_other_number
from schemas.settings import ChipSettings
from schemas.wording import interval
from trainer.evaluation.errors import Kind
from trainer.evaluation.ground_truth import read_objects
from trainer.evaluation.results import read_results
from trainer.evaluation.score_results import foreign
from trainer.insight.crops import choose_false, choose_missed, draw_crops
from trainer.insight.findings import ADVICE, Judged, as_facts, find_errors
from trainer.insight.history import read_history
from trainer.runtime.checkpoint import read_checkpoint

NOTHING = "(nothing)"  # beside the names of classes
DRAWN_CLASSES = 10  # in one chart
WAITING = 0.1  # share of the time that training waits for data
FOUND_COLORS = {"found": "#35a04f", "not found": "#d9483b"}

Facts = dict[str, Any]


def report_run(
    run: Location | str,
    out: Location | str = "report.html",
    *,
    scored: tuple[Location | str, Location | str, Location | str] | None = None,
) -> Facts:
    """Write what a training run learnt as an HTML page, and the numbers as JSON beside it.

    Of detections, it also shows what is wrong with them: kinds of errors, misses by size, and pictures.

    Args:
        run: folder that `sniper train` wrote.
        out: the page, a name that ends in .html.
        scored: (detections, annotation file, image folder): the detections as COCO results, such as `sniper evaluate
            --out` writes; the COCO JSON file that they are scored against; and the folder that its file names are
            relative to.

    Returns:
        The content of the JSON file, as docs/report.md explains it.

    Raises:
        UsageError: `out` does not end in .html, there is no such image folder, or the packages of the extra `report`
            are not installed.
        DataError: the log, the detections, the annotation file or the checkpoint cannot be read, or the detections are
            not of these images and classes.
    """
    if scored is not None:
        refuse_other_number("scored", scored, ("detections", "annotation file", "image folder"))
    run, out = location(run), page_place(location(out))
    facts: Facts = {"run": str(run), **read_history(run)}
    facts["remarks"] = list(_remarks(facts))
    of_detections: list[Section] = []
    if scored is not None:
        detections, annotations, images = map(location, scored)
        chips = ChipSettings.model_validate(read_checkpoint(run).chips)
        source = read_coco(annotations, chips.max_pixels, chips.ignore_categories, as_written=True, of_training=True)
        results = read_results(detections)
        objects, remarks = read_objects(source)
        facts["remarks"] += [*remarks, *foreign(results, source, detections, annotations)]
        results = results.take(np.isin(results.image_id, source.image_id))  # what lies on a refused image is no error
        found = find_errors(objects, results)
        facts["detections"] = as_facts(found, source.categories, chips.bounds())
        of_detections = [
            _errors(facts["detections"]),
            _at_scores(facts["detections"]),
            *_pictures(found, source, image_folder(images), chips),
        ]
    sections = [_overview(facts), _training(facts), *_scores(facts), *of_detections]
    write_page(out, f"Report: {run.name}", str(run), sections)
    write_facts(out, facts)
    return facts


def _remarks(facts: Facts) -> Iterator[str]:
    steps, validations = facts["steps"], facts["validations"]
    if not validations:
        yield "The run was never validated; give --val-annotations and --val-images to `sniper train`"
    waited = [row["data_wait"] for row in steps if "data_wait" in row]
    if waited and sum(waited) / len(waited) > WAITING:
        share = sum(waited) / len(waited)
        yield f"Training waited for data for {share:.0%} of its time; see loader.threads and loader.window"
    scores = [row["AP"] for row in validations if row.get("AP") is not None]
    if len(scores) > 2 and max(scores) > scores[-1] + 0.01:
        yield (
            f"The last AP ({scores[-1]:.3f}) is below the best one ({max(scores):.3f}), which best.pt keeps; fewer "
            "epochs, or an earlier decay of the rate, may be better"
        )


def _overview(facts: Facts) -> Section:
    steps, validations = facts["steps"], facts["validations"]
    figures = []
    if steps:
        last = steps[-1]
        rates = [row["chips_per_s"] for row in steps if "chips_per_s" in row]
        figures.append((f"{last['step']:,}", f"steps in {last['epoch'] + 1:,} epochs"))
        figures.append((f"{last['loss']:.3f}", "last loss"))
        figures += [(f"{sum(rates) / len(rates):,.1f}", "chips a second")] if rates else []
    scored = [row for row in validations if row.get("AP") is not None]
    if scored:
        best = max(scored, key=lambda row: row["AP"])
        figures += [
            (f"{best['AP']:.3f}", f"best AP, at step {best['step']:,}"),
            (f"{best.get('AP50') or 0:.3f}", "its AP50"),
        ]
        share = best.get("searched", 1)
        figures += [(f"{share:.0%}", "of the pyramid's pixels searched there")] if share < 1 else []
    return Section("Overview", [Figures(figures), Remarks(facts["remarks"], "Nothing odd was found.")])


def _training(facts: Facts) -> Section:
    steps = facts["steps"]
    terms = [
        name for name in (steps[-1] if steps else {}) if name == "loss" or name.startswith(("rpn_", "roi_", "focus"))
    ]
    charts = [
        Chart("Losses", lines(_long(steps, terms), "step", "value", "what")),
        Chart("Learning rate", lines(_long(steps, ["lr"]), "step", "value", "what")),
        Chart("Chips a second", lines(_long(steps, ["chips_per_s"]), "step", "value", "what")),
        Chart("Share of the time that waits for data", lines(_long(steps, ["data_wait"]), "step", "value", "what")),
    ]
    return Section("Training", [Row(charts)])


def _long(rows: Sequence[Facts], names: Sequence[str]) -> list[Facts]:
    """Turn columns into rows of step, epoch, what and value."""
    return [
        {"step": row["step"], "epoch": row["epoch"], "what": name, "value": row[name]}
        for name in names
        for row in rows
        if row.get(name) is not None
    ]


def _scores(facts: Facts) -> Iterator[Section]:
    validations, classes = facts["validations"], facts["classes"]
    if not validations:
        return
    names = [name for name in validations[-1] if name.startswith("AP") and "range" not in name]
    ranges = [name for name in validations[-1] if name.startswith("AP_range")]
    charts = [
        Chart("AP of each validation", lines(_long(validations, names), "epoch", "value", "what", top=1.0)),
        Chart("AP of each valid range", lines(_long(validations, ranges), "epoch", "value", "what", top=1.0)),
    ]
    last = sorted(classes.items(), key=lambda item: -(item[1][-1].get("AP") or 0))
    drawn = [
        {"epoch": row["epoch"], "step": row["step"], "what": name, "value": row["AP"]}
        for name, rows in last[:DRAWN_CLASSES]
        for row in rows
        if row.get("AP") is not None
    ]
    if any(row.get("searched", 1) < 1 for row in validations):
        searched = lines(_long(validations, ["searched"]), "epoch", "value", "what", top=1.0)
        charts.append(Chart("Share of the pyramid's pixels that was searched", searched))
    charts.append(Chart("AP of each class", lines(drawn, "epoch", "value", "what", top=1.0)))
    table = [[name, rows[-1].get("AP"), rows[-1].get("AP50")] for name, rows in last]
    more = f" The chart has the best {DRAWN_CLASSES} of {len(last):,}." if len(last) > DRAWN_CLASSES else ""
    yield Section(
        "Validation",
        [Row(charts), Text(f"Each class after the last epoch.{more}"), Table(["class", "AP", "AP50"], table)],
    )


def _errors(facts: Facts) -> Section:
    ap50 = "not defined" if facts["AP50"] is None else f"{facts['AP50']:.3f}"
    text = (
        f"{facts['found']:,} of {facts['objects']:,} objects were found at IoU 0.5, with {facts['false']:,} false "
        f"detections; AP50 is {ap50}. The gain says by how much it would rise without errors of a "
        "kind, so the largest gain is the error to work on."
    )
    rows = [
        [error["kind"], error["count"], _rounded(error["AP50_gain"]), ADVICE[Kind[error["kind"].upper()]]]
        for error in facts["errors"]
    ]
    points = [
        {"recall": point["recall"], "precision": point["precision"], "class": curve["class"], "score": point["score"]}
        for curve in sorted(facts["precision_recall"], key=lambda curve: -curve["AP50"])[:DRAWN_CLASSES]
        for point in curve["points"]
    ]
    sizes = histogram(
        facts["sizes"], "objects", title="size in the image, px", log=True, color=FOUND_COLORS, by="what"
    )
    costs = [{"error": e["kind"], "gain in AP50": e["AP50_gain"], "number": e["count"]} for e in facts["errors"]]
    charts = [
        Chart("AP50 that each kind of error costs", listing(costs, "error", "gain in AP50")),
        Chart("Precision over recall at IoU 0.5", lines(points, "recall", "precision", "class", top=1.0)),
        Chart("Objects by size", sizes),
    ]
    ranges = [_range_row(row) for row in facts["ranges"]]
    columns = ["valid range, px", "objects", "found", "share found", "false detections of background"]
    blocks: list[Block] = [Text(text), Table(["error", "number", "gain in AP50", "what it tells"], rows)]
    return Section("What goes wrong", [*blocks, Row(charts), Table(columns, ranges)])


def _range_row(row: Facts) -> list[Any]:
    """Return what a table says of one valid range: its bounds, objects, those found, their share, and false ones."""
    share = row["found"] / row["objects"] if row["objects"] else None
    return [interval(*row["range"]), row["objects"], row["found"], share, row["background"]]


def _at_scores(facts: Facts) -> Section:
    """Show from which score on to take detections, and which class is then taken for which."""
    best = facts["best"]
    if best["score"] is None:
        return Section("Which score to ask for", [Text("Nothing was found, or there was nothing to find.")])
    text = (
        f"Over all classes together F1 is best from the score {best['score']:.3f} on: {best['precision']:.1%} of the "
        f"detections are then right, and they are {best['recall']:.1%} of the objects. Each class has a best score of "
        "its own; `sniper detect --min-score` takes one for all."
    )
    names = ("F1", "score", "precision", "recall")
    rows = [[row["class"], *(row[name] for name in names)] for row in facts["classes"]]
    blocks: list[Block] = [Text(text), Table(["class", "best F1", "from score", "precision", "recall"], rows)]
    classes = [row["class"] for row in facts["classes"]]
    if len(classes) <= DRAWN_CLASSES:
        cells = [
            {key: NOTHING if value is None else value for key, value in cell.items()} for cell in facts["confusion"]
        ]
        spec = matrix(cells, "detection", "object", "number", [*classes, NOTHING])
        title = f"What objects (rows) are taken for (columns), from the score {best['score']:.3f} on"
        blocks.append(Row([Chart(title, spec)]))
    return Section("Which score to ask for", blocks)


def _rounded(gain: float | None) -> float | None:
    """Return a gain in AP50 in thousandths, since what is less says nothing."""
    return None if gain is None else round(gain, 3)


def _pictures(found: Judged, source: Source, images: Location, chips: ChipSettings) -> Iterator[Section]:
    """Show the surest false detections of each kind, and the largest misses of each valid range."""
    groups = {
        f"{kind.name.capitalize()}: {ADVICE[kind]}": choose_false(found, kind) for kind in Kind if kind != Kind.MISSED
    }
    missed = {f"Valid range {interval(*bounds)}, px": choose_missed(found, *bounds) for bounds in chips.bounds()}
    names = dict(source.categories)
    crops = [crop for group in (*groups.values(), *missed.values()) for crop in group]
    pictures = draw_crops(crops, found, source, names, images, chips.max_pixels)
    legend = "The detection that a picture is about is orange, with its score; objects are green."
    missed_legend = "The object that no detection found is red, other objects are green."
    for title, text, some in (
        ("The surest false detections", legend, groups),
        ("The largest missed objects", missed_legend, missed),
    ):
        blocks: list[Block] = [Text(text)]
        for heading, group in some.items():
            shown: list[Picture] = [pictures[crop] for crop in group if crop in pictures]
            blocks += [Text(heading), Row(shown)] if shown else []
        if len(blocks) > 1:
            yield Section(title, blocks)
