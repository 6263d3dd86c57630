"""Memory goes from slots to rows for a prompt and back, and a limit of the kernel's is kept."""

import json
from pathlib import Path

import numpy as np
import pytest

from checkpoints import family_config
from kandiga_pack.sources.converted.quantization import Quantization
from kandiga_pack.synth import synth
from kandiga_run.engine import load_engine
from kandiga_run.memory.use import memory_use
from kandiga_run.native.memory_plan import FEW_ROWS, MANY_ROWS
from memory_group import memory_group

MIB = 1 << 20
NUM_LAYERS, NUM_EXPERTS, TOP_K = 3, 64, 8
SHAPE = {
    "hidden_size": 1024,
    "moe_intermediate_size": 512,
    "num_hidden_layers": NUM_LAYERS,
    "num_experts": NUM_EXPERTS,
    "num_experts_per_tok": TOP_K,
    "vocab_size": 2048,
}
LIMIT_BYTES = 190 * MIB


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts of 0.9 MB, 170 MB of them: more than the budgets here."""
    folder = tmp_path_factory.mktemp("synthetic")
    config = folder / "config.json"
    config.write_text(json.dumps(family_config("qwen3_moe", SHAPE)))
    synth(str(config), folder / "container", quantization=Quantization(4, 64))
    return folder / "container"


def prompt(num_tokens: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 2048, num_tokens).astype(np.int32)


def test_a_prompt_reads_each_expert_once(container: Path) -> None:
    """With slots for a quarter of a layer's experts beside the rows of the whole prompt."""
    budget = memory_use().resident_bytes + 90 * MIB
    engine = load_engine(container, engine="native", memory_bytes=budget, state_tokens=1100)
    state = engine.new_state(1100)
    slots_before = engine._store.nbytes
    engine.forward(prompt(1024), state)
    assert engine.stats.experts_requested == NUM_LAYERS * NUM_EXPERTS
    assert engine.stats.experts_read == NUM_LAYERS * NUM_EXPERTS
    assert engine._store.nbytes == slots_before
    roomy = load_engine(container, engine="native", residency="mapped")
    expected = roomy.forward(prompt(1024), roomy.new_state(1100))
    # Chunks of other sizes are summed in another order.
    again = engine.forward(prompt(1024), engine.new_state(1100))
    np.testing.assert_allclose(again, expected, atol=1e-3 * np.abs(expected).max())
    engine.close()
    roomy.close()


def test_less_memory_means_smaller_chunks(container: Path) -> None:
    rows = []
    for extra in (45, 60, 400):
        budget = memory_use().resident_bytes + extra * MIB
        engine = load_engine(container, engine="native", memory_bytes=budget, state_tokens=64)
        with engine._plan.chunk_rows(MANY_ROWS) as chunk:
            rows.append(chunk)
            scratch = engine._plan._scratch.bytes_for(chunk)
            fixed = engine._plan._fixed
            assert fixed.total - fixed.buffers + scratch + engine._store.nbytes <= budget
        with engine._plan.chunk_rows(FEW_ROWS) as chunk:
            assert chunk == FEW_ROWS
        engine.close()
    assert rows[0] < rows[1] < rows[2] == MANY_ROWS


def test_buffers_of_a_prompt_are_given_back(container: Path) -> None:
    engine = load_engine(container, engine="native", residency="owned")
    state = engine.new_state(MANY_ROWS + 8)
    budget = memory_use().resident_bytes + 200 * MIB
    engine.close()
    engine = load_engine(
        container, engine="native", memory_bytes=budget, state_tokens=MANY_ROWS + 8
    )
    state = engine.new_state(MANY_ROWS + 8)
    before = memory_use().anonymous_bytes
    engine.forward(prompt(MANY_ROWS), state)
    after = memory_use().anonymous_bytes
    if before is None or after is None:
        pytest.skip("this system does not tell anonymous memory apart")
    taken = engine._plan._scratch.bytes_for(MANY_ROWS)
    assert taken > 60 * MIB
    # The slots may be filled, and the sequence is in memory.
    assert after - before < engine._store.nbytes + state.nbytes + 16 * MIB
    engine.close()


PROGRAM = """
import sys
import numpy as np
from kandiga_run.engine import load_engine
from kandiga_run.sizes import parse_size
engine = load_engine(sys.argv[1], engine="native", memory_bytes=int(sys.argv[2]), state_tokens=700)
state = engine.new_state(700)
rng = np.random.default_rng(3)
engine.forward(rng.integers(0, 2048, 600).astype(np.int32), state)
for token in rng.integers(0, 2048, 40).tolist():
    engine.forward(np.array([token], np.int32), state)
print(engine.stats.experts_read, engine._store.nbytes)
engine.close()
"""


def test_a_budget_holds_within_a_limit_of_the_same_size(container: Path) -> None:
    with memory_group() as group:
        done = group.run(["-c", PROGRAM, str(container), str(LIMIT_BYTES)], LIMIT_BYTES)
        assert done.stderr == ""
        experts_read, slots_bytes = map(int, done.stdout.split())
        assert experts_read > NUM_LAYERS * NUM_EXPERTS
        assert slots_bytes > 20 * MIB
        assert group.limit_hits == 0
        assert group.peak_bytes <= LIMIT_BYTES
