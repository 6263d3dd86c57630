"""The seam between computing a model and using it. Engines themselves are in native/, mlx_engine/.

seam.py      Engine, State, and what only some engines can do
options.py   what a user may choose; arithmetic.py, how quantized matrices are multiplied
loading.py   from a container to an engine
checks.py    what every engine refuses, in the same words
stats.py     counters of a run; time_split.py, where its time went
"""

from kandiga_run.engine.loading import NATIVE_ARCHITECTURES, has_apple_gpu, load_engine
from kandiga_run.engine.options import Check, EngineName, EngineOptions, Residency
from kandiga_run.engine.seam import (
    PREFILL_CHUNK,
    BatchingEngine,
    BudgetedEngine,
    Engine,
    ResumingEngine,
    RewindableState,
    SavingEngine,
    State,
    StateMark,
)

__all__ = [
    "NATIVE_ARCHITECTURES",
    "PREFILL_CHUNK",
    "BatchingEngine",
    "BudgetedEngine",
    "Check",
    "Engine",
    "EngineName",
    "EngineOptions",
    "Residency",
    "ResumingEngine",
    "RewindableState",
    "SavingEngine",
    "State",
    "StateMark",
    "has_apple_gpu",
    "load_engine",
]
