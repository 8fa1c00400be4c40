"""Evaluation on whole images: perfect detections score 1, ids come back, ranks and odd images change nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

import pipeline.pyramid.search
from pipeline.storage import locked
from schemas.errors import DataError, UsageError
from schemas.settings import DetectSettings, Settings, load_settings
from tests.trainer.processes import run_ranks
from tests.trainer.runs import TINY_CHIPS
from trainer.evaluation.coco_scores import describe_scores
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.recall import evaluate_proposals
from trainer.inference.detect import detect
from trainer.runtime.checkpoint import read_checkpoint, write_checkpoint


def test_evaluate__writes_results_a_fresh_pycocotools_reads_and_two_ranks_change_nothing(
    demo: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = (str(path) for path in (checkpoint, demo / "val.json", demo / "val"))  # text serves as well
    report = evaluate(*paths, out=str(tmp_path / "one.json"))
    assert report is not None
    assert report.summary["AP"] is not None
    source_ids = {c["id"] for c in json.loads((demo / "val.json").read_bytes())["categories"]}
    assert report.detections.category_id is not None
    assert set(report.detections.category_id.tolist()) <= source_ids
    assert source_ids == {1, 3, 7}
    truth = COCO(str(demo / "val.json"))
    assert len(truth.loadRes(str(tmp_path / "one.json")).anns) == len(report.detections.scores)
    text = describe_scores(report.summary, report.notes)
    assert "AP50" in text
    ap50 = report.summary["AP50[disc]"]
    assert any(line.split()[0] == "disc" and line.split()[2] == f"{ap50:.3f}" for line in text.splitlines() if line)
    monkeypatch.setattr(pipeline.pyramid.search, "SPAN", 2)  # so that both ranks have images
    evaluate(checkpoint, demo / "val.json", demo / "val", out=tmp_path / "one.json")
    code = (
        "import torch, sys; torch.set_num_threads(1)\nfrom pathlib import Path\n"
        "import pipeline.pyramid.search\nfrom trainer.evaluation.evaluate import evaluate\n"
        "pipeline.pyramid.search.SPAN = 2\n"
        "evaluate(*map(Path, sys.argv[1:4]), out=Path(sys.argv[4]))"
    )
    script = tmp_path / "evaluate.py"
    script.write_text(code)
    run_ranks(2, script, checkpoint, demo / "val.json", demo / "val", tmp_path / "two.json")
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()


def test_evaluate__odd_images_cost_only_themselves(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    content = json.loads((demo / "val.json").read_bytes())
    images = sorted(content["images"], key=lambda image: int(image["id"]))
    for image in images[2:]:
        (tmp_path / image["file_name"]).write_bytes((demo / "val" / image["file_name"]).read_bytes())
    (tmp_path / images[1]["file_name"]).write_bytes(b"not an image")
    report = evaluate(checkpoint, demo / "val.json", tmp_path)
    assert report is not None
    assert sorted(reject.reason for reject in report.rejects) == ["missing_file", "not_an_image"]
    whole = evaluate(checkpoint, demo / "val.json", demo / "val")
    assert whole is not None
    left = {image["id"] for image in images[2:]}
    found = list(whole.detections.records())
    assert found
    assert list(report.detections.records()) == [d for d in found if d["image_id"] in left]


def test_evaluate__refuses_data_of_other_categories(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    content = json.loads((demo / "val.json").read_bytes())
    content["categories"] = [{"id": 99, "name": "other"}]
    content["annotations"] = []
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"has categories 99 \(other\), the network knows 1 \(disc\)"):
        evaluate(checkpoint, tmp_path / "other.json", demo / "val")
    with pytest.raises(UsageError, match="no such image folder"):
        evaluate(checkpoint, demo / "val.json", tmp_path / "nowhere")


def test_evaluate__names_what_was_left_out_and_what_is_odd(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    content = json.loads((demo / "val.json").read_bytes())
    content["annotations"][0]["bbox"][2] = -1
    content["categories"][0]["name"] = content["categories"][1]["name"]
    content["categories"].append({"id": 50, "name": "unheard of"})
    (tmp_path / "odd.json").write_text(json.dumps(content))
    settings = Settings(detect=DetectSettings(max_detections=1, by_area=False))
    report = evaluate(checkpoint, tmp_path / "odd.json", demo / "val", settings, max_dets=1000)
    assert report is not None
    assert [reject.kind for reject in report.rejects] == ["annotation"]
    text = describe_scores(report.summary, report.notes)
    for said in (
        "knows no category 50 (unheard of)",
        "have other names than in training, 1: ",
        "more boxes than the detections that are kept",
    ):
        assert said in text
    names = [line for line in report.summary if line.startswith("AP[")]
    assert len(names) == len(content["categories"])
    _, _, table = text.partition("class ")
    heading, *rows = table.splitlines()
    assert heading.split() == ["AP", "AP50", "F1", "score", "precision", "recall"]
    shown = [row for row in rows if row and not row.startswith(("WARNING", "F1: "))]
    assert len(shown) == len(names)


@pytest.mark.parametrize("run", [evaluate, evaluate_proposals])
def test_evaluate__does_not_write_over_what_it_reads_or_others_wrote(
    run: Callable[..., Any], demo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    truth = tmp_path / "val.summary.json"
    truth.write_bytes((demo / "val.json").read_bytes())
    for out in (truth, tmp_path / "val.json"):
        with pytest.raises(UsageError, match="would be written over, but is read as"):
            run(checkpoint, truth, demo / "val", out=out)
    mine = tmp_path / "mine.json"
    mine.write_bytes(truth.read_bytes())
    with pytest.raises(UsageError, match="holds no results of this command"):
        run(checkpoint, truth, demo / "val", out=mine)
    assert mine.read_bytes() == truth.read_bytes()
    assert truth.read_bytes() == (demo / "val.json").read_bytes()


def test_evaluate__refuses_other_settings_and_the_rpn_alone(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = load_settings(None, ("chips.scales=[1, 2]", "chips.ranges=[[0, 9], [5, null]]", "model.width=99"))
    size = load_settings(None, ("chips.size=128",))
    with pytest.raises(UsageError, match=r"chips.size: 64 there, 128 given"):
        evaluate(checkpoint, demo / "val.json", demo / "val", size)
    with pytest.raises(UsageError, match=r"(?s)chips.scales: \[0.5,.*\[1.*given.*model.width: 16 there, 99 given"):
        evaluate(checkpoint, demo / "val.json", demo / "val", other)
    same = load_settings(None, (*TINY_CHIPS, "model.width=16"))
    assert evaluate(checkpoint, demo / "val.json", demo / "val", same) is not None
    old = read_checkpoint(checkpoint)
    del old.settings["model"]["deformable"]  # as of a program that had no such setting
    write_checkpoint(tmp_path / "old.pt", old)
    with pytest.raises(UsageError, match=r"model.deformable: false there, true given"):
        evaluate(tmp_path / "old.pt", demo / "val.json", demo / "val", load_settings(None, ("model.deformable=true",)))
    write_checkpoint(tmp_path / "rpn.pt", read_checkpoint(checkpoint)._replace(rpn_only=True))
    with pytest.raises(DataError, match="is the RPN alone"):
        evaluate(tmp_path / "rpn.pt", demo / "val.json", demo / "val")
    with pytest.raises(DataError, match="is the RPN alone"):
        detect(tmp_path / "rpn.pt", demo / "val")


def test_evaluate__two_writers_of_one_file_are_refused(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    held = locked(tmp_path, "sniper evaluate", ".found.json.lock")
    with held, pytest.raises(UsageError, match="`sniper evaluate` .* is writing here"):
        evaluate(checkpoint, demo / "val.json", demo / "val", out=out)
    assert not out.exists()
