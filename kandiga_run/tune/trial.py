"""One choice of settings, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from cython_kernels import cpu_count
from kandiga_run.bench import page_cache
from kandiga_run.bench.process import Heard, run_request
from kandiga_run.bench.request import Request
from kandiga_run.bench.subject import Subject, text_tokens
from kandiga_run.experts.reader import DEFAULT_NUM_READERS
from kandiga_run.memory.use import available_bytes
from kandiga_run.tune.outcome import PROMPT_TOKENS, Speed, Trial
from kandiga_run.tune.search import Room
from kandiga_run.tune.settings import Settings

#: Told what is being tried and measured.
Say = Callable[[str], None]

_DECODE_TOKENS = 16
_REPEATS = 2
_SECONDS_OF_A_KIND = 4.0
# Of available memory: what is left is for the rest of the machine.
_MOST_SHARE = 0.85
# With this share of a container in the page cache it is there, whatever else is free.
_RESIDENT_SHARE = 0.9
# Beside weights: the process, its buffers and a KV cache.
_BESIDE_WEIGHTS_BYTES = 1 << 30


def room_for(subject: Subject, limit_bytes: int | None) -> Room:
    """Return what this machine allows for a container. limit_bytes: the user's own budget."""
    most_bytes = int(available_bytes() * _MOST_SHARE)
    fits = subject.total_bytes <= most_bytes
    is_resident = (page_cache.resident(subject.files).share or 0.0) >= _RESIDENT_SHARE
    return Room(
        most_bytes=most_bytes if limit_bytes is None else limit_bytes,
        enough_bytes=subject.total_bytes + _BESIDE_WEIGHTS_BYTES,
        can_map=limit_bytes is None and (fits or is_resident),
        num_cpus=cpu_count(),
        num_readers=DEFAULT_NUM_READERS,
        limit_bytes=limit_bytes,
    )


class Trials:
    """Measures settings of one container with the same tokens every time."""

    def __init__(self, subject: Subject, engine: dict[str, Any], can_map: bool, say: Say) -> None:
        """engine: other keyword arguments of `load_engine`. can_map: the container fits memory."""
        self._subject, self._engine, self._can_map = subject, engine, can_map
        self._tokens = text_tokens(subject)
        self._say = say
        #: name of the engine that was measured
        self.engine_name = ""

    def measure(self, settings: Settings, seconds: float) -> Trial:
        """Return what was measured; after so many seconds the process is ended."""
        deadline = time.monotonic() + seconds
        if self._can_map and settings.memory_bytes is None and settings.residency != "owned":
            self._say(f"{settings}: reading the container into the page cache")
            page_cache.bring_in(self._subject.files)
        heard = Heard(self._request(settings))

        def progress(what: str, done: int, total: int) -> None:
            self._say(f"{settings}: {what}")

        run_request(
            heard,
            progress,
            None,
            # A budget that cannot work is part of a search: its lines would tell of no failure.
            stderr=subprocess.DEVNULL,
            timeout_seconds=max(1.0, deadline - time.monotonic()),
        )
        self.engine_name = heard.engine.get("name", self.engine_name)
        return _trial(settings, heard)

    def _request(self, settings: Settings) -> Request:
        subject = self._subject
        budget_bytes = settings.memory_bytes or sys.maxsize
        return Request(
            folder=str(subject.folder),
            engine={**self._engine, **settings.arguments()},
            cache="warm",
            prefill_tokens=(PROMPT_TOKENS,),
            depths=(0,),
            decode_tokens=_DECODE_TOKENS,
            repeats=_REPEATS,
            seconds=_SECONDS_OF_A_KIND,
            tokens=self._tokens,
            warm_up_bytes=min(budget_bytes, subject.expert_bytes),
        )


def _trial(settings: Settings, heard: Heard) -> Trial:
    figures = {figure.kind: figure for figure in heard.figures}
    speeds: Sequence[Speed] = ()
    error = heard.error
    if {"prefill", "decode"} <= figures.keys():
        medians = {kind: each.tokens_per_second.median for kind, each in figures.items()}
        speeds = [Speed(medians["prefill"], medians["decode"])]
    elif error is None:
        error = "; ".join(heard.notes) or "nothing was measured"
    return Trial(
        settings,
        tuple(speeds),
        residency=heard.engine.get("residency", ""),
        bytes_read_per_token=figures["decode"].bytes_read_per_token if speeds else 0.0,
        peak_bytes=heard.memory.get("peak_resident_bytes", 0),
        error=error,
    )
