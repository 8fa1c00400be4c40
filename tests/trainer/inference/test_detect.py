"""Detection on files and folders: every image has an entry, whatever is wrong with it."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from schemas.errors import DataError, UsageError
from schemas.settings import DetectSettings, ModelSettings, Settings, load_settings
from tests.builders import exif
from tests.conftest import RunSniper
from tests.trainer.processes import run_ranks
from trainer.inference.detect import detect, detect_into
from trainer.inference.output import Output
from trainer.model import Detector
from trainer.runtime.checkpoint import read_checkpoint, write_checkpoint


def test_detect__files_folders_and_bad_files(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index, file in enumerate(sorted((demo / "val").iterdir())[:2]):
        (tmp_path / f"in/{index}.jpg").write_bytes(file.read_bytes())
    (tmp_path / "in/bad.jpg").write_bytes(b"nothing")
    huge = Image.new("RGB", (3000, 200), "gray")
    huge.save(tmp_path / "long.png")
    settings = Settings(detect=DetectSettings(max_side=320, min_score=0.01))
    named = [tmp_path / "in", tmp_path / "long.png", tmp_path / "in/0.jpg"]  # one of them twice
    results = detect(checkpoint, named, settings, out=tmp_path / "out")
    assert [Path(result["file"]).name for result in results] == ["0.jpg", "1.jpg", "bad.jpg", "long.png"]
    assert "error" in results[2]
    assert (results[3]["width"], results[3]["height"]) == (3000, 200)
    assert json.loads((tmp_path / "out/detections.json").read_bytes()) == json.loads(json.dumps(results))
    written = sorted(path.suffix for path in (tmp_path / "out").iterdir() if not path.name.startswith("."))
    assert written == [".jpg", ".jpg", ".jpg", ".json", ".jsonl"]
    for result in results:
        for found in result.get("detections", []):
            x, y, width, height = found["bbox"]
            assert x >= 0
            assert y >= 0
            assert x + width <= result["width"] + 1e-2
            assert y + height <= result["height"] + 1e-2
            assert found["category_id"] in (1, 3, 7)
    with pytest.raises(UsageError, match="no such file"):
        detect(checkpoint, [tmp_path / "none.jpg"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text", "nor a file of weights that torch can read safely, or it is damaged"),
        ({"a": torch.ones(2)}, "weights of others serve as train.weights"),
        ([1, 2], "weights of others serve as train.weights"),
        ({"format": 1, "model": {}}, "of another version of this program; train anew"),
        ("lacks a weight", "its network cannot be made again"),
        ("other network", "its network cannot be made again"),
        ("other chips", "its network cannot be made again"),
    ],
)
def test_detect__says_what_is_wrong_with_a_checkpoint(
    checkpoint: Path, tmp_path: Path, content: Any, said: str
) -> None:
    path = tmp_path / "odd.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        kept = read_checkpoint(checkpoint)
        if content == "lacks a weight":
            kept.model.popitem()
        elif content == "other chips":
            kept.chips["unheard_of"] = 1
        else:
            kept.settings["model"]["unheard_of"] = 1
        write_checkpoint(path, kept)
    else:
        torch.save(content, path)
    with pytest.raises(DataError) as caught:
        detect(path, tmp_path)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_detect__one_image_named_by_text_and_pictures_that_cannot_be_made(
    demo: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = sorted((demo / "val").iterdir())[0]
    name = "n" * 240 + ".jpg"
    (tmp_path / name).write_bytes(image.read_bytes())
    [found] = detect(str(checkpoint), name, out="found")
    assert len(list((tmp_path / "found").glob("0000-n*.jpg"))) == 1
    assert len(detect(checkpoint, tmp_path, out=tmp_path / "found")) == 1  # its own pictures are none of the images
    Image.new("RGB", (66_000, 20)).save(tmp_path / "longer than a JPEG may be.png")
    long, short = detect(checkpoint, [tmp_path], out=tmp_path / "found")
    assert "no picture could be made" in long["error"]
    assert long["width"] == 66_000
    assert short["detections"] == found["detections"]
    assert json.loads((tmp_path / "found/detections.json").read_bytes())[0]["error"] == long["error"]


def test_detect__an_image_above_max_pixels_is_read_where_that_is_raised(
    demo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    kept = read_checkpoint(checkpoint)
    write_checkpoint(tmp_path / "low.pt", kept._replace(chips={**kept.chips, "max_pixels": 1000}))
    image = sorted((demo / "val").iterdir())[0]
    [refused] = detect(tmp_path / "low.pt", image)
    assert refused["error"].startswith("too_many_pixels: ")
    assert image.name not in refused["error"]  # its file stands beside it
    [taken] = detect(tmp_path / "low.pt", image, load_settings(None, ("chips.max_pixels=10000000",)))
    assert "detections" in taken


def test_detect__stopped_by_a_signal_keeps_what_it_has_and_goes_on(
    demo: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sniper: RunSniper
) -> None:
    """Images of two shapes and one that cannot be read, so that they are not done in the order of their names."""
    for index, file in enumerate(sorted((demo / "val").iterdir())[:5]):
        picture = Image.open(file)
        picture.crop((0, 0, picture.width - 64 * (index % 2), picture.height)).save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes(b"nothing")
    monkeypatch.setattr("trainer.inference.detect.SMALL_SPAN", 3)
    arguments = ("detect", "--checkpoint", checkpoint, tmp_path, "--out", tmp_path / "found")
    whole = detect(checkpoint, tmp_path)
    assert [Path(each["file"]).name for each in whole] == ["0.png", "1.png", "2.png", "3.png", "4.png"]

    add = Output.add

    def add_and_stop(output: Output, result: Any) -> None:
        add(output, result)
        if result["file"].endswith("1.png"):
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "add", add_and_stop)
        stopped = sniper(*arguments)
    assert stopped.status == 143
    assert "run the same command again" in stopped.err
    lines = (tmp_path / "found/detections.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["file"]).name for line in lines] == ["0.png", "1.png"]
    again = sniper(*arguments)
    assert again.status == 1  # one image cannot be read
    assert "2 of 5 images are done already" in again.err
    final = json.loads((tmp_path / "found/detections.json").read_bytes())
    for one, other in zip(final, whole, strict=True):  # batches of other images round otherwise
        assert (one["file"], one.get("error")) == (other["file"], other.get("error"))
        scores = [[found["score"] for found in each.get("detections", ())] for each in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_detect__memory_that_runs_out_names_what_to_lower(
    demo: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sniper: RunSniper
) -> None:
    def scarce(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.17 GiB.")

    monkeypatch.setattr("torch.nn.functional.conv2d", scarce)
    result = sniper("detect", "--checkpoint", checkpoint, demo / "val", "--out", tmp_path)
    assert result.status == 1
    assert "detect.batch_pixels is 4000000" in result.err
    assert "views of " in result.err


def test_detect__reads_each_image_as_a_viewer_shows_it_and_skips_litter(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    stored = Image.new("RGB", (96, 72), "gray")
    folder = tmp_path / "in"
    (folder / "@eaDir").mkdir(parents=True)
    stored.save(folder / "exif.jpg", exif=exif(6))
    stored.save(folder / "xmp.jfif", "JPEG", xmp=packet)
    stored.save(folder / "tag.tif", exif=exif(6))
    stored.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", (96, 72), "red")])
    for litter in ("@eaDir/exif.jpg", "._exif.jpg"):
        (folder / litter).write_bytes(b"thumbnail")
    results = detect(checkpoint, folder, Settings())
    sizes = {Path(result["file"]).name: (result["width"], result["height"]) for result in results}
    assert sizes == {"animated.gif": (96, 72), "exif.jpg": (72, 96), "tag.tif": (72, 96), "xmp.jfif": (72, 96)}
    assert "2 files of systems and editors" in caplog.text
    assert "1 image files hold several pages or frames" in caplog.text


def test_detect__a_large_tiff_is_searched_by_windows(
    demo: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The boxes are those of the same pixels in a file that is decoded whole; the picture is drawn smaller."""
    monkeypatch.setattr("pipeline.images.sources.LARGE_PIXELS", 1000)
    monkeypatch.setattr("trainer.inference.pictures.LARGEST_DRAWN", 100)
    source = Image.open(sorted((demo / "val").iterdir())[0]).convert("RGB")
    source.save(tmp_path / "a.png")
    source.save(tmp_path / "b.tif", tiffinfo={278: 16})
    settings = Settings(detect=DetectSettings(min_score=0.01))
    by_whole, by_windows = detect(checkpoint, [tmp_path / "a.png", tmp_path / "b.tif"], settings, out=tmp_path / "out")
    best = [[(round(d["score"], 2), d["category_id"]) for d in r["detections"][:5]] for r in (by_whole, by_windows)]
    assert len(best[0]) == 5
    assert best[0] == best[1]
    [picture] = (tmp_path / "out").glob("*-b.jpg")
    assert max(Image.open(picture).size) == 100


