from pathlib import Path

import pytest
import torch
import torchvision

from schemas.errors import DataError, UsageError
from schemas.settings import ModelSettings
from tests.trainer.chips import SLIM, slim_detector
from trainer.model import Detector
from trainer.runtime.checkpoint import Checkpoint, write_checkpoint
from trainer.runtime.weights import load_weights, set_norm_policy

CLASSES = ["disc", "square", "triangle", "star"]
"""Of `slim_detector`, by label from 1."""


def checkpoint_of(model: Detector, classes: list[str], *, ema: dict[str, torch.Tensor] | None = None) -> Checkpoint:
    return Checkpoint(
        model=model.state_dict(),
        ema=ema,
        optimizer={},
        scaler={},
        step=14,
        loader=(0, 2, 0),
        settings={"model": model.settings.model_dump(mode="json"), "train": {"epochs": 2}},
        norm="frozen",
        precision="fp32",
        rpn_only=False,
        categories=list(enumerate(classes, 1)),
        chips={"size": 96},
        data={},
        best_ap=-1.0,
    )


DEFORMABLE = {"neck": "c5", "deformable": True}


@pytest.mark.parametrize(
    "changes", [{}, {"backbone": "mobilenet_v2", "levels": (2, 4)}, DEFORMABLE], ids=["fpn", "mobilenet", "deformable"]
)
def test_load_weights__from_torchvisions_file(changes: dict[str, object], tmp_path: Path):
    settings = SLIM.model_copy(update=changes)
    theirs = getattr(torchvision.models, settings.backbone)(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    model = slim_detector(settings=settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, str(tmp_path / "net.pth"), CLASSES)
    assert "head            0 of 8 tensors taken" in report
    assert "start anew" in report
    for name, value in model.state_dict().items():
        is_theirs = "body" in name and "offsets" not in name
        expected = theirs.state_dict()[name.removeprefix("backbone.body.")] if is_theirs else before[name]
        assert value.equal(expected), name


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_load_weights__refuses_values_that_are_not_finite(value: float, tmp_path: Path):
    spoilt = slim_detector()
    with torch.no_grad():
        spoilt.rpn.logits.bias[1] = value
    write_checkpoint(tmp_path / "1.pt", checkpoint_of(spoilt, CLASSES))
    with pytest.raises(DataError, match=r"1 tensors hold values that are NaN or infinite, first rpn\.logits\.bias"):
        load_weights(slim_detector(), str(tmp_path / "1.pt"), CLASSES)


def test_load_weights__tells_of_the_focus_head_where_there_is_one(tmp_path: Path):
    settings = SLIM.model_copy(update={"focus": True})
    focusing = slim_detector(settings=settings)
    for number, theirs in enumerate((focusing, slim_detector())):
        write_checkpoint(tmp_path / f"{number}.pt", checkpoint_of(theirs, CLASSES))
    assert "  focus           6 of 6 tensors taken" in load_weights(focusing, str(tmp_path / "0.pt"), CLASSES)
    assert "  focus           0 of 6 tensors taken" in load_weights(focusing, str(tmp_path / "1.pt"), CLASSES)
    assert "  focus  " not in load_weights(slim_detector(), str(tmp_path / "1.pt"), CLASSES)


@pytest.mark.parametrize("class_boxes", [False, True])
def test_load_weights__rows_of_the_head_follow_the_names_of_classes(class_boxes: bool, tmp_path: Path):
    """As many classes in another order, one of them new: every row is that of its class."""
    settings = SLIM.model_copy(update={"class_boxes": class_boxes})
    theirs = slim_detector(seed=1, settings=settings)
    torch.nn.init.normal_(theirs.head.scores.bias)
    old = ["square", "disc", "hexagon", "star"]
    write_checkpoint(tmp_path / "step-00000014.pt", checkpoint_of(theirs, old))
    model = slim_detector(settings=settings)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, str(tmp_path), CLASSES)  # the folder of a run serves, too
    assert "3 of 4 taken by name: disc, square, star" in report
    assert "new classes     triangle" in report
    assert "not needed      hexagon" in report
    for layer in ("weight", "bias"):
        ours, given, first = (s[f"head.scores.{layer}"] for s in (model.state_dict(), theirs.state_dict(), fresh))
        rows = [given[0], given[2], given[1], first[3], given[4]]
        assert ours.equal(torch.stack(rows))
        ours, given, first = (s[f"head.deltas.{layer}"] for s in (model.state_dict(), theirs.state_dict(), fresh))
        if class_boxes:
            rows = [given[4:8], given[0:4], first[8:12], given[12:16]]
        assert ours.equal(torch.cat(rows) if class_boxes else given)
    for name, value in model.state_dict().items():
        assert name.startswith("head.scores.") or class_boxes or value.equal(theirs.state_dict()[name])


def test_load_weights__more_classes_than_before_and_a_name_that_comes_twice(tmp_path: Path):
    theirs = Detector(SLIM, 2, 96)
    write_checkpoint(tmp_path / "last.pt", checkpoint_of(theirs, ["star", "disc"]))
    model = slim_detector()
    load_weights(model, str(tmp_path / "last.pt"), ["disc", "disc", "triangle", "star"])
    rows, given = model.head.scores.weight, theirs.head.scores.weight
    assert rows[4].equal(given[1])
    assert not rows[1].equal(given[2])
    assert not rows[2].equal(given[2])


