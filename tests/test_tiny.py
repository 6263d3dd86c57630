"""The tree is alive: a tiny checkpoint is packed, verified and answered from, as mlx-lm would.

The whole file runs in seconds; every other test may be skipped while the tree is being changed.
"""

from pathlib import Path

import numpy as np

import cython_kernels
from checkpoints import make_checkpoint, reference_logits
from kandiga_pack import convert, verify
from kandiga_run import load_engine

# float32 sums in another order than mlx's; a wrong operation moves these logits by more than 0.01.
LOGITS_TOLERANCE = 1e-3


def test_kernels_were_built_for_this_machine() -> None:
    assert cython_kernels.isa() in cython_kernels.available_isas()
    assert cython_kernels.cpu_count() >= 1


def test_pack_verify_run(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "qwen3_moe")
    container = tmp_path / "container"
    convert(checkpoint, container)
    assert verify(container, level="full", against=checkpoint).ok

    tokens = np.arange(1, 12, dtype=np.int32)
    engine = load_engine(container, engine="native", residency="owned")
    try:
        logits = engine.forward(tokens, engine.new_state(tokens.size), logits="all")
    finally:
        engine.close()
    expected = reference_logits(checkpoint, tokens).prefill
    np.testing.assert_allclose(logits, expected, atol=LOGITS_TOLERANCE)
