"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from kandiga_run.bench.bounds import Bound
from kandiga_run.bench.foretold import foretold
from kandiga_run.bench.report import figure_bound
from kandiga_run.bench.samples import Figure
from kandiga_run.bench.session import MachineCeilings, Measurement, Results
from kandiga_run.memory.items import describe_items
from kandiga_run.sizes import format_size, two_digits

# Wide enough for every column; without a terminal rich would wrap at 80.
_WIDTH = 120


def print_results(results: Results, file: TextIO) -> None:
    """Print model, machine, ceilings, each measurement, and what to know about them."""
    console = Console(file=file, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=_WIDTH, soft_wrap=True)
    console.print(_pairs("", [*_model_rows(results), *_machine_rows(results)]))
    for measurement in results.measurements:
        console.print(_title(measurement), style="bold")
        if measurement.figures:
            console.print(_figures(measurement, results))
        console.print(_pairs("", list(_facts(measurement))))
        if measurement.error:
            console.print(f"  failed: {measurement.error}", style="red", markup=False)
        for note in measurement.all_notes:
            console.print(f"  note: {note}", markup=False)
        console.print()
    for note in results.notes:
        console.print(f"note: {note}", markup=False)
    if not results.finished:
        console.print("This is not everything that was asked for.", style="bold")


