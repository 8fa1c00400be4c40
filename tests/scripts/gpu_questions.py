"""Questions of a check of GPUs that end in every way there is."""

import subprocess
import time
from collections.abc import Iterator
from typing import Any

from scripts.gpu_check.setting import Setting, SkippedError


def answers(setting: Setting) -> Iterator[dict[str, Any]]:
    yield {"device": setting.device_type}
    yield {"ratio": 1.25, "rows": ["first", "second"]}


def fails(setting: Setting) -> Iterator[dict[str, Any]]:
    yield {"before": 1}
    raise ValueError("a bug")


def hangs(setting: Setting) -> Iterator[dict[str, Any]]:
    yield {"child": subprocess.Popen(["sleep", "600"]).pid}
    time.sleep(600)


def lacks_a_package(setting: Setting) -> Iterator[dict[str, Any]]:
    yield {"before": 2}
    import no_such_package  # noqa: F401


def imports_what_we_do_not_have(setting: Setting) -> Iterator[dict[str, Any]]:
    yield {"before": 3}
    import trainer.no_such_module  # noqa: F401


def refuses(setting: Setting) -> Iterator[dict[str, Any]]:
    yield {"before": 4}
    raise SkippedError("it is Sunday")
