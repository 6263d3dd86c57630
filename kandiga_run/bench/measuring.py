"""One request from start to end, told as events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from cython_kernels import isa, num_threads
from kandiga_run.bench.measure import Measurements, TokenSource, process_read_bytes
from kandiga_run.bench.page_cache import resident
from kandiga_run.bench.request import Request
from kandiga_run.bench.samples import Sample
from kandiga_run.engine import Engine, load_engine
from kandiga_run.errors import RunError
from kandiga_run.memory.items import memory_items
from kandiga_run.memory.use import memory_use

Emit = Callable[..., None]


def measure(request: Request, events: TextIO) -> None:
    """Open the engine, measure what is asked for, close it."""

    def emit(event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}), file=events, flush=True)

    def progress(what: str, done: int, total: int) -> None:
        emit("progress", what=what, done=done, total=total)

    progress("opening", 0, 1)
    process_seconds = (time.monotonic_ns() - request.started_ns) * 1e-9
    started = time.perf_counter()
    engine = load_engine(Path(request.folder), **request.engine)
    with closing(engine):
        opening_seconds = time.perf_counter() - started
        tokens = TokenSource(request.tokens, engine.vocab_size, request.seed)
        measurements = Measurements(engine, request, tokens)
        started = time.perf_counter()
        measurements.first_token()
        emit(
            "start",
            process_seconds=process_seconds,
            opening_seconds=opening_seconds,
            prompt_seconds=time.perf_counter() - started,
            prompt_tokens=request.start_tokens,
            bytes_read=engine.stats.bytes_read,
            process_read_bytes=process_read_bytes(),
        )
        emit("engine", **_engine_json(engine))
        _emit_memory(emit, request, engine)
        if request.cache == "warm":
            progress("warming up", 0, 1)
            measurements.warm_up()
        for size in request.prefill_tokens:
            _emit_samples(emit, f"prefill of {size}", measurements.prefills(size, progress))
            _emit_memory(emit, request, engine)
        if request.cache == "warm" and request.depths:
            progress("filling the expert cache", 0, 1)
            measurements.fill_memory()
        for depth in request.depths:
            emit("work", depth=depth, **_work_json(engine, depth))
            _emit_samples(emit, f"decode at {depth}", measurements.decodes(depth, progress))
            _emit_memory(emit, request, engine)
    emit("finished")


def _emit_samples(emit: Emit, what: str, samples: Iterator[Sample]) -> None:
    """Tell samples as they come. One that has no room in the budget does not end the others."""
    try:
        for sample in samples:
            emit("sample", **asdict(sample))
    except RunError as error:
        emit("note", text=f"no {what}: {error}")


def _emit_memory(emit: Emit, request: Request, engine: Engine) -> None:
    paths, use = sorted(Path(request.folder).glob("*.kexp")), memory_use()
    emit(
        "memory",
        **asdict(use),
        items=memory_items(engine, use),
        container=asdict(resident(paths)),
    )


def _engine_json(engine: Engine) -> dict[str, Any]:
    stats = engine.stats
    return {
        "name": engine.name,
        "isa": isa(),
        "arithmetic": stats.arithmetic,
        "residency": stats.residency,
        "threads": num_threads(),
        "prefill_chunk": engine.prefill_chunk,
        "top_k": stats.top_k,
        "num_experts_per_token": stats.num_experts_per_token,
        "work": _work_json(engine, 0),
    }


def _work_json(engine: Engine, depth: int) -> dict[str, Any]:
    """Return what a token needs, empty for an engine that does not say (mlx)."""
    token_work = getattr(engine, "token_work", None)
    return {} if token_work is None else asdict(token_work(depth))
