"""What format 2 left stays usable: tests/kept/version-2.tar.xz was made by commit 7a27f8f."""

import json
import tarfile
from pathlib import Path

import pytest

from pipeline.commands.chips import chips
from pipeline.commands.negatives import negatives
from pipeline.commands.verify import verify
from pipeline.dataset.build_file import finished_builds, former_names, read_build, refuse_other_chips, write_build
from pipeline.dataset.proposals import find_parts
from pipeline.dataset.standing import DEFAULTS
from pipeline.images.chip import codec
from schemas.build import Build
from schemas.errors import UsageError
from schemas.settings import ChipSettings, Settings, load_settings
from schemas.settings.section import differing
from tests.paths import ROOT


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Four images, their chips in `out`, proposals that name these, and a pool mined from them."""
    with tarfile.open(ROOT / "tests/kept/version-2.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def settings_of(kept: Path) -> Settings:
    return load_settings(kept / "settings.yaml")


def test_version_2__is_verified_as_it_is(kept: Path) -> None:
    assert verify(kept / "out").problems == []
    builds = finished_builds(kept / "out", pool=True)
    assert find_parts(kept / "out/proposals", builds["positives"].names, 4) is not None
    record = kept / "out/run.json"
    record.write_text(record.read_text().replace('"covered": 6', '"covered": 5'))  # its identity covered the counts
    assert any("not all those that run.json was written for" in problem for problem in verify(kept / "out").problems)


def test_version_2__a_setting_that_then_did_not_exist_is_refused_where_it_is_given(kept: Path) -> None:
    then = read_build(kept / "out").settings["chips"]
    refuse_other_chips(kept / "out", then, ChipSettings(ignore_categories=[], max_pixels=10**9))
    with pytest.raises(UsageError, match=r"chips.ignore_categories: \[\] there, \[a\] given"):
        refuse_other_chips(kept / "out", then, ChipSettings(ignore_categories=["a"]))


def test_version_2__a_rerun_keeps_chips_pool_and_proposals(kept: Path) -> None:
    out, settings = kept / "out", settings_of(kept)
    before = json.loads((out / "run.json").read_bytes())
    if {name: before["versions"][name] for name in codec()._fields} != codec()._asdict():
        pytest.skip(f"the kept files were made with {before['versions']}, here is {codec()}")
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/*") if path.name != "run.json"}
    for _ in range(2):
        assert chips(kept / "annotations.json", kept / "images", out, settings).num_made == 0
        assert verify(out).problems == []
    after = read_build(out)
    assert after.fingerprint != before["fingerprint"]
    assert after.formerly == [before["fingerprint"]]
    assert find_parts(out / "proposals", after.names, 4) is not None
    assert after.known_as(before["fingerprint"]) == before["fingerprint"]  # as a checkpoint of then names them
    assert negatives(out, proposals=out / "proposals", settings=settings, images=kept / "images").num_made == 0
    assert verify(out).problems == []
    assert {path: path.stat().st_mtime_ns for path in stamps if path.suffix == ".tar"} == {
        path: stamp for path, stamp in stamps.items() if path.suffix == ".tar"
    }


def test_build__its_identity_is_that_of_its_shards_alone(kept: Path) -> None:
    """An update of the program, or another count in the report, makes no other positives of them."""
    out, settings = kept / "out", settings_of(kept)
    chips(kept / "annotations.json", kept / "images", out, settings, overwrite=True)
    before = read_build(out)
    negatives(out, random=1, images=kept / "images")
    other = json.loads((out / "run.json").read_bytes())
    other["versions"]["sniper-chips"] = "0.0.1"
    other["counts"]["new"] = 1
    (out / "run.json").write_text(json.dumps(other))
    assert verify(out).problems == []
    assert chips(kept / "annotations.json", kept / "images", out, settings).num_made == 0
    assert read_build(out) == before
    assert verify(out).problems == []


def test_differing__takes_a_setting_that_then_did_not_exist_for_its_default() -> None:
    assert differing({"quality": 95}, {"quality": 95, "min_side": 4.0}, DEFAULTS) == []
    assert differing({"quality": 95}, {"quality": 90, "min_side": 3.0}, DEFAULTS) == [
        ("quality", 95, 90),
        ("min_side", 4.0, 3.0),
    ]
    assert differing({"random": 2, "nms": 0.5}, {"random": 3}, DEFAULTS) == [("random", 2, 3)]


def test_former_names__are_kept_while_no_shard_is_made_anew() -> None:
    standing = Build(fingerprint="now", settings={}, num_shards=2, files={}, counts={}, formerly=["once"])
    assert former_names(standing, "now", 2, 0) == ["once"]
    assert former_names(standing, "next", 2, 0) == ["now", "once"]
    assert former_names(standing, "next", 2, 1) == former_names(standing, "next", 3, 0) == []
    assert former_names(None, "next", 2, 0) == []


def test_write_build__leaves_an_equal_record_alone(kept: Path) -> None:
    path = kept / "record.json"
    build = read_build(kept / "out")
    write_build(path, build)
    stamp = path.stat().st_mtime_ns
    write_build(path, build)
    assert path.stat().st_mtime_ns == stamp
    (kept / "run.json").write_bytes(path.read_bytes())
    assert read_build(kept) == build
