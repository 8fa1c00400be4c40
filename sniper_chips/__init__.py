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
    from pipeline.cli.main import main as main
    from pipeline.commands.check import check as check
    from pipeline.commands.chips import chips as chips
    from pipeline.commands.negatives import negatives as negatives
    from pipeline.commands.verify import verify as verify
    from pipeline.exchange.export import export as export
    from pipeline.exchange.import_labels import import_labels as import_labels
    from pipeline.exchange.split import split as split
    from pipeline.exchange.views import views as views
    from pipeline.insight.manifests import manifests as manifests
    from pipeline.insight.report.report import report as report
    from pipeline.insight.show import show as show
    from pipeline.insight.suggest import suggest as suggest
    from pipeline.pyramid.search import search as search
    from schemas.settings import LoaderSettings as LoaderSettings
    from schemas.settings import Settings as Settings
    from schemas.settings import load_settings as load_settings
    from trainer.evaluation.evaluate import evaluate as evaluate
    from trainer.evaluation.recall import evaluate_proposals as evaluate_proposals
    from trainer.evaluation.score_results import score_results as score_results
    from trainer.evaluation.views import merge_views as merge_views
    from trainer.inference.detect import detect as detect
    from trainer.inference.detect import detect_into as detect_into
    from trainer.inference.export_model import export_model as export_model
    from trainer.inference.export_model import slim_checkpoint as slim_checkpoint
    from trainer.inference.predictor import Predictor as Predictor
    from trainer.insight.report_run import report_run as report_run
    from trainer.loading.cache import cache_of as cache_of
    from trainer.loading.dataset import ChipDataset as ChipDataset
    from trainer.loading.loader import BatchLoader as BatchLoader
    from trainer.loading.order import State as State
    from trainer.training.make_proposals import make_proposals as make_proposals
    from trainer.training.train import train as train

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
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    """Import a name of this module's list when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
