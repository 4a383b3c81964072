"""Consilience: learning from multimodal data that nobody has labelled reliably.

Names are loaded on first use, so that ``import consilience`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Table": "consilience.data.table",
    "import_table": "consilience.data.importers",
    "check": "consilience.data.check",
    "Run": "consilience.training.api",
    "TrainConfig": "consilience.training.config",
    "train": "consilience.training.api",
    "resume": "consilience.training.api",
    "load": "consilience.training.api",
    "embed": "consilience.embedding.job",
    "build_index": "consilience.search.search",
    "search": "consilience.search.search",
    "evaluate": "consilience.evaluation.evaluate",
    "reproduce": "consilience.evaluation.reproduce",
    "RoMoConfig": "consilience.methods.romo",
    "PC2Config": "consilience.methods.pc2",
    "NCRConfig": "consilience.methods.ncr",
    "ContrastiveConfig": "consilience.methods.contrastive",
    "audit": "consilience.audit.api",
    "CommonSpace": "consilience.training.estimator",
}
__all__ = [
    "CommonSpace",
    "ContrastiveConfig",
    "NCRConfig",
    "PC2Config",
    "RoMoConfig",
    "Run",
    "Table",
    "TrainConfig",
    "__version__",
    "audit",
    "build_index",
    "check",
    "embed",
    "evaluate",
    "import_table",
    "load",
    "reproduce",
    "resume",
    "search",
    "train",
]

if TYPE_CHECKING:
    from consilience.audit.api import audit
    from consilience.data.check import check
    from consilience.data.importers import import_table
    from consilience.data.table import Table
    from consilience.embedding.job import embed
    from consilience.evaluation.evaluate import evaluate
    from consilience.evaluation.reproduce import reproduce
    from consilience.methods.contrastive import ContrastiveConfig
    from consilience.methods.ncr import NCRConfig
    from consilience.methods.pc2 import PC2Config
    from consilience.methods.romo import RoMoConfig
    from consilience.search.search import build_index, search
    from consilience.training.api import Run, load, resume, train
    from consilience.training.config import TrainConfig
    from consilience.training.estimator import CommonSpace


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'consilience' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
