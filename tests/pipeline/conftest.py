"""A small generated data set, made once per session."""

from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.make_demo_data import make_demo_data


class DataSet(NamedTuple):
    annotations: Path
    images: Path


@pytest.fixture(scope="session")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Twelve scenes with small, medium and large objects, a crowd and an image without objects."""
    folder = tmp_path_factory.mktemp("demo")
    make_demo_data(folder, num_train=12, num_val=1)
    return DataSet(folder / "train.json", folder / "train")
