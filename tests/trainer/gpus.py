"""What tests of a GPU share."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

CUDA = torch.device("cuda")
Test = TypeVar("Test", bound=Callable[..., None])


def needs_gpu(test: Test) -> Test:
    """Mark a test that compares a GPU's results with a CPU's; it is skipped where there is none."""
    skipped: Test = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")(test)
    return pytest.mark.gpu(skipped)
