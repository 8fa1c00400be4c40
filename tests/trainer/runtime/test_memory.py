"""Where memory runs out, one message says what was in use and which setting to lower."""

import pytest
import torch

from trainer.runtime.memory import OutOfMemoryError, explained_memory, in_use

CPU = torch.device("cpu")


def test_explained_memory__of_a_cpu() -> None:
    with pytest.raises(OutOfMemoryError) as caught, explained_memory(CPU, lambda: "lower this"):
        torch.empty(2**55)
    text = str(caught.value)
    assert text.startswith("out of memory on cpu, ")
    assert "GiB in use: lower this" in text
    assert "allocate" in text


CUDNN = (
    "GET was unable to find an engine to execute this computation",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError(), *map(RuntimeError, CUDNN)]
)
def test_explained_memory__of_pytorch_and_of_python(error: Exception) -> None:
    with pytest.raises(OutOfMemoryError, match="lower this"), explained_memory(CPU, lambda: "lower this"):
        raise error


def test_explained_memory__another_fault_passes() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), explained_memory(CPU, lambda: "lower this"):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_in_use__is_a_size() -> None:
    assert float(in_use(CPU).split()[0]) > 0
