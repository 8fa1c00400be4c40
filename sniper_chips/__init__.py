"""The `sniper` command and the Python functions behind it: `from sniper_chips import chips, train, detect`.

Each name is imported from its own module when it is first used, so that building chips needs no torch.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The packages beside this one have common names. The user's own `pipeline.py`, `trainer.py` or `schemas.py` on
# PYTHONPATH must not be taken for them, here or in the worker processes, which inherit this path.
_here = str(Path(__file__).resolve().parents[1])
if sys.path[:1] != [_here]:
    sys.path.insert(0, _here)

if TYPE_CHECKING:
    from pipeline.cli.main import main
    from pipeline.commands.check import check
    from pipeline.commands.chips import chips
    from pipeline.commands.negatives import negatives
    from pipeline.commands.verify import verify
    from pipeline.exchange.export import export
    from pipeline.exchange.import_labels import import_labels
    from pipeline.exchange.split import split
    from pipeline.exchange.views import views
    from pipeline.insight.manifests import manifests
    from pipeline.insight.report.report import report
    from pipeline.insight.show import show
    from pipeline.insight.suggest import suggest
    from pipeline.pyramid.search import search
    from schemas.settings import LoaderSettings, Settings, load_settings
    from trainer.evaluation.evaluate import evaluate
    from trainer.evaluation.recall import evaluate_proposals
    from trainer.evaluation.score_results import score_results
    from trainer.evaluation.views import merge_views
    from trainer.inference.detect import detect, detect_into
    from trainer.inference.export_model import export_model, slim_checkpoint
    from trainer.inference.predictor import Predictor
    from trainer.insight.report_run import report_run
    from trainer.loading.cache import cache_of
    from trainer.loading.dataset import ChipDataset
    from trainer.loading.loader import BatchLoader
    from trainer.loading.order import State
    from trainer.training.make_proposals import make_proposals
    from trainer.training.train import train

__all__ = [
    "BatchLoader",
    "ChipDataset",
    "LoaderSettings",
    "Predictor",
    "Settings",
    "State",
    "cache_of",
    "check",
    "chips",
    "detect",
    "detect_into",
    "evaluate",
    "evaluate_proposals",
    "export",
    "export_model",
    "import_labels",
    "load_settings",
    "main",
    "make_proposals",
    "manifests",
    "merge_views",
    "negatives",
    "report",
    "report_run",
    "score_results",
    "search",
    "show",
    "slim_checkpoint",
    "split",
    "suggest",
    "train",
    "verify",
    "views",
]

_MODULES = {
    "BatchLoader": "trainer.loading.loader",
    "ChipDataset": "trainer.loading.dataset",
    "LoaderSettings": "schemas.settings",
    "Predictor": "trainer.inference.predictor",
    "Settings": "schemas.settings",
    "State": "trainer.loading.order",
    "cache_of": "trainer.loading.cache",
    "check": "pipeline.commands.check",
    "chips": "pipeline.commands.chips",
    "detect": "trainer.inference.detect",
    "detect_into": "trainer.inference.detect",
    "evaluate": "trainer.evaluation.evaluate",
    "evaluate_proposals": "trainer.evaluation.recall",
    "export": "pipeline.exchange.export",
    "export_model": "trainer.inference.export_model",
    "import_labels": "pipeline.exchange.import_labels",
    "load_settings": "schemas.settings",
    "main": "pipeline.cli.main",
    "make_proposals": "trainer.training.make_proposals",
    "manifests": "pipeline.insight.manifests",
    "merge_views": "trainer.evaluation.views",
    "negatives": "pipeline.commands.negatives",
    "report": "pipeline.insight.report.report",
    "report_run": "trainer.insight.report_run",
    "score_results": "trainer.evaluation.score_results",
    "search": "pipeline.pyramid.search",
    "show": "pipeline.insight.show",
    "slim_checkpoint": "trainer.inference.export_model",
    "split": "pipeline.exchange.split",
    "suggest": "pipeline.insight.suggest",
    "train": "trainer.training.train",
    "verify": "pipeline.commands.verify",
    "views": "pipeline.exchange.views",
}


def __getattr__(name: str) -> Any:
    """Import a name of this module's list when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
