"""Vega-Lite specifications of the few kinds of charts that the pages show. Each answers on hover."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Spec = dict[str, Any]

BLUE = "#2f6fde"
COUNTS = {"format": "~s", "labelExpr": "datum.value % 1 ? '' : datum.label"}
"""An axis of whole numbers; `tickMinStep` lets halves through."""


def bars(rows: Sequence[Row], x: str, y: str) -> Spec:
    """Draw upright bars, one for each value of the field `x`, in the order of the rows."""
    return {
        "data": {"values": rows},
        "mark": {"type": "bar", "color": BLUE},
        "encoding": {
            "x": {"field": x, "type": "nominal", "sort": None, "axis": {"labelAngle": 0, "labelOverlap": "greedy"}},
            "y": {"field": y, "type": "quantitative", "axis": COUNTS},
            "tooltip": _tooltip(rows),
        },
    }


def listing(rows: Sequence[Row], name: str, value: str) -> Spec:
    """Draw lying bars, one for each name, in the order of the rows."""
    return {
        "data": {"values": rows},
        "height": 18 * len(rows),
        "mark": {"type": "bar", "color": BLUE},
        "encoding": {
            "y": {"field": name, "type": "nominal", "sort": None, "title": None},
            "x": {"field": value, "type": "quantitative"},
            "tooltip": _tooltip(rows),
        },
    }


def histogram(
    rows: Sequence[Row],
    y: str,
    *,
    title: str,
    log: bool = False,
    end: float | None = None,
    color: Mapping[str, str] | None = None,
    by: str = "",
    marks: Sequence[tuple[float, str]] = (),
) -> Spec:
    """Draw counts over the bins of a number.

    Args:
        rows: one per bin, or per part of a bin, with the bin's ends in the fields `from` and `to`.
        y: the field of the count.
        title: what the number is, with its unit.
        log: let equal factors be equal steps of the axis.
        end: of the axis, which then begins at 0; None: as far as the bins go.
        color: where bins have parts: the colour of each value of the field `by`.
        by: the field that tells the parts apart.
        marks: (number, what it is): dashed lines across the chart.
    """
    domain = {} if end is None else {"domain": [0, end]}
    scale = {"scale": {"type": "log", "base": 2} if log else domain}
    x = {"field": "from", "type": "quantitative", "bin": "binned", "title": title, **scale}
    encoding: Spec = {
        "x": x | {"axis": {"grid": False}},
        "x2": {"field": "to"},
        "y": {"field": y, "type": "quantitative", "stack": "zero", "axis": COUNTS},
        "tooltip": _tooltip(rows),
    }
    layer: Spec = {"data": {"values": rows}, "mark": _bar(color), "encoding": encoding | _parts(color, by)}
    lines: Spec = {
        "data": {"values": [{"at": at, "mark": what} for at, what in marks]},
        "mark": {"type": "rule", "strokeDash": [5, 4], "strokeWidth": 2, "color": "#444"},
        "encoding": {
            "x": {"field": "at", "type": "quantitative", "title": title, **scale},
            "tooltip": [{"field": "mark"}, {"field": "at"}],
        },
    }
    return {"layer": [layer, lines]} if marks else layer


def lines(rows: Sequence[Row], x: str, y: str, by: str, *, top: float | None = None) -> Spec:
    """Draw a line for each value of a field; the pointer shows the values at its place.

    Args:
        rows: one per point.
        x: the field of the axis.
        y: the field of the height.
        by: the field that tells the lines apart.
        top: end of the y axis; None: where the values end.
    """
    domain = {} if top is None else {"scale": {"domain": [0, top]}}
    several = len({row[by] for row in rows}) > 1
    is_whole = all(float(row[x]).is_integer() for row in rows)
    axis = {"axis": {"tickMinStep": 1, "labelOverlap": "greedy"}} if is_whole else {}
    encoding: Spec = {
        "x": {"field": x, "type": "quantitative", **axis},
        "y": {"field": y, "type": "quantitative", "title": None, **domain},
        "color": {"field": by, "type": "nominal", "sort": None, "legend": {"columns": 2} if several else None},
    }
    nearest = {
        "name": "hover",
        "select": {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"},
    }
    points: Spec = {
        "params": [nearest],
        "mark": {"type": "point", "filled": True, "size": 50},
        "encoding": {
            "opacity": {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0},
            "tooltip": _tooltip(rows),
        },
    }
    drawn = {"type": "line", "point": {"size": 12}} if len(rows) < 200 else {"type": "line", "strokeWidth": 1.5}
    return {"data": {"values": rows}, "encoding": encoding, "layer": [{"mark": drawn}, points]}


def heatmap(rows: Sequence[Row], x: str, y: str, value: str, steps: Sequence[int]) -> Spec:
    """Draw a grid of cells, darker where the value is larger; both sides are `steps`, y downwards as in a picture."""
    axis = {"type": "ordinal", "axis": {"labelAngle": 0}, "scale": {"domain": list(steps)}}
    return {
        "data": {"values": rows},
        "mark": "rect",
        "encoding": {
            "x": {"field": x, **axis},
            "y": {"field": y, **axis},
            "color": {"field": value, "type": "quantitative", "scale": {"scheme": "blues"}, "legend": None},
            "tooltip": _tooltip(rows),
        },
    }


def matrix(rows: Sequence[Row], x: str, y: str, value: str, names: Sequence[str]) -> Spec:
    """Draw a table of numbers, both of whose sides are `names`: cells are the darker the larger, with their number."""
    side = {"type": "nominal", "sort": list(names), "scale": {"domain": list(names)}}
    encoding: Spec = {
        "x": {"field": x, **side, "axis": {"labelAngle": -40, "orient": "top"}},
        "y": {"field": y, **side},
        "tooltip": _tooltip(rows),
    }
    shade = {
        "field": value,
        "type": "quantitative",
        "scale": {"range": ["#eef4fd", "#7db0ee"], "type": "sqrt"},
        "legend": None,
    }
    return {
        "data": {"values": rows},
        "height": 40 + 26 * len(names),
        "encoding": encoding,
        "layer": [
            {"mark": "rect", "encoding": {"color": shade}},
            {"mark": "text", "encoding": {"text": {"field": value, "type": "quantitative"}}},
        ],
    }


def _bar(color: Mapping[str, str] | None) -> Spec:
    return {"type": "bar"} if color else {"type": "bar", "color": BLUE}


def _parts(color: Mapping[str, str] | None, by: str) -> Spec:
    if not color:
        return {}
    return {
        "color": {"field": by, "type": "nominal", "scale": {"domain": list(color), "range": list(color.values())}},
        "order": {"field": by, "sort": "ascending"},
    }


def _tooltip(rows: Sequence[Row]) -> list[Spec]:
    """Show all fields of a row on hover, numbers in short form."""
    return [
        {"field": name, "type": "quantitative", "format": ",.4~r" if isinstance(value, float) else ","}
        if isinstance(value, int | float)
        else {"field": name, "type": "nominal"}
        for name, value in (rows[0].items() if rows else ())
    ]
