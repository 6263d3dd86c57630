"""Packed checkpoints and what plain mlx-lm answers to them, made once for a whole test session."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import Reference, make_checkpoint, reference_logits
from kandiga_pack import convert
from kandiga_run.container import Model
from kandiga_run.engine import EngineOptions
from kandiga_run.mlx_engine.engine import MlxEngine

# Longer than the sliding windows and chunks of the tiny configs (8), so that both wrap.
PROMPT = np.random.default_rng(7).integers(0, 256, 27).astype(np.int32)
NO_REFERENCE = Reference(*(np.empty(0) for _ in range(3)))


@dataclass(frozen=True)
class Packed:
    """One tiny checkpoint: as mlx-lm reads it, as container, and the reference answers."""

    folder: Path
    container: Path
    reference: Reference

    @contextmanager
    def engine(self, options: EngineOptions | None = None, **settings: Any) -> Iterator[MlxEngine]:
        """Open the container in the mlx engine; settings go to its constructor."""
        engine = MlxEngine(Model.open(self.container), options or EngineOptions(), **settings)
        try:
            yield engine
        finally:
            engine.close()


PackedFactory = Callable[..., Packed]


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedFactory:
    """Return make(family, **make_checkpoint arguments) -> Packed.

    `reference=False` leaves the reference empty, for what plain mlx-lm cannot run.
    """
    made: dict[str, Packed] = {}

    def make(family: str, *, reference: bool = True, **arguments: Any) -> Packed:
        key = repr((family, sorted(arguments.items(), key=repr)))
        if key not in made:
            root = tmp_path_factory.mktemp(family)
            folder = make_checkpoint(root / "checkpoint", family, **arguments)
            convert(folder, root / "container")
            answers = reference_logits(folder, PROMPT) if reference else NO_REFERENCE
            made[key] = Packed(folder, root / "container", answers)
        return made[key]

    return make
