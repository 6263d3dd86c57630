"""Containers whose experts are holes: they open, compute, and take the memory of real ones."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.full_size_budget import division_of_a_budget, write_with_holes
from checkpoints import make_checkpoint
from kandiga_run.engine import load_engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("holes")
    checkpoint = make_checkpoint(folder / "checkpoint", "qwen3_moe")
    write_with_holes(str(checkpoint / "config.json"), folder / "model")
    return folder / "model"


def test_experts_take_no_disk_and_can_be_computed(model: Path) -> None:
    files = list(model.glob("*.kexp"))
    assert sum(path.stat().st_blocks * 512 for path in files) < sum(
        path.stat().st_size for path in files
    )
    engine = load_engine(model, engine="native", residency="owned", check="always")
    tokens = np.arange(4, dtype=np.int32)
    assert np.isfinite(engine.forward(tokens, engine.new_state(4))).all()
    engine.close()


def test_the_budget_is_divided_as_for_a_real_one(model: Path) -> None:
    told = division_of_a_budget(model, 64)
    assert told.startswith("this process takes ")
    assert "the KV cache of 64 tokens" in told