def _pairs(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title or None, show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return table


def _model_rows(results: Results) -> Iterator[tuple[str, str]]:
    subject = results.subject
    yield "model", str(subject.folder)
    yield (
        "",
        f"{subject.architecture}, {subject.num_layers} layers of {subject.num_experts} experts, "
        f"{subject.top_k} a token; {format_size(subject.total_bytes)}, of which experts "
        f"{format_size(subject.expert_bytes)} in blocks of {format_size(subject.block_bytes)}",
    )


def _machine_rows(results: Results) -> Iterator[tuple[str, str]]:
    machine = results.machine
    yield (
        "machine",
        f"{machine.cpu}, {machine.num_cpus} processors, {format_size(machine.memory_bytes)}, "
        f"{machine.system}",
    )
    yield "", ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    pairs = [("before", results.before), ("after", results.after)]
    for when, ceilings in pairs:
        if ceilings:
            yield f"ceilings {when}", _ceilings(ceilings)


def _ceilings(ceilings: MachineCeilings) -> str:
    memory, disk = ceilings.memory, ceilings.disk
    huge = "-" if memory.huge_pages is None else _rate(memory.huge_pages)
    past = "" if disk.direct else " (through the page cache)"
    return (
        f"memory {huge} in huge pages, {_rate(memory.small_pages)} in small ones; disk "
        f"{_rate(disk.random)} in blocks of {format_size(disk.block_bytes)}, {disk.depth} at a "
        f"time, {_rate(disk.sequential)} in order{past}; kernels "
        f"{ceilings.kernels / 1e9:.0f} G multiply-adds/s"
    )


def _title(measurement: Measurement) -> str:
    cap = measurement.cap_bytes
    if cap is None:
        return measurement.cache
    kept = "page cache included" if measurement.cap_enforced else "not enforced"
    return f"{measurement.cache}, memory cap {format_size(cap)} ({kept})"


def _figures(measurement: Measurement, results: Results) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("tokens/s", justify="right")
    table.add_column("min-max", justify="right")
    table.add_column("runs", justify="right")
    table.add_column("read a token", justify="right")
    table.add_column("of ceiling", justify="right")
    table.add_column("forecast", justify="right")
    table.add_column("time went to")
    for figure in measurement.figures:
        speed = figure.tokens_per_second
        close = figure_bound(figure, measurement, results)
        table.add_row(
            _name(figure),
            f"{speed.median:.3g}",
            f"{speed.min:.3g}-{speed.max:.3g}",
            str(len(figure.samples)),
            format_size(figure.bytes_read_per_token),
            "-" if close is None else _closeness(close),
            _forecast(figure, measurement, results),
            _split(figure.time_split),
        )
    return table


def _closeness(close: Bound) -> str:
    in_place = close.in_place_fraction
    beside = "" if in_place is None else f", {in_place:.0%} in place"
    return f"{close.fraction:.0%} {close.name}{beside}"


def _forecast(figure: Figure, measurement: Measurement, results: Results) -> str:
    """Return what `kandiga-run plan` says of this."""
    told = foretold(figure, measurement, results)
    return "-" if told is None else f"{two_digits(told.low)}-{two_digits(told.high)}"


def _name(figure: Figure) -> str:
    if figure.kind == "prefill":
        return f"prefill {figure.size}"
    sample = figure.samples[0]
    made_up = ", made up" if sample.filling == "made-up" else ""
    kv_format = f" {sample.kv_format}" if sample.kv_format and figure.size else ""
    return f"decode at {figure.size}{kv_format}{made_up}"


def _split(seconds: dict[str, float]) -> str:
    """Return the shares of time that round to a percent, the largest first."""
    total = sum(seconds.values()) or 1.0
    names = sorted(seconds, key=lambda name: -seconds[name])
    parts = [(name.replace("_", " "), seconds[name] / total) for name in names]
    return ", ".join(f"{name} {share:.0%}" for name, share in parts if share >= 0.005)


def _facts(measurement: Measurement) -> Iterator[tuple[str, str]]:
    for heard in measurement.heard[:1]:
        if heard.engine:
            yield "engine", _engine(heard.engine)
        if heard.start:
            yield "first token", _start(heard.start)
    memories = [heard.memory for heard in measurement.heard if heard.memory]
    if memories:
        largest = max(memories, key=_peak)
        yield "memory", _memory(largest)
        if largest.get("items"):
            yield "of it our own", describe_items(largest["items"])
    group = measurement.group
    if group is not None:
        peak = "" if group.peak_bytes is None else f"peak {format_size(group.peak_bytes)} "
        met = {True: "limit met", False: "limit never met", None: "limit met or not: unknown"}
        times = f" {group.limit_hits} times" if group.limit_hits else ""
        swap = "no swap" if measurement.swap_limited else "swap not limited"
        yield (
            "control group",
            f"{peak}of {format_size(group.limit_bytes)}, {met[group.met_limit]}{times}, {swap}",
        )


def _peak(memory: dict[str, Any]) -> int:
    return int(memory["peak_resident_bytes"])


def _engine(engine: dict[str, Any]) -> str:
    used, native = engine["num_experts_per_token"], engine["top_k"]
    fewer = f", {used} of {native} experts a token (lossy)" if used < native else ""
    return (
        f"{engine['name']}, {engine['isa']}, {engine['arithmetic']}, {engine['residency']}, "
        f"{engine['threads']} threads{fewer}"
    )


def _start(start: dict[str, Any]) -> str:
    total = start["process_seconds"] + start["opening_seconds"] + start["prompt_seconds"]
    return (
        f"{total:.2f} s from the start of the process: Python {start['process_seconds']:.2f}, "
        f"opening {start['opening_seconds']:.2f}, {start['prompt_tokens']} tokens "
        f"{start['prompt_seconds']:.2f}"
    )


def _memory(memory: dict[str, Any]) -> str:
    parts = [f"resident {format_size(memory['peak_resident_bytes'])} at most"]
    if memory["anonymous_bytes"] is not None:
        own, files = memory["anonymous_bytes"], memory["file_bytes"]
        parts.append(f"{format_size(own)} own, {format_size(files)} mapped files at the end")
    resident = memory["container"]["resident_bytes"]
    if resident is not None:
        parts.append(f"{format_size(resident)} of the container in the page cache")
    return "; ".join(parts)


def _rate(bytes_per_second: float) -> str:
    return f"{format_size(bytes_per_second)}/s"
