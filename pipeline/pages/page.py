"""Write sections as one self-contained HTML file."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.engines.extras import needed
from pipeline.pages.blocks import Section
from pipeline.storage import Location, is_file, make_folder, open_binary, read_range, write_atomic
from schemas.errors import UsageError

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'"
"""The browser itself refuses every request; Vega compiles the expressions of its charts."""

MADE_BY = {"made_by": "sniper report"}
"""How the JSON file beside a page begins, by which a report knows that it may replace it."""

STYLE = """
:root { color-scheme: light; --ink: #1d2129; --faint: #667085; --line: #e3e6eb; --mark: #2f6fde; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1180px; color: var(--ink); background: #fff;
       font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 8px 0 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
p { margin: 6px 0 12px; max-width: 80ch; }
.subtitle, figcaption { color: var(--faint); overflow-wrap: anywhere; }
.good { color: #1a7f42; }
.remarks { padding-left: 20px; max-width: 90ch; }
.remarks li { margin: 4px 0; }
.figures { display: flex; flex-wrap: wrap; gap: 8px; margin: 12px 0; }
.figures div { flex: 1 1 140px; padding: 10px 12px; border: 1px solid var(--line); border-radius: 8px;
               color: var(--faint); font-size: 13px; }
.figures b { display: block; color: var(--ink); font-size: 20px; }
.wide { overflow-x: auto; margin: 8px 0 16px; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 4px 12px 4px 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: pre-line; }
.long { min-width: 240px; overflow-wrap: anywhere; }
th { color: var(--faint); font-weight: 600; white-space: nowrap; vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 16px;
          margin: 8px 0 16px; }
.pictures { display: flex; flex-wrap: wrap; gap: 16px; margin: 8px 0 16px; }
figure { margin: 0; min-width: 0; }
.chart figcaption { color: var(--ink); font-weight: 600; font-size: 14px; }
.vega { width: 100%; }
.picture { flex: 0 1 min(262px, 25% - 12px); font-size: 12px; }
.picture img { display: block; width: 100%; height: auto; border-radius: 4px; }
@media (max-width: 500px) { .picture { flex-basis: calc(50% - 8px); } }
"""

DRAW = """
const config = { font: "system-ui, sans-serif", view: { stroke: null },
                 axis: { gridColor: "#eceef2", labelOverlap: true, labelSeparation: 6 },
                 legend: { orient: "bottom", title: null, columns: 3 } };
for (const source of document.querySelectorAll('.chart script')) {
  vegaEmbed(source.previousElementSibling, JSON.parse(source.textContent),
            { mode: "vega-lite", renderer: "svg", actions: false, config });
}
"""


def write_page(path: Location, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write a page, whole or not at all, and make its folder.

    Args:
        path: the file.
        title: heading of the page.
        subtitle: a line below it.
        sections: what the page shows, from top to bottom.

    Raises:
        UsageError: the packages of the extra `report` are not installed.
        DataError: the file cannot be written.
    """
    with needed("report"):
        import vl_convert
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    body = "".join(section.html() for section in sections)
    content = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{html.escape(title)}</h1><div class="subtitle">{html.escape(subtitle)}</div>{body}'
        f"<script>{bundle}</script><script>{DRAW}</script></body></html>\n"
    )
    make_folder(path.parent)
    write_atomic(path, content.encode())


def write_facts(path: Location, facts: Mapping[str, Any]) -> None:
    """Write the numbers of a page as JSON beside it, whole or not at all.

    Args:
        path: the page.
        facts: what the file holds, behind a line that says what wrote it.

    Raises:
        DataError: the file cannot be written.
    """
    text = json.dumps({**MADE_BY, **facts}, indent=1, allow_nan=False)
    write_atomic(path.with_suffix(".json"), text.encode())


def page_place(path: Location) -> Location:
    """Return the place of a page after a check of its name, and of what is there and beside it.

    Raises:
        UsageError: it does not end in .html, or the page or the JSON file is there and was not written by a report.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path}: expected a name that ends in .html; the same as JSON goes beside it")
    if is_file(path) and POLICY.encode() not in read_range(path, 0, 500):
        raise UsageError(f"{path}: is there and is no report; choose another --out, or move it away")
    beside = path.with_suffix(".json")
    begin = json.dumps(MADE_BY, indent=1).rstrip("\n}").encode()
    if is_file(beside):
        with open_binary(beside) as file:
            if file.read(len(begin)) != begin:
                raise UsageError(
                    f"{beside}: is there and is no report, but the numbers of {path.name} would go there; choose "
                    "another --out"
                )
    return path
