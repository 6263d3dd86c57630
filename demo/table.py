"""The table that ends the demo, from the JSON that `kandiga-run run --json` prints."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def results_table(answer: dict[str, Any], *, experts_bytes: int, budget: str) -> Table:
    """Return the figures of one answer.

    Args:
        answer: the parsed JSON.
        experts_bytes: all expert weights of the model, for comparison.
        budget: the memory budget, as it was given.
    """
    stats = answer["stats"]
    decode, memory = stats["decode"], stats["memory"]
    used = decode["experts_requested"]
    table = Table(show_header=False, title="kandiga demo", title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    rows = {
        "tokens/s": f"{decode['tokens_per_second']:.1f} (prompt: "
        f"{stats['prefill']['tokens_per_second']:.1f})",
        "bytes read a token": _megabytes(decode["bytes_read_per_token"])
        + f" of {_megabytes(experts_bytes)} in all experts",
        "experts read": f"{decode['experts_read']} of {used} used ({_share(decode, 'read')})",
        "experts reused": f"{decode['experts_reused']} of {used} used ({_share(decode, 'reused')})",
        "memory charged": f"{_megabytes(memory['resident_bytes'])}, at most "
        f"{_megabytes(memory['peak_resident_bytes'])} (budget {budget})",
        "computed by": f"{stats['engine']} engine, {stats['isa']}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _share(decode: dict[str, Any], which: str) -> str:
    return f"{decode[f'experts_{which}'] / max(decode['experts_requested'], 1):.0%}"


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
