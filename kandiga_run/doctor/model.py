"""The default model, and how it would be run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from formats.published import published_id
from kandiga_run.default_model import VARIABLE, config_file, default_model
from kandiga_run.doctor.finding import Finding
from kandiga_run.doctor.storage import reads_past_cache
from kandiga_run.forecast.forecast import engine_for
from kandiga_run.memory.use import available_bytes
from kandiga_run.sizes import format_size


def look_at_model(model: str | None) -> Iterator[Finding]:
    """Say what `model`, or the default one, is and how it would be run.

    Raises: as opening it does.
    """
    named = model or default_model()
    if named is None:
        yield Finding("default model", "ok", "none yet", "`kandiga-run setup` chooses one")
        return
    where = "named here" if model else f"from {config_file()} or {VARIABLE}"
    folder = _on_this_machine(named)
    facts: dict[str, Any] = {"model": named}
    if folder is None:
        text = f"{named} ({where}): an id on the Hub, not downloaded yet"
        yield Finding("model", "warning", text, "the first use downloads it", facts)
        return
    yield from _how_it_runs(named, folder, where, facts)


def _how_it_runs(named: str, folder: Path, where: str, facts: dict[str, Any]) -> Iterator[Finding]:
    from kandiga_run.container import Model
    from kandiga_run.experts.store import fits_comfortably

    with Model.open(folder) as opened:
        engine, fits, size = (
            engine_for(opened.architecture),
            fits_comfortably(opened),
            opened.expert_bytes,
        )
        facts |= {"architecture": opened.architecture, "engine": engine, "expert_bytes": size}
    yield Finding("model", "ok", f"{named} ({where}): {opened.architecture}", facts=facts)
    if engine is None:
        text = f"no engine here knows the architecture {opened.architecture!r}"
        yield Finding("used for it", "broken", text, facts={"residency": None})
        return
    free = format_size(available_bytes())
    if fits:
        text = (
            f"{engine} engine, experts mapped: their {format_size(size)} fit into the {free} that "
            "are free, or are there already"
        )
    else:
        past = "past" if reads_past_cache(folder) else "through"
        text = (
            f"{engine} engine, a pool of experts in half of the {free} that are free (or --memory)"
            f": all {format_size(size)} do not fit; the rest is read {past} the page cache"
        )
    residency = "mapped" if fits else "owned"
    yield Finding("used for it", "ok", text, facts={"residency": residency})


def _on_this_machine(named: str) -> Path | None:
    """Return the folder of a model, None for an id of which the Hub's cache has nothing."""
    hub_id = published_id(named)
    if hub_id is None:
        return Path(named)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        hub_id.repository, "kexp.json", revision=hub_id.revision or "main"
    )
    return Path(found).parent if isinstance(found, str) else None
