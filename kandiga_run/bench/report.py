"""Results as plain JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kandiga_run.bench.bounds import Bound, bound
from kandiga_run.bench.foretold import foretold
from kandiga_run.bench.memory_group import GroupUse
from kandiga_run.bench.samples import Figure
from kandiga_run.bench.session import MachineCeilings, Measurement, Results
from kandiga_run.native.token_work import TokenWork

#: Of the object that `results_json` returns; a reader refuses a larger one.
SCHEMA_VERSION = 1


def results_json(results: Results) -> dict[str, Any]:
    """Return everything; sizes in bytes, times in seconds, rates a second."""
    subject, plan = asdict(results.subject), asdict(results.plan)
    subject["folder"] = str(results.subject.folder)
    return {
        "kandiga_bench": SCHEMA_VERSION,
        "finished": results.finished,
        "model": subject,
        "plan": plan,
        "machine": asdict(results.machine),
        "ceilings": {
            "before": _ceilings_json(results.before),
            "after": _ceilings_json(results.after),
            "used": asdict(results.ceilings) if results.ceilings else None,
        },
        "measurements": [_measurement_json(each, results) for each in results.measurements],
        "notes": results.notes,
    }


def figure_bound(figure: Figure, measurement: Measurement, results: Results) -> Bound | None:
    """Return how close a figure came to its ceiling; None when a side of it is unknown."""
    ceilings = results.ceilings
    depth = figure.size if figure.kind == "decode" else 0
    known = [heard.work[depth] for heard in measurement.heard if heard.work.get(depth)]
    if ceilings is None or not known:
        return None
    chunk = max(heard.engine.get("prefill_chunk", 1) for heard in measurement.heard)
    return bound(figure, TokenWork(**known[0]), ceilings, chunk)


def _ceilings_json(ceilings: MachineCeilings | None) -> dict[str, Any] | None:
    if ceilings is None:
        return None
    return {
        "memory": {
            "huge_pages_bytes_per_second": ceilings.memory.huge_pages,
            "small_pages_bytes_per_second": ceilings.memory.small_pages,
        },
        "disk": {
            "random_bytes_per_second": ceilings.disk.random,
            "sequential_bytes_per_second": ceilings.disk.sequential,
            "block_bytes": ceilings.disk.block_bytes,
            "depth": ceilings.disk.depth,
            "direct": ceilings.disk.direct,
        },
        "kernels": {"multiply_adds_per_second": ceilings.kernels},
    }


def _measurement_json(measurement: Measurement, results: Results) -> dict[str, Any]:
    heard = measurement.heard
    return {
        "memory_cap_bytes": measurement.cap_bytes,
        "memory_cap_enforced": measurement.cap_enforced,
        "swap_limited": measurement.swap_limited,
        "cache": measurement.cache,
        "engine": next((_engine_json(each.engine) for each in heard if each.engine), None),
        "starts": [each.start for each in heard if each.start],
        "figures": [_figure_json(figure, measurement, results) for figure in measurement.figures],
        "memory": [each.memory for each in heard if each.memory],
        "cgroup": _group_json(measurement.group),
        "error": measurement.error,
        "notes": measurement.all_notes,
    }


def _group_json(group: GroupUse | None) -> dict[str, Any] | None:
    return None if group is None else {**asdict(group), "met_limit": group.met_limit}


def _engine_json(engine: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in engine.items() if name != "work"}


def _figure_json(figure: Figure, measurement: Measurement, results: Results) -> dict[str, Any]:
    close = figure_bound(figure, measurement, results)
    told = foretold(figure, measurement, results)
    size_name = "tokens" if figure.kind == "prefill" else "depth"
    return {
        "kind": figure.kind,
        size_name: figure.size,
        "tokens_per_second": asdict(figure.tokens_per_second),
        "bytes_read_per_token": figure.bytes_read_per_token,
        "process_read_bytes": figure.process_read_bytes,
        "time_split_seconds": figure.time_split,
        "ceiling": asdict(close) if close else None,
        "forecast_tokens_per_second": asdict(told) if told else None,
        "samples": [asdict(sample) for sample in figure.samples],
    }
