"""Views as files: their pixels are those that a search sees, and nothing is left half done."""

import json
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.exchange.views import INDEX, views
from pipeline.pyramid.search import search
from schemas.errors import DataError, UsageError
from schemas.settings import Settings, load_settings
from tests.builders import CocoSet, digest
from tests.conftest import RunSniper
from tests.s3 import S3

SETTINGS = ("chips.scales=[1.5, {long_side: 128}]", "chips.ranges=[[0, 60], [50, null]]", "detect.max_side=150")


@pytest.fixture
def settings() -> Settings:
    return load_settings(None, SETTINGS)


@pytest.fixture
def photos(tmp_path: Path) -> CocoSet:
    """Images of three shapes; one of them is split into tiles."""
    made = CocoSet(tmp_path / "photos")
    for image_id, (width, height) in {30: (90, 60), 7: (250, 90), 12: (64, 64)}.items():
        made.add_image(image_id, width=width, height=height)
    made.write()
    return made


def test_views__are_the_pixels_that_a_detector_sees_in_a_search(
    photos: CocoSet, tmp_path: Path, settings: Settings
) -> None:
    report = views(photos.image_root, tmp_path / "out", settings, annotations=photos.path, workers=1)
    rows = pq.read_table(tmp_path / "out" / INDEX).to_pylist()
    assert report.num_views == len(rows) > 6
    assert [row["view_id"] for row in rows] == list(range(1, len(rows) + 1))
    listed = json.loads((tmp_path / "out/views.json").read_bytes())
    assert [(i["id"], i["file_name"]) for i in listed["images"]] == [(r["view_id"], r["file_name"]) for r in rows]
    assert listed["categories"] == photos.categories
    seen = []

    def remember(pixels: list[np.ndarray]) -> list[tuple[list[float], list[float], list[int]]]:  # type: ignore[type-arg]
        seen.extend(pixels)
        return [([], [], []) for _ in pixels]

    list(search([photos.image_root / f"{i}.jpg" for i in (7, 12, 30)], remember, settings))
    assert len(seen) == len(rows)
    for row in rows:
        stored = np.asarray(Image.open(tmp_path / "out/images" / row["file_name"])).astype(int)
        assert stored.shape == (row["height"], row["width"], 3)
        closest = min(np.abs(one.astype(int) - stored).mean() for one in seen if one.shape == stored.shape)
        assert closest < 4  # of 255: what JPEG loses


def test_views__stopped_and_called_again_end_the_same(
    photos: CocoSet, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.exchange import views as module

    whole = views(photos.image_root, tmp_path / "whole", settings, annotations=photos.path, workers=1)
    rows = pq.read_table(tmp_path / "whole" / INDEX).to_pylist()
    num_last = sum(row["image_id"] == rows[-1]["image_id"] for row in rows)
    encode, written = module.encode_jpeg, []

    def stop(*arguments: object) -> bytes:
        written.append(arguments)
        if len(written) == len(rows):
            raise KeyboardInterrupt
        return encode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "SPAN", 1)  # image of a task
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_jpeg", stop)
        with pytest.raises(KeyboardInterrupt):
            views(photos.image_root, tmp_path / "part", settings, annotations=photos.path, workers=1)
    assert not (tmp_path / "part" / INDEX).exists()
    written.clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_jpeg", lambda *a: written.append(a) or encode(*a))
        report = views(photos.image_root, tmp_path / "part", settings, annotations=photos.path, workers=1)
    assert len(written) == num_last < report.num_views == whole.num_views
    assert digest(tmp_path / "part") == digest(tmp_path / "whole")
    with pytest.raises(UsageError, match="holds views of other images or settings"):
        views(photos.image_root, tmp_path / "part", annotations=photos.path, workers=1)
    other = views(photos.image_root, tmp_path / "part", annotations=photos.path, workers=1, overwrite=True)
    assert len(list((tmp_path / "part/images").iterdir())) == other.num_views


