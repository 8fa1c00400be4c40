"""Charts as they are drawn."""

import json
import re

import pytest
import vl_convert

from pipeline.pages.charts import Spec, bars, histogram

ROWS = [{"from": 8, "to": 16, "chips": 1}, {"from": 16, "to": 32, "chips": 1}]


@pytest.mark.parametrize("spec", [histogram(ROWS, "chips", title="size"), bars(ROWS, "from", "chips")])
def test_charts__an_axis_of_counts_has_no_parts_of_one(spec: Spec) -> None:
    drawn = vl_convert.vegalite_to_svg(json.dumps(spec))
    assert not re.findall(r">\d*\.\d+</text>", drawn)
