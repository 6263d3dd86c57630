"""What `kandiga-run plan` would have said about a figure, given the ceilings measured beside it."""

from __future__ import annotations

from kandiga_run.bench.samples import Figure
from kandiga_run.bench.session import Measurement, Results, engine_memory
from kandiga_run.forecast.ceilings import MeasuredCeilings
from kandiga_run.forecast.find import find_shape
from kandiga_run.forecast.forecast import least_expert_bytes, memory_needs
from kandiga_run.forecast.speed import Band, decode_forecast


def foretold(figure: Figure, measurement: Measurement, results: Results) -> Band | None:
    """Return the band of tokens a second for a decode; None for what `plan` does not foretell.

    It foretells whole models on the native engine, warm, with everything in memory or a budget.
    """
    ceilings, engine = results.ceilings, _engine(measurement)
    if figure.kind != "decode" or measurement.cache != "warm" or ceilings is None or not engine:
        return None
    if engine["name"] != "native" or engine["num_experts_per_token"] != engine["top_k"]:
        return None
    shape = find_shape(str(results.subject.folder))
    budget = results.plan.engine.get("memory_bytes")
    if measurement.cap_bytes is not None:
        budget = engine_memory(measurement.cap_bytes)
    if budget is None and engine["residency"] != "mapped":
        return None  # the pool's size follows from what was free at the moment
    room = float(shape.expert_bytes)
    if budget is not None:
        needs = memory_needs(shape, max(figure.size, 1), "auto")
        room = budget - needs.smallest + least_expert_bytes(shape)
    told = decode_forecast(
        shape,
        MeasuredCeilings(ceilings.memory, ceilings.disk, str(shape.name), ""),
        expert_bytes_in_memory=room,
        state_bytes=min(sample.state_bytes for sample in figure.samples),
    )
    return told.tokens_per_second


def _engine(measurement: Measurement) -> dict[str, object]:
    return next((heard.engine for heard in measurement.heard if heard.engine), {})
