"""What a command takes from the tuned settings: everything the user did not choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandiga_run.errors import RunError
from kandiga_run.memory.use import available_bytes
from kandiga_run.sizes import format_size
from kandiga_run.tune.keeping import Tuned, find_tuned, place_of, tuned_path
from kandiga_run.tune.settings import Settings


@dataclass(frozen=True)
class Applied:
    """Keyword arguments of `load_engine`, and what to tell about them."""

    arguments: dict[str, Any]
    #: what was taken from the file; empty when nothing was
    taken: dict[str, Any]
    #: one line for people: what was taken, or why something was not; None when nothing is kept
    note: str | None


def apply_tuned(
    folder: Path, arguments: dict[str, Any], *, memory_is_chosen: bool = False
) -> Applied:
    """Fill in what was tuned for a container on this machine and the user left open.

    A choice of --memory or --residency replaces both; readers and threads are taken one by one. A
    file that cannot be used is no reason to stop: the note says so.

    Args:
        folder: the container.
        arguments: keyword arguments of `load_engine`, None and "auto" where nothing was chosen.
        memory_is_chosen: as if --memory had been given.
    Raises `formats.KexpError` when there is no container.
    """
    if not tuned_path().exists():
        return Applied(arguments, {}, None)
    try:
        tuned = find_tuned(place_of(folder))
    except RunError as error:
        return Applied(arguments, {}, f"tuned settings not used: {error}")
    if tuned is None or arguments.get("engine", "auto") not in ("auto", tuned.engine):
        return Applied(arguments, {}, None)
    leaves_memory = arguments.get("memory_bytes") is None and not memory_is_chosen
    return _applied(
        tuned, arguments, leaves_memory and arguments.get("residency", "auto") == "auto"
    )


def _applied(tuned: Tuned, arguments: dict[str, Any], leaves_residency: bool) -> Applied:
    settings, remarks = tuned.settings, []
    taken: dict[str, Any] = {}
    if leaves_residency:
        lacking = _lacking(tuned)
        if lacking is None:
            taken |= {"residency": settings.residency, "memory_bytes": settings.memory_bytes}
        else:
            remarks.append(lacking)
    for name in ("num_readers", "num_threads"):
        if arguments.get(name) is None:
            taken[name] = getattr(settings, name)
    taken = {name: value for name, value in taken.items() if value not in (None, "auto")}
    told = str(Settings(**taken)) if taken else "as without tuning"
    note = "; ".join([f"tuned on {tuned.date}: {told}", *remarks])
    return Applied({**arguments, **taken}, taken, note)


def _lacking(tuned: Tuned) -> str | None:
    """Return why the tuned place of the experts makes no sense at this moment, if so."""
    available = available_bytes()
    if tuned.needs_bytes <= available:
        return None
    return (
        f"its {tuned.settings} not used, since it needs {format_size(tuned.needs_bytes)} and "
        f"{format_size(available)} is available"
    )
