"""One question in this process: python -m scripts.gpu_check.child MODULE:FUNCTION DEVICE WORK FOUND.

Each dictionary of figures that the function yields becomes a line of FOUND at once. The key "skipped" tells why a
question could not be answered.
"""

import importlib
import json
import sys
from pathlib import Path

from scripts.gpu_check.setting import Setting, SkippedError

OURS = ("sniper_chips", "pipeline", "trainer", "schemas", "scripts", "tests")


def main() -> None:
    """Answer the question."""
    name, device, work, found = sys.argv[1:]
    module, _, function = name.partition(":")
    if device == "cuda":
        import torch

        # as in a training (trainer/runtime/ranks.py)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with Path(found).open("w", buffering=1) as file:
        try:
            for figures in getattr(importlib.import_module(module, "scripts.gpu_check"), function)(
                Setting(device, Path(work))
            ):
                file.write(json.dumps(figures) + "\n")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] in OURS:
                raise  # a fault of ours, and no package that is missing
            file.write(json.dumps({"skipped": f"needs the package {error.name}"}) + "\n")
        except SkippedError as error:
            file.write(json.dumps({"skipped": str(error)}) + "\n")


if __name__ == "__main__":
    main()
