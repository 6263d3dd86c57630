"""An outcome as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TextIO

from kandiga_run.sizes import format_size
from kandiga_run.tune.outcome import ANSWER_TOKENS, PROMPT_TOKENS, Outcome, Trial, gain

#: Of the object that `outcome_json` returns; a reader refuses a larger one.
SCHEMA_VERSION = 1
_WIDTH = 120


def print_outcome(outcome: Outcome, file: TextIO) -> None:
    """Print every trial, the fastest exchange first, and the notes."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=file, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=_WIDTH, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("settings", no_wrap=True)
    heads = ("prefill tokens/s", "decode tokens/s", f"{PROMPT_TOKENS} + {ANSWER_TOKENS} tokens")
    for head in (*heads, "against usual", "read a token", "memory", "runs"):
        table.add_column(head, justify="right")
    for trial in sorted(outcome.trials, key=lambda each: each.exchange_seconds):
        table.add_row(*_cells(trial, outcome))
    console.print(table)
    for trial in outcome.trials:
        if trial.error:
            console.print(f"{trial.settings}: {trial.error}", markup=False)
    for note in outcome.notes:
        console.print(f"note: {note}", markup=False)


def verdict(outcome: Outcome) -> str:
    """Return in a line what the best settings are, and what they gain."""
    best, usual = outcome.best, outcome.usual
    if best is None or usual is None:
        return "nothing could be measured"
    if best is usual:
        return f"no other settings are reliably faster than the usual ones ({name_of(usual)})"
    if not usual.speeds:
        return f"fastest: {best.settings}"
    return f"fastest: {best.settings}; {gain(usual, best):.0%} more tokens a second than usual"


def name_of(trial: Trial) -> str:
    """Return the settings, and what the engine made of "auto"."""
    text = str(trial.settings)
    if text == "auto" and trial.residency:
        return f"auto: {trial.residency}"
    return text


def measured_json(outcome: Outcome) -> dict[str, Any]:
    """Return the speeds that are kept beside the settings."""
    best, usual = outcome.best, outcome.usual
    return {
        "best": _speed_json(best) if best else None,
        "usual": _speed_json(usual) if usual else None,
    }


def outcome_json(outcome: Outcome, *, model: str, kept_in: str | None) -> dict[str, Any]:
    """Return everything as plain JSON values; sizes in bytes, times in seconds."""
    best = outcome.best
    return {
        "kandiga_tune": SCHEMA_VERSION,
        "finished": outcome.finished,
        "model": model,
        "settings": asdict(best.settings) if best else None,
        "is_usual": best is outcome.usual,
        **measured_json(outcome),
        "kept_in": kept_in,
        "exchange": {"prompt_tokens": PROMPT_TOKENS, "answer_tokens": ANSWER_TOKENS},
        "trials": [asdict(trial) | _speed_json(trial) for trial in outcome.trials],
        "notes": outcome.notes,
    }


def _cells(trial: Trial, outcome: Outcome) -> list[str]:
    speed, usual = trial.speed, outcome.usual
    name = name_of(trial) + (" (usual)" if trial is usual else "")
    if speed is None:
        return [name, *["-"] * 6, "0"]
    against = "-"
    if usual is not None and usual.speeds and trial is not usual:
        against = f"{gain(usual, trial):+.0%}"
    return [
        name,
        f"{speed.prefill:.3g}",
        f"{speed.decode:.3g}",
        f"{trial.exchange_seconds:.2f} s",
        against,
        format_size(trial.bytes_read_per_token),
        format_size(trial.peak_bytes),
        str(len(trial.speeds)),
    ]


def _speed_json(trial: Trial) -> dict[str, Any]:
    speed = trial.speed
    return {
        "prefill_tokens_per_second": speed.prefill if speed else None,
        "decode_tokens_per_second": speed.decode if speed else None,
        "exchange_seconds": trial.exchange_seconds if speed else None,
    }