def test_load_weights__takes_the_average_that_is_scored(tmp_path: Path):
    model, average = slim_detector(seed=1), slim_detector(seed=2)
    write_checkpoint(tmp_path / "best.pt", checkpoint_of(model, CLASSES, ema=average.state_dict()))
    ours = slim_detector()
    assert "the average of weights after step 14" in load_weights(ours, str(tmp_path), CLASSES)
    for name, value in ours.state_dict().items():
        assert value.equal(average.state_dict()[name]), name


@pytest.mark.parametrize(
    ("around", "prefix"), [("state_dict", "module."), ("model", "module._orig_mod."), (None, "model.")]
)
def test_load_weights__looks_into_files_of_others(around: str | None, prefix: str, tmp_path: Path):
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    content = {f"{prefix}{name}": value for name, value in theirs.items()}
    torch.save({around: content, "epoch": 3} if around else content, tmp_path / "net.pth")
    model = slim_detector()
    assert "fc.weight [1000, 512]" in load_weights(model, str(tmp_path / "net.pth"), CLASSES)
    assert model.backbone.body.state_dict()["layer4.1.conv2.weight"].equal(theirs["layer4.1.conv2.weight"])


def test_load_weights__from_a_detector_of_torchvision(tmp_path: Path):
    """Its RPN and its box head compute the same here: the order of a pooled map's numbers is turned."""
    theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)
    for layer in (theirs.roi_heads.box_head.fc6, theirs.roi_heads.box_predictor.cls_score):
        torch.nn.init.normal_(layer.bias)
    torch.save({"model": theirs.state_dict()}, tmp_path / "detector.pth")
    settings = ModelSettings(backbone="resnet50")
    model = Detector(settings, 4, 96)
    report = load_weights(model, str(tmp_path / "detector.pth"), CLASSES)
    assert "rpn             6 of 6 tensors taken" in report
    assert "head            4 of 8 tensors taken" in report
    assert "start anew      head.scores.weight, head.scores.bias, head.deltas.weight, head.deltas.bias" in report
    pooled = torch.randn(3, 256, 7, 7)
    with torch.no_grad():
        expected = theirs.roi_heads.box_head(pooled)
        ours = model.head.layers(pooled.permute(0, 2, 3, 1).flatten(1))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        level = torch.randn(1, 256, 6, 6)
        logits, _ = theirs.rpn.head([level])
        ours_logits, _ = model.rpn.everywhere([level])
        torch.testing.assert_close(ours_logits, logits[0].permute(0, 2, 3, 1).flatten(1), rtol=1e-4, atol=1e-4)
    neck = model.neck.state_dict()
    assert neck["layer_blocks.3.0.weight"].equal(theirs.backbone.fpn.state_dict()["layer_blocks.3.0.weight"])


def test_load_weights__names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = slim_detector()
    with pytest.raises(UsageError, match="neither a file, nor a folder of a run, nor a torchvision name"):
        load_weights(model, "ResNet18_Weights.NOPE", CLASSES)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(DataError, match="nor a file of weights"):
        load_weights(model, str(tmp_path / "text.pth"), CLASSES)
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "other.pth")
    with pytest.raises(DataError, match="not weights of this network"):
        load_weights(
            slim_detector(settings=SLIM.model_copy(update={"backbone": "resnet50"})),
            str(tmp_path / "other.pth"),
            CLASSES,
        )
    torch.save({"weight": torch.zeros(1)}, tmp_path / "foreign.pth")
    with pytest.raises(DataError, match="are missing there"):
        load_weights(model, str(tmp_path / "foreign.pth"), CLASSES)
    for content in ({"epoch": 3}, {0: torch.zeros(1)}):
        torch.save(content, tmp_path / "nameless.pth")
        with pytest.raises(DataError, match="expected a state dict"):
            load_weights(model, str(tmp_path / "nameless.pth"), CLASSES)

    def offline(*args: object, **options: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(DataError, match="pass its path"):
        load_weights(model, "ResNet18_Weights.IMAGENET1K_V1", CLASSES)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_set_norm_policy__what_learns(backbone: str):
    model = slim_detector(settings=SLIM.model_copy(update={"backbone": backbone}))
    stages = [torch.nn.ModuleList(stage) for stage in model.backbone.stages()]

    def learning(stage: torch.nn.Module) -> tuple[bool, bool, bool]:
        """Whether its convolutions learn, its norms' parameters do, its norms use the batch."""
        norms = [m for m in stage.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        convs = [m for m in stage.modules() if isinstance(m, torch.nn.Conv2d)]
        states = {(c.weight.requires_grad, n.weight.requires_grad, n.training) for c in convs for n in norms}
        assert len(states) == 1
        return states.pop()

    for policy, freeze, stem, rest in (
        ("train", True, (False, False, False), (True, True, True)),
        ("train", False, (True, True, True), (True, True, True)),
        ("frozen", True, (False, False, False), (True, False, False)),
        ("frozen", False, (True, False, False), (True, False, False)),
    ):
        set_norm_policy(model, policy, freeze_stem=freeze)  # type: ignore[arg-type]
        for _ in range(2):
            assert [learning(stage) for stage in stages] == [stem] * 2 + [rest] * 3
            model.eval().train()


def test_set_norm_policy__sync():
    model = slim_detector()
    set_norm_policy(model, "sync")
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    assert any(norm.training for norm in norms)
    assert not norms[0].training
