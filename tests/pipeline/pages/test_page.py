"""A page draws its charts in a real browser, asks for nothing, and fits a phone."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.pages.blocks import Chart, Figures, Picture, Remarks, Row, Section, Table, Text
from pipeline.pages.charts import bars, heatmap, histogram, lines, listing
from pipeline.pages.page import page_place, write_page
from schemas.errors import UsageError
from tests.browser import browsing

EVIL = "</script><script>document.title = 'taken'</script><b>&"
BINS = [{"from": 2.0**i, "to": 2.0 ** (i + 1), "status": status, "boxes": i + 1} for i in range(6) for status in "ab"]
COUNTS = [{"number": i, "chips": 10 - i} for i in range(5)]
POINTS = [{"step": i, "value": i / 10, "what": what} for i in range(10) for what in ("loss", "rate")]
CELLS = [{"left": 0, "top": 10, "chips": 3}, {"left": 10, "top": 0, "chips": 1}]
CHARTS = {
    "bars": bars(COUNTS, "number", "chips"),
    "listing": listing([{"class": EVIL, "objects": 3}], "class", "objects"),
    "histogram": histogram(BINS, "boxes", title="size, px", log=True, color={"a": "#123", "b": "#345"}, by="status",
                           marks=[(8, "end")]),
    "lines": lines(POINTS, "step", "value", "what"),
    "heatmap": heatmap(CELLS, "left", "top", "chips", range(0, 30, 10)),
}  # fmt: skip
DRAWN = "document.querySelectorAll('.vega svg').length == document.querySelectorAll('.vega').length"
MARKS = "vega => vega.querySelectorAll('path[aria-roledescription]').length"
TOOLTIP = "document.querySelector('#vg-tooltip-element.visible')?.innerText"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "new/page.html"
    many = [[EVIL, 12345, 0.5, None] * 4]
    columns = ["text", "number", "share", "nothing"] * 4
    blocks = [
        Figures([("12", EVIL)]),
        Remarks([EVIL], "nothing"),
        Text(EVIL),
        Table(columns, many),
        Row([Chart(name, spec) for name, spec in CHARTS.items()]),
        Row([Picture(Image.new("RGB", (60, 40), "#aa2200"), EVIL)] * 3),
    ]
    write_page(path, EVIL, "below", [Section("first", blocks), Section("second", [Remarks([], "nothing odd")])])
    return path


def test_write_page__draws_every_chart_and_asks_for_nothing(page: Path) -> None:
    with browsing() as browser:
        for width in (1280, 390):
            browser.open(page, width)
            browser.wait_for(DRAWN)
            assert browser.value("document.querySelectorAll('.vega svg').length") == len(CHARTS)
            marks = browser.value(f"[...document.querySelectorAll('.vega')].map({MARKS})")
            assert all(marks), dict(zip(CHARTS, marks, strict=True))
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.value("[...document.images].every(i => i.naturalWidth == 60)")
        assert browser.value("document.title") == EVIL
        assert EVIL in browser.value("document.body.innerText")
        assert browser.requests() == []
        assert browser.faults() == []


def test_write_page__charts_answer_on_hover(page: Path) -> None:
    with browsing() as browser:
        browser.open(page, 1280)
        browser.wait_for(DRAWN)
        first = "document.querySelector('.vega path[aria-roledescription=bar]')"
        browser.value(f"{first}.scrollIntoView({{block: 'center'}})")
        x, y = browser.value(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({first}.getBoundingClientRect())")
        browser.hover(x, y)
        browser.wait_for(f"!!{TOOLTIP}")
        assert browser.value(TOOLTIP).split() == ["number", "0", "chips", "10"]


def test_write_page__needs_no_browser_to_be_whole(page: Path) -> None:
    text = page.read_text()
    assert "taken" not in text.replace("&lt;script&gt;document.title = &#x27;taken", "").replace(
        "\\u003cscript>document.title = 'taken", ""
    )
    assert "12,345" in text
    assert "50.0%" in text
    assert "nothing odd" in text


@pytest.mark.parametrize("name", ["report", "report.png", "report.json"])
def test_page_place__refuses_other_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="ends in .html"):
        page_place(tmp_path / name)


def test_page_place__lets_no_page_of_others_be_written_over(tmp_path: Path) -> None:
    mine = tmp_path / "index.html"
    mine.write_text("<!doctype html><html></html>")
    with pytest.raises(UsageError, match="is no report"):
        page_place(mine)
    write_page(tmp_path / "report.html", "A", "b", [])
    assert page_place(tmp_path / "report.html") == tmp_path / "report.html"
