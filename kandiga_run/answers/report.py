"""The figures of an answer: as JSON, and as the rows of the table under `--stats`."""

from __future__ import annotations

from typing import Any

from cython_kernels import isa
from kandiga_run.engine import Engine, State
from kandiga_run.engine.stats import RunStats
from kandiga_run.engine.time_split import time_split_json
from kandiga_run.generation.loop import GenerationStats
from kandiga_run.memory.items import describe_items, memory_items
from kandiga_run.memory.use import MemoryUse, memory_use
from kandiga_run.sizes import format_size


def stats_json(engine: Engine, state: State, stats: GenerationStats) -> dict[str, Any]:
    """Return the `stats` object of --json: plain values, units in the names."""
    run = engine.stats
    return {
        "engine": engine.name,
        "isa": isa(),
        "residency": run.residency or None,
        "arithmetic": run.arithmetic,
        "experts_per_token": {"native": run.top_k, "used": run.num_experts_per_token},
        "is_lossy": run.is_lossy,
        "tuned": run.tuned or None,
        "kv": {
            "choice": run.kv or None,
            "format": state.kv_format,
            "bytes": state.nbytes - state.recurrent_nbytes,
        },
        "recurrent_state_bytes": state.recurrent_nbytes,
        "prefill": _phase_json(
            stats.prompt_tokens,
            stats.prefill_seconds,
            stats.prefill_tokens_per_second,
            stats.prefill,
        ),
        "decode": _phase_json(
            stats.decode_steps, stats.decode_seconds, stats.decode_tokens_per_second, stats.decode
        )
        | {"bytes_read_per_token": stats.bytes_read_per_token},
        "time_to_first_token_seconds": stats.time_to_first_token_seconds,
        "memory": _memory_json(engine, memory_use()),
    }


def usage_json(stats: GenerationStats) -> dict[str, int]:
    """Return token counts; the prompt includes what a kept state already held."""
    prompt_tokens = stats.reused_tokens + stats.prompt_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "reused_prompt_tokens": stats.reused_tokens,
        "generated_tokens": stats.generated_tokens,
        "total_tokens": prompt_tokens + stats.generated_tokens,
    }


def stats_rows(engine: Engine, state: State, stats: GenerationStats) -> list[tuple[str, str]]:
    """Return the figures as (name, value) for people."""
    run, decode, memory = engine.stats, stats.decode, memory_use()
    reused = f", {stats.reused_tokens} more reused" if stats.reused_tokens else ""
    return [
        (
            "prefill",
            f"{stats.prompt_tokens} tokens{reused}, {_speed(stats.prefill_tokens_per_second)}",
        ),
        ("first token after", f"{stats.time_to_first_token_seconds:.2f} s"),
        ("decode", f"{stats.generated_tokens} tokens, {_speed(stats.decode_tokens_per_second)}"),
        ("read a token", _size_or_dash(stats.bytes_read_per_token)),
        (
            "experts, decode",
            f"{decode.experts_requested} used: {decode.experts_read} read{_ahead(decode)}, "
            f"{decode.experts_reused} reused",
        ),
        ("experts, prefill", f"{stats.prefill.experts_read} read"),
        (
            "waited for reads",
            f"{decode.read_wait_seconds:.2f} s of {stats.decode_seconds:.2f} s decode",
        ),
        ("decode went to", _time_row(decode)),
        *_device_rows(stats),
        ("experts a token", _experts_per_token(run)),
        (
            "engine",
            f"{engine.name}, experts on {isa()}, {run.residency}, {run.arithmetic} arithmetic",
        ),
        *([("settings", run.tuned)] if run.tuned else []),
        ("KV cache", _kv_row(state)),
        ("memory charged", _memory_row(memory)),
        *_memory_item_rows(engine, memory),
    ]


def departure_notice(run: RunStats) -> str | None:
    """Return the line that says this run does not compute the published model, if so."""
    changes = []
    if run.num_experts_per_token not in (0, run.top_k):
        changes.append(
            f"experts a token {run.num_experts_per_token} instead of the model's {run.top_k}"
        )
    if run.kv not in ("", "auto", "fp16"):
        changes.append(f"keys and values held as {run.kv}")
    if not changes:
        return None
    kind = "lossy" if run.is_lossy else "not as published"
    return f"{kind}: {', '.join(changes)}; answers differ from the published model's"


