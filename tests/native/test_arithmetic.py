"""--arithmetic: each mode is used, close to exact by as much as its rounding, and told."""

from typing import Literal

import numpy as np
import pytest

from kandiga_run.engine import load_engine
from kandiga_run.errors import RunError
from packed import PackedModels

PROMPT = np.random.default_rng(3).integers(3, 320, 40).astype(np.int32)
#: Largest difference of a logit from exact, median over positions (at some, a tiny random model
#: chooses another expert). Seen on logits up to 4: 2e-4 to 4e-4, and 0.06 to 0.11. A step is 2^-15
#: or 2^-7 of the largest of 32 activations, and a few dozen matrices round.
TOLERANCES = {"int16": 2e-3, "int8": 0.4}


def logits_in(packed: PackedModels, arithmetic: Literal["exact", "int16", "int8"]) -> np.ndarray:
    model = packed("qwen3_5_moe")
    engine = load_engine(
        model.container, engine="native", kv_dtype="f32", arithmetic=arithmetic, check="off"
    )
    assert engine.stats.arithmetic == arithmetic
    logits = engine.forward(PROMPT, engine.new_state(PROMPT.size), logits="all")
    engine.close()
    return logits


@pytest.mark.parametrize("arithmetic", ["int16", "int8"])
def test_close_to_exact(packed: PackedModels, arithmetic: Literal["int16", "int8"]) -> None:
    difference = np.abs(logits_in(packed, arithmetic) - logits_in(packed, "exact"))
    median = np.median(difference.max(axis=1))
    assert TOLERANCES[arithmetic] / 100 < median < TOLERANCES[arithmetic]


def test_the_mlx_engine_refuses(packed: PackedModels) -> None:
    model = packed("qwen3_5_moe")
    with pytest.raises(RunError, match="--arithmetic int8: the mlx engine uses floating"):
        load_engine(model.container, engine="mlx", arithmetic="int8")