def test_detect__draws_where_finer_scales_were_searched(
    demo: Path, checkpoint: Path, tmp_path: Path, sniper: RunSniper
) -> None:
    """By what the RPN of a network without a focus head proposes, and by the map of one with it."""
    photo = sorted((demo / "val").iterdir())[0]
    with pytest.raises(UsageError, match=r"model\.focus=true"):
        detect_into(tmp_path / "none", checkpoint, photo, focus_map=True)
    kept = read_checkpoint(checkpoint)
    network = kept.settings["model"] | {"focus": True}
    model = Detector(ModelSettings.model_validate(network), len(kept.categories), kept.chips["size"])
    weights = {name: value for name, value in model.state_dict().items() if name.startswith("focus")} | kept.model
    focused = tmp_path / "focused.pt"
    write_checkpoint(focused, kept._replace(model=weights, settings=kept.settings | {"model": network}))
    for name, path, settings in (
        ("proposed", checkpoint, load_settings(None, ("detect.focus=0.4",))),
        ("learnt", focused, load_settings(None, ("detect.focus=0.49",))),
    ):
        for _ in range(2):  # the second run replaces the first one's pictures
            detect_into(tmp_path / name, path, photo, settings, focus_map=True, min_drawn=0.5)
        [result] = json.loads((tmp_path / name / "detections.json").read_bytes())
        assert result["focus_picture"] == result["picture"].replace(".jpg", ".focus.jpg")
        assert Image.open(tmp_path / name / result["focus_picture"]).size == Image.open(photo).size
        assert len(list((tmp_path / name).glob("*.jpg"))) == 2
    refused = sniper("detect", "--checkpoint", checkpoint, photo, "--focus-map", "--out", tmp_path / "none")
    assert refused.status == 2