def _ahead(run: RunStats) -> str:
    if not run.experts_read_ahead:
        return ""
    return f" ({run.experts_read_ahead} ahead, {run.experts_read_ahead_used} of them used)"


def _kv_row(state: State) -> str:
    kv = f"{state.kv_format}, {format_size(state.nbytes - state.recurrent_nbytes)}"
    if state.recurrent_nbytes:
        kv += f"; recurrent state {format_size(state.recurrent_nbytes)}"
    return kv


def _phase_json(
    tokens: int, seconds: float, tokens_per_second: float | None, run: RunStats
) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens_per_second,
        "bytes_read": run.bytes_read,
        "experts_requested": run.experts_requested,
        "experts_read": run.experts_read,
        "experts_reused": run.experts_reused,
        "experts_read_ahead": run.experts_read_ahead,
        "experts_read_ahead_used": run.experts_read_ahead_used,
        "read_wait_seconds": run.read_wait_seconds,
        "time_split": time_split_json(run),
        "device_waits": run.device_waits,
        "device_wait_seconds": run.device_wait_seconds,
    }


def _time_row(run: RunStats) -> str:
    """Return the shares of time, the largest first; less than half a percent is left out."""
    split = time_split_json(run)
    total = sum(split.values())
    names = sorted(split, key=lambda name: -split[name])
    parts = [f"{name.replace('_', ' ')} {split[name] / total:.0%}" for name in names if total]
    return ", ".join(part for part in parts if not part.endswith(" 0%")) or "-"


def _device_rows(stats: GenerationStats) -> list[tuple[str, str]]:
    """Return what waiting for the router's choice cost, where another device makes it."""
    decode = stats.decode
    if not decode.device_waits:
        return []
    return [
        (
            "waited for mlx",
            f"{decode.device_wait_seconds:.2f} s of {stats.decode_seconds:.2f} s decode, "
            f"{decode.device_waits} times",
        )
    ]


def _memory_json(engine: Engine, memory: MemoryUse) -> dict[str, Any]:
    return {
        "resident_bytes": memory.resident_bytes,
        "peak_resident_bytes": memory.peak_resident_bytes,
        "anonymous_bytes": memory.anonymous_bytes,
        "file_bytes": memory.file_bytes,
        "cgroup_bytes": memory.cgroup_bytes,
        "cgroup_limit_bytes": memory.cgroup_limit_bytes,
        "items": memory_items(engine, memory),
    }


def _memory_item_rows(engine: Engine, memory: MemoryUse) -> list[tuple[str, str]]:
    items = memory_items(engine, memory)
    return [] if items is None else [("of it our own", describe_items(items))]


def _memory_row(memory: MemoryUse) -> str:
    parts = [
        f"{format_size(memory.resident_bytes)} (peak {format_size(memory.peak_resident_bytes)})"
    ]
    if memory.anonymous_bytes is not None and memory.file_bytes is not None:
        own, mapped = format_size(memory.anonymous_bytes), format_size(memory.file_bytes)
        parts.append(f"{own} own, {mapped} mapped files")
    if memory.cgroup_bytes is not None and memory.cgroup_limit_bytes is not None:
        used, limit = format_size(memory.cgroup_bytes), format_size(memory.cgroup_limit_bytes)
        parts.append(f"control group {used} of {limit}, page cache included")
    return "; ".join(parts)


def _experts_per_token(run: RunStats) -> str:
    lossy = f" of the model's {run.top_k} (lossy)" if run.has_fewer_experts else ""
    return f"{run.num_experts_per_token}{lossy}"


def _speed(tokens_per_second: float | None) -> str:
    return "-" if tokens_per_second is None else f"{tokens_per_second:.1f} tokens/s"


def _size_or_dash(num_bytes: float | None) -> str:
    return "-" if num_bytes is None else format_size(num_bytes)
