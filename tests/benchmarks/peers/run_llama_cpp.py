"""Measure llama.cpp in this process, through llama-cpp-python; print a Run as JSON.

    python run_llama_cpp.py '{"model": GGUF, "options": {"repack": true}, "task": {...}}'

A file of its own without imports of ours: it runs in the environment that has llama_cpp. It takes
the same steps as llama-bench: random tokens, logits of the last one, nothing sampled.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
from time import perf_counter
from typing import Any

import llama_cpp

CHUNK = 512


def load(path: str, repack: bool) -> Any:
    """Return a model; repacked weights are copies in an order that the kernels like better."""
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = repack
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        sys.exit(f"{path}: llama.cpp does not load it")
    return model


def new_context(model: Any, num_tokens: int, threads: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = num_tokens
    params.n_batch = params.n_ubatch = CHUNK
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        sys.exit(f"llama.cpp makes no context of {num_tokens} tokens")
    return context


def forward(context: Any, tokens: list[int]) -> None:
    """Append tokens and wait for the logits of the last one."""
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    batch = llama_cpp.llama_batch_get_one(array, len(tokens))
    if llama_cpp.llama_decode(context, batch):
        sys.exit("llama_decode failed")
    llama_cpp.llama_synchronize(context)


def compute(context: Any, vocab_size: int, num_tokens: int, chunk: int) -> float:
    """Compute random tokens from an empty context; return the seconds."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    tokens = [random.randrange(vocab_size) for _ in range(num_tokens)]
    started = perf_counter()
    for start in range(0, num_tokens, chunk):
        forward(context, tokens[start : start + chunk])
    return perf_counter() - started


def is_finite(context: Any, vocab_size: int) -> bool:
    logits = llama_cpp.llama_get_logits_ith(context, -1)
    values = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * vocab_size)).contents
    return all(abs(value) < 1e30 for value in values)


def measure(model_path: str, options: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    llama_cpp.llama_backend_init()
    random.seed(0)
    started = perf_counter()
    model = load(model_path, options.get("repack", True))
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    # llama.cpp's attention reads in blocks of 256 positions and wants room for whole ones.
    room = -(-max(task["prefill"], task["decode"], 1) // 256) * 256
    context = new_context(model, room, task["threads"])
    load_seconds = perf_counter() - started
    if task["warm_up"]:
        compute(context, vocab_size, task["prefill"] or 1, CHUNK)
        compute(context, vocab_size, 1, 1)
    speeds: dict[str, list[float]] = {}
    for kind, chunk in (("prefill", CHUNK), ("decode", 1)):
        num_tokens = task[kind]
        times = range(task["repetitions"] if num_tokens else 0)
        speeds[kind] = [num_tokens / compute(context, vocab_size, num_tokens, chunk) for _ in times]
    if not is_finite(context, vocab_size):
        sys.exit(f"{model_path}: llama.cpp computes logits that are not finite")
    about = {
        "llama_cpp_python": llama_cpp.__version__,
        "system": llama_cpp.llama_print_system_info().decode(),
        "options": options,
    }
    return {**speeds, "load_seconds": load_seconds, "about": about}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(measure(asked["model"], asked["options"], asked["task"])))
