from pathlib import Path

import pytest
import torch
import torchvision

from schemas.errors import DataError, UsageError
from schemas.settings import ModelSettings
from tests.trainer.chips import SLIM, slim_detector
from trainer.model import Detector
from trainer.runtime.weights import load_weights, set_norm_policy


@pytest.mark.parametrize("settings", [SLIM, SLIM.model_copy(update={"backbone": "mobilenet_v2", "levels": (2, 4)})])
def test_load_weights__from_torchvisions_file(settings: ModelSettings, tmp_path: Path):
    theirs = getattr(torchvision.models, settings.backbone)(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    model = slim_detector(settings=settings)
    fresh = load_weights(model, str(tmp_path / "net.pth"))
    assert all(name.startswith(("neck.", "rpn.", "head.")) for name in fresh)
    for name, value in model.backbone.body.state_dict().items():
        assert value.equal(theirs.state_dict()[name])


def test_load_weights__own_checkpoint_with_other_classes(tmp_path: Path):
    torch.manual_seed(1)
    before = Detector(SLIM, 7, 96)
    torch.save({"model": before.state_dict()}, tmp_path / "last.pt")
    model = slim_detector()
    assert load_weights(model, str(tmp_path / "last.pt")) == ["head.scores.weight", "head.scores.bias"]
    for name, value in model.state_dict().items():
        assert name.startswith("head.scores.") or value.equal(before.state_dict()[name])
    again = Detector(SLIM, 7, 96)
    assert load_weights(again, str(tmp_path / "last.pt")) == []


def test_load_weights__names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = slim_detector()
    with pytest.raises(UsageError, match="neither a file nor a torchvision name"):
        load_weights(model, "ResNet18_Weights.NOPE")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(DataError, match="not a file of weights"):
        load_weights(model, str(tmp_path / "text.pth"))
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "other.pth")
    with pytest.raises(DataError, match="not weights of this network"):
        load_weights(
            slim_detector(settings=SLIM.model_copy(update={"backbone": "resnet50"})), str(tmp_path / "other.pth")
        )
    torch.save({"weight": torch.zeros(1)}, tmp_path / "foreign.pth")
    with pytest.raises(DataError, match="is missing"):
        load_weights(model, str(tmp_path / "foreign.pth"))

    def offline(*args: object, **options: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(DataError, match="pass its path"):
        load_weights(model, "ResNet18_Weights.IMAGENET1K_V1")


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
