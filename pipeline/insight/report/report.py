"""`sniper report` of a data set: one HTML page, and the same numbers as JSON."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from pipeline.dataset.build_file import NEGATIVES, POSITIVES
from pipeline.dataset.shards import shard_files
from pipeline.images.drawing import STATUS_COLORS
from pipeline.insight.chip_pictures import caption, draw_chip, read_chip, sample_chips
from pipeline.insight.manifests import scan
from pipeline.insight.report.facts import collect_facts
from pipeline.insight.report.remarks import remarks
from pipeline.insight.suggestion.scales import comfort
from pipeline.pages.blocks import Chart, Figures, Picture, Remarks, Row, Section, Table, Text
from pipeline.pages.charts import bars, heatmap, histogram, listing
from pipeline.pages.page import page_place, write_facts, write_page
from pipeline.storage import Location, location
from schemas.wording import interval

SAMPLED_SHARDS = 8  # that the pictures of a kind come from, spread over the data set
PICTURES, TILE = 4, 262  # chips per kind and scale; pixels
LISTED = 100  # classes in the page; the JSON file has all
DRAWN = 30  # classes in the chart

Facts = dict[str, Any]


def report(data: Location | str, out: Location | str = "report.html") -> Facts:
    """Write what a data set holds as an HTML page, and the numbers as JSON beside it.

    Only the ledger, the manifests and the few chips that are shown are read.

    Args:
        data: folder that `sniper chips` wrote.
        out: the page, a name that ends in .html.

    Returns:
        The content of the JSON file, as docs/report.md explains it.

    Raises:
        UsageError: `out` does not end in .html, or the packages of the extra `report` are not installed.
        DataError: there are no finished chips, or a file of theirs is missing or damaged.
    """
    data, out = location(data), page_place(location(out))
    facts = collect_facts(data)
    facts["remarks"] = remarks(facts)
    sections = [
        _overview(facts),
        _sums(facts),
        _scales(facts),
        _cost(facts),
        _classes(facts),
        _negatives(facts),
        _rejects(facts),
        *_samples(data, facts),
    ]
    write_page(out, f"Report: {data.name}", f"{data} · fingerprint {facts['fingerprint'][:12]}", sections)
    write_facts(out, facts)
    return facts


def _overview(facts: Facts) -> Section:
    images, boxes, pixels = facts["images"], facts["boxes"], facts["pixels"]
    chips = sum(scale["positives"]["chips"] for scale in facts["scales"])
    size = sum(scale[kind]["bytes"] for scale in facts["scales"] for kind in ("positives", "negatives"))
    figures = [
        (f"{images['kept']:,}", f"images of {images['total']:,}"),
        (f"{boxes['covered'] + boxes['rescued']:,}", f"objects of {boxes['total']:,} boxes are whole in some chip"),
        (f"{chips:,}", f"positive chips, {chips / max(images['kept'], 1):.2f} per image"),
        (f"{facts['negatives']['chips'] if facts['negatives'] else 0:,}", "negative chips"),
        (f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB", "of JPEG in all chips"),
    ]
    if single := pixels["single_scale_800x1333"]:
        figures.append((f"{pixels['positives'] / single:.0%}", "of the pixels of single-scale training"))
    return Section("Overview", [Figures(figures), Remarks(facts["remarks"], "Nothing odd was found.")])


def _sums(facts: Facts) -> Section:
    images, boxes = facts["images"], facts["boxes"]
    rows: list[tuple[str, str, str, int, float]] = []
    for what, parts in (
        ("images", {("kept", ""): images["kept"], **{("refused", r): n for r, n in images["refused"].items()}}),
        (
            "boxes",
            {
                **{(fate, ""): boxes[fate] for fate in ("covered", "rescued")},
                **{(fate, why): n for fate in ("uncovered", "refused") for why, n in boxes[fate].items()},
                **{(fate, ""): boxes[fate] for fate in ("crowd", "image_refused")},
            },
        ),
    ):
        total = facts[what]["total"]
        rows += [(what, fate, why, n, n / max(total, 1)) for (fate, why), n in parts.items()]
        rows.append((what, "all", "", total, 1.0))
    agreed = "The parts add up to the annotation file, and ledger, manifests and run.json agree."
    without = (
        f"Of the images that were kept, {images['without_boxes']:,} have no boxes and {images['without_chips']:,} "
        "give no positive chip."
    )
    return Section(
        "Images and boxes: in = out",
        [
            Remarks(facts["mismatches"], agreed),
            Table(["of", "became", "reason", "number", "share"], rows),
            Text(without),
        ],
    )


def _scales(facts: Facts) -> Section:
    rows = []
    for index, scale in enumerate(facts["scales"]):
        made, boxes = scale["positives"], scale["positives"]["boxes"]
        targets = boxes["valid"] + boxes["rescued"]
        per_chip = targets / made["chips"] if made["chips"] else None
        kilobytes = made["bytes"] / made["chips"] / 1000 if made["chips"] else None
        rows.append(
            [index, scale["scale"], interval(*scale["range"]), made["chips"], *boxes.values(), per_chip, kilobytes]
        )
    statuses = list(facts["scales"][0]["positives"]["boxes"])
    columns = ["index", "scale", "range, px", "positives", *statuses, "targets per chip", "kB per chip"]
    low, high = comfort(facts["settings"]["size"])
    text = (
        "Boxes of positive chips by what they are there. A target (valid, rescued) is learnt at this scale; the range "
        f"says which sizes are. Objects of {low:g} to {high:g} px in a chip are seen at a comfortable size. Dashed "
        "lines are the ends of the range in the charts on the left, and of the comfortable sizes in those on the "
        "right. Point at a bar or a line for its numbers."
    )
    sizes = [Row(list(_size_charts(index, scale, low, high))) for index, scale in enumerate(facts["scales"])]
    return Section("Scales", [Text(text), Table(columns, rows), *sizes, *_occupancy(facts)])


def _size_charts(index: int, scale: Facts, low: float, high: float) -> Iterator[Chart]:
    bounds = [(end, f"end of the range {interval(*scale['range'])}") for end in scale["range"] if end]
    comfortable = [(low, "comfortable from"), (high, "comfortable up to")]
    before, after = "size in the image, px", "size in the chip, px"
    for title, rows, marks in ((before, scale["sizes"], bounds), (after, scale["chip_sizes"], comfortable)):
        if rows:
            spec = histogram(rows, "boxes", title=title, log=True, color=STATUS_COLORS, by="status", marks=marks)
            yield Chart(f"Scale {index}, factor {scale['scale']}: {title}", spec)


def _occupancy(facts: Facts) -> Iterator[Row]:
    """Show how full the windows are: the share of their pixels that targets fill, and the number of targets."""
    scales = [(index, scale) for index, scale in enumerate(facts["scales"]) if scale["filled"]]
    title = "share of the chip that its targets fill"
    specs = [(index, histogram(scale["filled"], "chips", title=title, end=1.0)) for index, scale in scales]
    yield Row([Chart(f"Scale {index}: {title}", spec) for index, spec in specs])
    specs = [(index, bars(_each_number(scale["targets_per_chip"]), "targets", "chips")) for index, scale in scales]
    yield Row([Chart(f"Scale {index}: targets per chip", spec) for index, spec in specs])


def _each_number(rows: list[Facts]) -> list[Facts]:
    """Add the numbers of targets that no chip has, up to the largest, so that the axis of the chart has no jumps."""
    chips = {row["targets"]: row["chips"] for row in rows}
    return [{"targets": number, "chips": chips.get(number, 0)} for number in range(max(chips) + 1)]


def _cost(facts: Facts) -> Section:
    pixels = facts["pixels"]
    named = {
        "positives": "positive chips",
        "negatives": "negative pool",
        "single_scale_800x1333": "images at 800x1333",
        "full_pyramid": "images at all scales",
    }
    rows = [{"what": text, "megapixels": pixels[name] / 1e6} for name, text in named.items() if pixels[name]]
    sizes = [
        [index, kind, scale[kind]["chips"], scale[kind]["pixels"] / 1e6, scale[kind]["bytes"] / 1e6]
        for index, scale in enumerate(facts["scales"])
        for kind in ("positives", "negatives")
        if scale[kind]["chips"]
    ]
    text = "Pixels of one pass over the data; an epoch draws only some of the negative pool."
    return Section(
        "Pixels and bytes",
        [
            Text(text),
            Row([Chart("Pixels against training on whole images", listing(rows, "what", "megapixels"))]),
            Table(["scale", "chips", "number", "megapixels", "MB"], sizes),
        ],
    )


def _classes(facts: Facts) -> Section:
    classes = facts["classes"]
    low, high = comfort(facts["settings"]["size"])
    total, all_targets = (max(sum(row[name] for row in classes), 1) for name in ("boxes", "targets"))
    rows = [
        [
            row["name"],
            row["boxes"],
            row["boxes"] / total,
            row["targets"],
            row["targets"] / all_targets,
            row["chips"],
            row["comfortable"] / row["boxes"] if row["boxes"] else None,
            row["boxes"] - row["whole"],
            row["crowd"],
        ]
        for row in classes[:LISTED]
    ]
    columns = ["class", "objects", "share of objects", "targets", "share of targets", "chips", "share comfortable"]
    text = (
        "An object is a target in every chip that holds it whole at a scale that is meant for its size, so chips "
        f"shift the balance of classes. Objects are comfortable if such a chip shows them at {low:g} to {high:g} px."
    )
    more = f" The {LISTED} most frequent of {len(classes):,} classes are listed." if len(classes) > LISTED else ""
    drawn = [
        {
            "class": row["name"],
            "objects": row["boxes"],
            "targets": row["targets"],
            "chips": row["chips"],
            "comfortable": f"{row['comfortable'] / row['boxes']:.1%}" if row["boxes"] else "",
        }
        for row in classes[:DRAWN]
    ]
    return Section(
        "Classes",
        [
            Text(text + more),
            Table([*columns, "whole in no chip", "crowd"], rows),
            Row([Chart("Objects by class", listing(drawn, "class", "objects"))]),
        ],
    )


def _negatives(facts: Facts) -> Section:
    negatives = facts["negatives"]
    if negatives is None:
        return Section("Negatives", [Text("There are none yet.")])
    if negatives["random_per_image"]:
        text = f"Drawn at random, {negatives['random_per_image']} per image."
    else:
        text = "Background where a weak RPN proposed objects."
    text += " The darker a cell of an image, the more negatives have their centre there."
    charts = [Chart("Negatives per image", bars(negatives["images_by_number"], "negatives", "images"))]
    for index, scale in enumerate(facts["scales"]):
        if scale["negative_scores"]:
            spec = histogram(scale["negative_scores"], "chips", title="mean score of the proposals", end=1.0)
            charts.append(Chart(f"Scale {index}: scores", spec))
    for index in range(len(facts["scales"])):
        places = [
            {name: value for name, value in cell.items() if name != "scale_index"}
            for cell in negatives["places"]
            if cell["scale_index"] == index
        ]
        if places:
            spec = heatmap(places, "% from left", "% from top", "chips", range(0, 100, 10))
            charts.append(Chart(f"Scale {index}: where in the image they lie", spec))
    rows = [
        [index, scale["negatives"]["chips"], *scale["negatives"]["boxes"].values()]
        for index, scale in enumerate(facts["scales"])
    ]
    columns = ["scale", "negatives", *facts["scales"][0]["negatives"]["boxes"]]
    return Section("Negatives", [Text(text), Table(columns, rows), Row(charts)])


def _rejects(facts: Facts) -> Section:
    rows = [
        [group["kind"], group["reason"], group["count"], "\n".join(group["examples"])] for group in facts["rejects"]
    ]
    if not rows:
        return Section("Refused", [Remarks([], "Nothing was refused.")])
    return Section("Refused", [Table(["kind", "reason", "number", "examples"], rows)])


def _samples(data: Location, facts: Facts) -> Iterator[Section]:
    """Show some chips of each kind and scale, with their boxes."""
    names = {row["id"]: row["name"] for row in facts["classes"]}
    for folder, title in ((POSITIVES, "Positive chips"), (NEGATIVES, "Negative chips")):
        files = shard_files(data / folder, ".parquet") if folder == POSITIVES or facts["negatives"] else []
        blocks: list[Text | Row] = [
            Text("Boxes have the colours of the charts of sizes; those that are learnt are named.")
        ]
        for index, scale in enumerate(facts["scales"]) if files else ():
            step = max(1, len(files) // SAMPLED_SHARDS)
            some = scan(files[::step][:SAMPLED_SHARDS]).filter(pl.col("scale_index") == index)
            pictures = [
                Picture(draw_chip(read_chip(data, chip), chip, names, TILE), caption(chip))
                for chip in sample_chips(some, PICTURES, seed=0)
            ]
            if pictures:
                heading = f"Scale {index}, range {interval(*scale['range'])}: some of {scale[folder]['chips']:,} chips"
                blocks += [Text(heading), Row(pictures)]
        if len(blocks) > 1:
            yield Section(title, blocks)
