"""What a measuring process is asked to do; travels as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

#: "cold": nothing of the container in memory when the engine opens, no expert used before.
#: "warm": after everything has been used once, or the budget has been filled.
Cache = Literal["cold", "warm"]


@dataclass(frozen=True)
class Request:
    """One process's work, in this order: start, warm-up, prefills, decodes."""

    folder: str
    #: keyword arguments of `load_engine`
    engine: dict[str, Any]
    cache: Cache
    prefill_tokens: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    #: steps of one decode measurement
    decode_tokens: int = 32
    #: measurements of each kind ...
    repeats: int = 3
    #: ... of which the first is always taken and others only while this time has not passed
    seconds: float = 15.0
    #: depths by computing every token before, instead of made-up caches
    real_depth: bool = False
    #: tokens of the prompt of the start measurement
    start_tokens: int = 16
    #: time.monotonic_ns when the process was started
    started_ns: int = 0
    #: a control group's cgroup.procs, joined before anything is allocated
    group_file: str | None = None
    seed: int = 0
    #: ids to compute, over and over; none: random ones
    tokens: tuple[int, ...] = ()
    #: bytes of experts that fill what is kept of them; a warm-up reads no more
    warm_up_bytes: int = 0

    def to_json(self) -> str:
        """Return one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Request:
        """Return what `to_json` was made of."""
        values = json.loads(line)
        for name in ("prefill_tokens", "depths", "tokens"):
            values[name] = tuple(values[name])
        return cls(**values)
