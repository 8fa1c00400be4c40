"""Images of a folder and of a data set: what is taken for one, and what is said of those that are read."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image, WebPImagePlugin

from pipeline.coco import Reject, SourceImage
from pipeline.images.decode import ImageRefusedError, open_image
from pipeline.images.names import near_misses
from pipeline.images.sources import Findings, find_images, frame_notes, measure_image, open_source, open_sources
from schemas.codes import Reason
from tests.builders import encoded, exif, texture

JPEG = encoded(texture(16, 16))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(JPEG)


def test_find_images__takes_every_suffix_that_is_read_and_counts_litter(tmp_path: Path) -> None:
    kept = ["a.jpg", "b.JPEG", "c.jfif", "d.ppm", "e.gif", "f.webp", "sub/g.TIFF", "sub/deep/h.tif", "i.png", "j.bmp"]
    litter = [
        "._a.jpg",
        "@eaDir/a.jpg",
        "sub/.ipynb_checkpoints/g-checkpoint.png",
        "__MACOSX/x/y.jpg",
        ".hidden/z.bmp",
    ]
    touch(tmp_path, *kept, *litter, "notes.txt", "Thumbs.db")
    found, num_litter, others = find_images(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == sorted(kept)
    assert num_litter == len(litter)
    assert others == {".txt": 1, ".db": 1}


def test_measure_image__a_name_that_no_record_could_hold_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, os.fsdecode(b"caf\xe9.jpg"))
    (file,) = find_images(tmp_path).images
    with pytest.raises(ImageRefusedError, match="rename the file") as refused:
        measure_image(file)
    assert refused.value.reason == Reason.BAD_RECORD


def test_find_images__follows_linked_folders_once(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a.jpg")
    touch(tmp_path / "images", "b.jpg")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "images")  # a circle
    found = find_images(tmp_path / "images").images
    assert [path.name for path in found] == ["b.jpg", "a.jpg"]


def test_find_images__a_hidden_folder_that_was_named_is_searched_and_pictures_of_before_are_not(
    tmp_path: Path,
) -> None:
    touch(tmp_path / ".cache", "a.jpg", "out/0000-a.jpg")
    found, num_litter, _ = find_images(tmp_path / ".cache", without=tmp_path / ".cache" / "out")
    assert ([path.name for path in found], num_litter) == (["a.jpg"], 0)


def findings_of(folder: Path, **contents: bytes) -> Findings:
    sources = []
    for number, (name, content) in enumerate(contents.items()):
        (folder / name).write_bytes(content)
        sources.append(SourceImage(number, name, 16, 16))
    findings = Findings()
    assert len(list(open_sources(folder, sources, 1_000_000, findings))) == len(contents)
    return findings


def test_open_sources__counts_images_that_can_be_read_in_two_ways(tmp_path: Path) -> None:
    other = texture(16, 16, 1)
    findings = findings_of(
        tmp_path,
        plain=JPEG,
        turned=encoded(texture(16, 16), exif=exif(6)),
        animated=encoded(texture(16, 16), "GIF", save_all=True, append_images=[other]),
        pages=encoded(texture(16, 16), "TIFF", save_all=True, append_images=[other]),
    )
    assert findings.rejects == []
    assert (findings.num_ambiguous, findings.num_several) == (1, 2)
    turned, several = frame_notes(1, 2)
    assert "1 images" in turned
    assert "2 image files hold several pages or frames" in several
    assert frame_notes(0, 0) == []


def test_open_image__overviews_and_masks_of_a_tiff_are_no_pages() -> None:
    pages = [texture(8, 8), Image.new("1", (16, 16))]
    pages[0].encoderinfo = {"tiffinfo": {254: 1}}
    pages[1].encoderinfo = {"tiffinfo": {254: 4}}
    content = encoded(texture(16, 16), "TIFF", save_all=True, append_images=pages)
    opened = open_image(io.BytesIO(content))
    assert opened.image.n_frames == 3
    assert not opened.has_several
    assert opened.image.size == (16, 16)


def test_open_sources__names_the_decoders_of_what_it_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings_of(tmp_path, a=JPEG).decoders == {}
    webp = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\0\0\0\x10\x07\x10\x11\x11\x88\x88\xfe\x07\0"
    monkeypatch.setattr(WebPImagePlugin, "SUPPORTED", False)
    findings = findings_of(tmp_path, a=JPEG, b=webp)
    assert findings.decoders == {"WEBP": "none"}
    (reject,) = findings.rejects
    assert reject.reason == "no_decoder"
    assert "libwebp" in reject.message
    assert "apt-get install" in reject.message


def test_open_source__gives_the_picture_or_the_row_of_the_ledger(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    opened = open_source(tmp_path, SourceImage(7, "a.jpg", 16, 16), 256)
    assert isinstance(opened, Image.Image)
    assert opened.size == (16, 16)
    refused = open_source(tmp_path, SourceImage(7, "a.jpg", 16, 16), 255)
    assert isinstance(refused, Reject)
    assert refused[:4] == ("image", 7, "a.jpg", Reason.TOO_MANY_PIXELS)
    assert refused.message.startswith("a.jpg: ")


def test_open_sources__a_pipe_is_refused_and_a_link_that_leads_nowhere_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    (tmp_path / "link.jpg").symlink_to("gone/a.jpg")
    (tmp_path / "sound.jpg").write_bytes(JPEG)
    (tmp_path / "through.jpg").symlink_to("sound.jpg")
    names = ["pipe.jpg", "null.jpg", "link.jpg", "sound.jpg", "through.jpg"]
    findings = Findings()
    sources = [SourceImage(number, name, 16, 16) for number, name in enumerate(names)]
    assert len(list(open_sources(tmp_path, sources, 1_000_000, findings))) == len(names)
    assert [(reject.file, reject.reason) for reject in findings.rejects] == [
        ("pipe.jpg", "unreadable_file"),
        ("null.jpg", "unreadable_file"),
        ("link.jpg", "missing_file"),
    ]
    assert "no regular file" in findings.rejects[0].message
    assert "a link to gone/a.jpg, which is not there" in findings.rejects[2].message
    with pytest.raises(ImageRefusedError, match="no regular file"):
        measure_image(tmp_path / "pipe.jpg")
    assert near_misses(tmp_path, ["link.jpg"]) == []