def test_detect__two_ranks_share_the_images_and_change_nothing(
    demo: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven images in spans of two, of which one cannot be read, from coarse to fine."""
    (tmp_path / "in").mkdir()
    for index, file in enumerate(sorted((demo / "val").iterdir())[:7]):
        (tmp_path / f"in/{index}.jpg").write_bytes(file.read_bytes())
    (tmp_path / "in/3.jpg").write_bytes(b"nothing")
    monkeypatch.setattr("trainer.inference.detect.SMALL_SPAN", 2)
    settings = load_settings(None, ("detect.focus=0.4",))
    detect(checkpoint, tmp_path / "in", settings, out=tmp_path / "one")
    script = tmp_path / "detect.py"
    script.write_text(
        "import os, sys, torch; torch.set_num_threads(1)\nimport trainer.inference.detect as module\n"
        "from schemas.settings import load_settings\nsettings = load_settings(None, ('detect.focus=0.4',))\n"
        "module.SMALL_SPAN = 2\nreport = module.detect_into(sys.argv[3], *sys.argv[1:3], settings)\n"
        "assert (report is None) == (os.environ['RANK'] == '1')\n"
    )
    run_ranks(2, script, checkpoint, tmp_path / "in", tmp_path / "two")
    one, two = (json.loads((tmp_path / f"{name}/detections.json").read_bytes()) for name in ("one", "two"))
    assert one == two
    assert [Path(result["file"]).name for result in two] == [f"{index}.jpg" for index in range(7)]
    assert "error" in two[3]
    pictures = [[path.name for path in sorted((tmp_path / name).glob("*.jpg"))] for name in ("one", "two")]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 6


def test_detect__classes_and_least_scores_choose_among_the_same_results(
    demo: Path, checkpoint: Path, tmp_path: Path, sniper: RunSniper
) -> None:
    whole = detect(checkpoint, demo / "val")
    arguments = ("detect", "--checkpoint", checkpoint, demo / "val", "--out", tmp_path)
    assert sniper(*arguments, "--classes", "disc, square", "--min-score", 0.02).status == 0
    chosen = json.loads((tmp_path / "detections.json").read_bytes())
    for one, other in zip(whole, chosen, strict=True):
        kept = [d for d in one["detections"] if d["category"] in ("disc", "square") and d["score"] >= 0.02]
        assert [d["score"] for d in other["detections"]] == pytest.approx([d["score"] for d in kept], abs=1e-6)
        assert [d["category"] for d in other["detections"]] == [d["category"] for d in kept]
    refused = sniper(*arguments, "--classes", "disk")
    assert refused.status == 2
    assert "the network knows no class 'disk'" in refused.err
