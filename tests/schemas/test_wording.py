"""Numbers with their nouns, lengths of time, intervals, and commands."""

from pathlib import Path

from schemas.wording import counted, duration, interval, shell


def test_counted__one_is_singular() -> None:
    assert [counted(number, "shard") for number in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]
    assert [counted(number, "pass", "passes") for number in (1, 2)] == ["1 pass", "2 passes"]


def test_duration__in_the_unit_that_fits() -> None:
    assert [duration(seconds) for seconds in (7.4, 89, 120, 5000, 7200)] == ["7 s", "89 s", "2 min", "83 min", "2.0 h"]


def test_interval__says_inf_where_it_has_no_upper_end() -> None:
    assert interval(0, 80) == "[0, 80)"
    assert interval(62.5, None) == interval(62.5, float("inf")) == "[62.5, inf)"


def test_shell__gives_each_word_back() -> None:
    assert shell("sniper", "verify", Path("my chips")) == "sniper verify 'my chips'"