def test_views__of_other_images_of_the_same_names_and_sizes_are_refused(
    photos: CocoSet, tmp_path: Path, settings: Settings
) -> None:
    views(photos.image_root, tmp_path / "out", settings, annotations=photos.path, workers=1)
    night = shutil.copytree(photos.image_root, tmp_path / "night")
    views(night, tmp_path / "out", settings, annotations=photos.path, workers=1)  # the same files elsewhere
    Image.new("RGB", (90, 60)).save(night / "30.jpg")
    with pytest.raises(UsageError, match="holds views of other images or settings"):
        views(night, tmp_path / "out", settings, annotations=photos.path, workers=1)


def test_views__of_a_folder_number_the_images_and_leave_bad_ones_out(
    photos: CocoSet, tmp_path: Path, sniper: RunSniper
) -> None:
    (photos.image_root / "bad.jpg").write_bytes(b"nothing")
    (photos.image_root / os.fsdecode(b"caf\xe9.jpg")).write_bytes((photos.image_root / "12.jpg").read_bytes())
    broken = (photos.image_root / "7.jpg").read_bytes()
    (photos.image_root / "7.jpg").write_bytes(broken[: len(broken) // 2])
    arguments = ("views", "--images", photos.image_root, "--out", tmp_path / "my views", "--workers", 1)
    given = [word for one in SETTINGS for word in ("--set", one)]
    result = sniper(*arguments, *given)
    assert result.status == 1
    assert "not_an_image" in result.out
    assert "its name is no text in UTF-8; rename the file" in result.out
    assert "undecodable" in result.out
    hint = shlex.split(result.err.split("next: ")[1])
    assert hint[:3] == ["sniper", "merge-views", str(tmp_path / "my views")]
    assert hint[-len(given) :] == given
    rows = pq.read_table(tmp_path / "my views" / INDEX).to_pylist()
    assert {(row["image_id"], row["image_file"]) for row in rows} == {(1, "12.jpg"), (2, "30.jpg")}


def test_views__to_a_bucket(photos: CocoSet, tmp_path: Path, settings: Settings, s3: S3) -> None:
    views(photos.image_root, tmp_path / "out", settings, annotations=photos.path, workers=1)
    views(photos.image_root, f"{s3.url}/out", settings, annotations=photos.path, workers=1)
    here = {str(path.relative_to(tmp_path)) for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    assert here - {"out/.lock"} <= set(s3.keys())
    s3.put("photos/a.jpg", b"x")
    with pytest.raises(UsageError, match="give the annotation file"):
        views(f"{s3.url}/photos", tmp_path / "other", settings)
    with pytest.raises(DataError, match="no such annotation file"):
        views(photos.image_root, tmp_path / "other", settings, annotations=tmp_path / "none.json")


def test_views__leaves_the_images_alone(photos: CocoSet, tmp_path: Path, sniper: RunSniper) -> None:
    """The image folder is called `images`, as that of the views is."""
    images = photos.image_root.rename(tmp_path / "photos/images")
    before = digest(tmp_path / "photos")
    for out in (tmp_path / "photos", images, images / "views"):
        for more in ((), ("--overwrite",)):
            told = sniper("views", "--images", images, "--out", out, "--workers", 1, *more)
            assert told.status == 2
            assert "is, holds or lies in the image folder" in told.err
    assert digest(tmp_path / "photos") == before


def test_views__refuses_what_it_did_not_write(photos: CocoSet, tmp_path: Path, settings: Settings) -> None:
    def make(out: Path, *, overwrite: bool = False) -> None:
        views(photos.image_root, out, settings, annotations=photos.path, workers=1, overwrite=overwrite)

    strange = [tmp_path / "foreign/images/00000000-0-0000.jpg", tmp_path / "foreign/views.json"]
    for number, name in enumerate(("images/mine.jpg", "images/below/a.txt", "notes.txt")):
        make(tmp_path / f"{number}")
        strange.append(tmp_path / f"{number}" / name)
    for path in strange:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="holds .*, which `sniper views` did not write"):
                make(tmp_path / path.relative_to(tmp_path).parts[0], overwrite=overwrite)
        assert path.read_bytes() == b"mine"
    (tmp_path / "chips").mkdir()
    (tmp_path / "chips/run.json").touch()
    with pytest.raises(UsageError, match="is a chip data set"):
        make(tmp_path / "chips")


def test_views__of_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: holds no image; expected names that end in \.apng, .*\.webp"):
        views(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()
