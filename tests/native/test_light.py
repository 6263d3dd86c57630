"""The native path starts light: neither mlx nor transformers, a fraction of a second."""

import json
import subprocess
import sys

from packed import PackedModels

# CPU time; measured on x86-64: 0.25 s and 45 MiB, nearly all of it Python and numpy. The bars
# leave room for a slow machine, and still catch mlx (0.6 s, 150 MiB).
MAX_SECONDS = 2.0
MAX_ANONYMOUS_BYTES = 100 << 20

PROGRAM = """
import json, sys, time
started = time.thread_time()  # wall time would be that of a busy machine
from kandiga_run.engine import load_engine
import numpy as np
engine = load_engine(sys.argv[1], engine="native")
state = engine.new_state(32)
engine.forward(np.arange(5, 15, dtype=np.int32), state)
seconds = time.thread_time() - started
from kandiga_run.memory.use import memory_use
heavy = {"mlx", "mlx_lm", "transformers", "torch", "safetensors"} & set(sys.modules)
print(json.dumps([seconds, memory_use().anonymous_bytes or 0, sorted(heavy)]))
engine.close()
"""


def test_start(packed: PackedModels) -> None:
    container = packed("qwen3_5_moe").container
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(container)], capture_output=True, text=True, check=True
    )
    seconds, anonymous_bytes, heavy = json.loads(done.stdout)
    assert heavy == []
    assert seconds < MAX_SECONDS
    assert anonymous_bytes < MAX_ANONYMOUS_BYTES
