"""galenic fits biomedical foundation models to patients.

cohort = galenic.Cohort.open("cohort.csv")
run = galenic.run("ssf", "cohort.csv", backbone="facebook/dinov2-small")
run.metrics["auroc"]
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# MKL would round a row of a product by how many rows stand beside it: on some processors a sample
# got other features in another batch. It reads this at its first product. Products as networks have
# them take no longer; those of a few very long rows do.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

if TYPE_CHECKING:
    from galenic.data.cohort import Cohort
    from galenic.launch import compare, predict, run
    from galenic.models.backbone import open_backbone

_HOMES = {
    "Cohort": "galenic.data.cohort",
    "compare": "galenic.launch",
    "open_backbone": "galenic.models.backbone",
    "predict": "galenic.launch",
    "run": "galenic.launch",
}

__all__ = ["Cohort", "__version__", "compare", "open_backbone", "predict", "run"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: `galenic ls` must not wait for torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'galenic' has no attribute '{name}'")
