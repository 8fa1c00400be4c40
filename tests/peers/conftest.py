"""What the tests with other programs share. They run in .venv-peers: `make test-peers`."""

from pathlib import Path

import pytest

from pipeline.commands.chips import chips
from schemas.settings import ChipSettings, Settings
from scripts.make_demo_data import make_demo_data


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is fetched, and nothing is written to the home folder."""
    home = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("YOLO_OFFLINE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        for name in ("YOLO_CONFIG_DIR", "HF_HOME", "MPLCONFIGDIR"):
            patch.setenv(name, home)
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images, train and val, with their annotations. Not to be changed."""
    folder = tmp_path_factory.mktemp("scenes")
    make_demo_data(folder, num_train=6, num_val=2)
    return folder


@pytest.fixture(scope="session")
def data(scenes: Path) -> Path:
    """Small chips of the images for training. Not to be changed."""
    settings = ChipSettings.model_validate({"size": 160, "scales": [1, 0.5, {"long_side": 160}]})
    chips(scenes / "train.json", scenes / "train", scenes / "chips", Settings(chips=settings))
    return scenes / "chips"
