"""A forecast for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from kandiga_run.forecast.forecast import BudgetForecast, Forecast
from kandiga_run.forecast.speed import ASSUMPTIONS, Band, DecodeForecast
from kandiga_run.sizes import format_size, two_digits

#: Of the object that `forecast_json` returns.
SCHEMA_VERSION = 1
_WIDTH = 110
# Of all processors: less is what an idle desktop uses.
_BUSY_SHARE = 0.1


def forecast_json(forecast: Forecast) -> dict[str, Any]:
    """Return everything; sizes in bytes, rates a second."""
    shape = forecast.shape
    return {
        "kandiga_plan": SCHEMA_VERSION,
        "model": {
            "name": shape.name,
            "kind": shape.kind,
            "architecture": shape.architecture,
            "layers_with_experts": len(shape.layers),
            "experts_per_layer": shape.num_experts,
            "top_k": shape.top_k,
            "expert_bytes": shape.expert_bytes,
            "dense_bytes": asdict(shape.dense),
            "context_length": shape.context_length,
            "notes": list(shape.notes),
        },
        "engine": forecast.engine,
        "verdict": forecast.verdict,
        "reasons": list(forecast.reasons),
        "disk": {f"{name}_bytes": value for name, value in asdict(forecast.disk).items()},
        "memory": {
            **{f"{name}_bytes": value for name, value in asdict(forecast.memory).items()},
            "budget_bytes": forecast.memory_budget,
        },
        "context_tokens": forecast.context_tokens,
        "kv": forecast.kv,
        "kv_bytes_by_context": {str(n): size for n, size in forecast.kv_by_context.items()},
        "bytes_per_token": forecast.token_bytes,
        "decode": None if forecast.chosen is None else asdict(forecast.chosen),
        "decode_by_memory": [
            {"memory_bytes": each.budget_bytes, **asdict(each.decode)} for each in forecast.budgets
        ],
        "ceilings": None if forecast.ceilings is None else asdict(forecast.ceilings),
        "assumptions": list(ASSUMPTIONS),
    }


def print_forecast(forecast: Forecast, file: TextIO) -> None:
    """Print the verdict, sizes, and speeds by memory."""
    console = _console(file)
    console.print(_pairs(_rows(forecast)))
    if forecast.budgets:
        console.print()
        console.print(_speeds(forecast.budgets))
    for note in (*forecast.shape.notes, *_ceiling_notes(forecast)):
        console.print(f"note: {note}", markup=False)


def print_overview(forecasts: list[tuple[str, Forecast]], file: TextIO) -> None:
    """Print a line for each (title, forecast)."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("model")
    for name in ("download", "on disk", "least memory", "tokens/s (forecast)"):
        table.add_column(name, justify="right")
    table.add_column("here")
    for title, each in forecasts:
        speed = "-" if each.chosen is None else _band(each.chosen.tokens_per_second)
        reason = f": {each.reasons[0]}" if each.reasons else ""
        table.add_row(
            title,
            format_size(each.disk.download) if each.disk.download else "-",
            format_size(each.disk.packed),
            format_size(each.memory.smallest),
            speed,
            f"{each.verdict}{reason}",
        )
    console = _console(file)
    console.print(table)
    if forecasts:
        budget = format_size(forecasts[0][1].memory_budget)
        console.print(f"tokens/s with {budget} of memory; `kandiga-run plan MODEL` has the rest")


def _console(file: TextIO) -> Console:
    console = Console(file=file, highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(file=file, highlight=False, width=_WIDTH)


def _pairs(rows: Iterator[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return table


def _rows(forecast: Forecast) -> Iterator[tuple[str, str]]:
    shape, disk, memory = forecast.shape, forecast.disk, forecast.memory
    yield "model", f"{shape.name} ({shape.kind})"
    yield (
        "",
        f"{shape.architecture}, {len(shape.layers)} layers of {shape.num_experts} experts, "
        f"{shape.top_k} a token; engine {forecast.engine or 'none'}",
    )
    reasons = "; ".join(forecast.reasons)
    yield "here", f"[bold]{forecast.verdict}[/bold]{': ' + reasons if reasons else ''}"
    peak = f", {format_size(disk.peak)} at most while packing" if disk.peak > disk.packed else ""
    fetched = f"{format_size(disk.download)} to download, " if disk.download else ""
    yield (
        "disk",
        f"{fetched}{format_size(disk.packed)} packed{peak}; {format_size(disk.free)} free",
    )
    yield (
        "memory",
        f"{format_size(memory.smallest)} at least: dense weights {format_size(memory.dense)}, "
        f"process {format_size(memory.process)}, KV cache {format_size(memory.kv)}, buffers "
        f"{format_size(memory.buffers)}, a few experts",
    )
    cache = ", ".join(
        f"{format_size(size)} at {_tokens(n)}" for n, size in forecast.kv_by_context.items()
    )
    yield f"KV {forecast.kv}", cache
    yield (
        "a token",
        f"{format_size(forecast.token_bytes)} from memory at {_tokens(forecast.context_tokens)}: "
        f"dense {format_size(shape.dense.every_token)}, experts "
        f"{format_size(shape.token_expert_bytes)}, cache {format_size(memory.kv)}",
    )
    if forecast.chosen is not None:
        yield (
            "forecast",
            f"[bold]{_band(forecast.chosen.tokens_per_second)} tokens/s[/bold] with "
            f"{format_size(forecast.memory_budget)} of memory",
        )


def _speeds(budgets: tuple[BudgetForecast, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("memory", justify="right")
    table.add_column("of the experts", justify="right")
    table.add_column("read a token", justify="right")
    table.add_column("tokens/s (forecast)", justify="right")
    for each in budgets:
        name = "everything" if each.budget_bytes is None else format_size(each.budget_bytes)
        decode = each.decode
        table.add_row(
            name, f"{decode.expert_share:.0%}", _read(decode), _band(decode.tokens_per_second)
        )
    return table


def _read(decode: DecodeForecast) -> str:
    low, high = decode.disk_bytes.low, decode.disk_bytes.high
    if high < 1:
        return "-"
    return f"{format_size(low)} to {format_size(high)}"


def _band(band: Band) -> str:
    return f"{two_digits(band.low)} to {two_digits(band.high)}"


def _tokens(number: int) -> str:
    return f"{number // 1024}K" if number % 1024 == 0 else str(number)


def _ceiling_notes(forecast: Forecast) -> Iterator[str]:
    ceilings = forecast.ceilings
    if ceilings is None:
        return
    yield (
        f"a forecast, not a measurement (`kandiga-run bench` measures): {'; '.join(ASSUMPTIONS)}"
    )
    where = "" if ceilings.is_direct else " through the page cache, so perhaps too good"
    yield (
        f"ceilings measured here on {ceilings.measured_on}: memory "
        f"{format_size(ceilings.memory)}/s, disk {format_size(ceilings.disk)}/s{where} "
        "(--measure measures again)"
    )
    if (ceilings.busy or 0.0) > _BUSY_SHARE:
        yield (
            f"others used {ceilings.busy:.0%} of the processors then: ceilings and speeds are too "
            "low"
        )
    if forecast.engine == "mlx":
        yield "other families than the native engine's: nobody has timed the mlx engine"
