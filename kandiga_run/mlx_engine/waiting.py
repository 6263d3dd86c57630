"""Waiting for the device, counted."""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx

from kandiga_run.engine.stats import RunStats


def wait_for(stats: RunStats, *arrays: Any) -> None:
    """Evaluate arrays and add one wait to the stats; arrays may be None or nested in lists."""
    started = time.perf_counter()
    mx.eval(*arrays)
    stats.device_waits += 1
    stats.device_wait_seconds += time.perf_counter() - started
