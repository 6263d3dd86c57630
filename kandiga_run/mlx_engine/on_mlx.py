"""Routed experts of any kind: the active ones stacked, mlx-lm's own module run on the stack."""

from __future__ import annotations

import ctypes
from typing import Any

import mlx.core as mx
import numpy as np

from formats import Layout, Part
from kandiga_run.engine.stats import RunStats
from kandiga_run.experts.assignment import Assignment
from kandiga_run.experts.store import Arrivals
from kandiga_run.mlx_engine.waiting import wait_for
from kandiga_run.mlx_engine.weights import PROJECTION_MODULES, numpy_dtype, to_mlx

#: Experts stacked at a time. A prefill chunk may want every expert of a layer, which is
#: gigabytes in a large model.
WAVE_BYTES = 256 << 20


class Staging:
    """Room to copy experts out of the store's memory, one stack per part. Layers share it.

    Shared, because fresh memory would be faulted in at every call, at a tenth of memcpy's speed.
    """

    def __init__(self, layout: Layout, num_experts: int, *, wave_bytes: int = WAVE_BYTES) -> None:
        """`wave_bytes` bounds the room; at least one expert fits, and never more than exist."""
        self.layout = layout
        self.max_experts = max(1, min(num_experts, wave_bytes // layout.payload_bytes))
        self.experts: list[int] = []
        self._stacks: list[np.ndarray] = []
        self._room = 0

    @property
    def max_bytes(self) -> int:
        """Return the size of the room when it is as large as it may become."""
        return self.max_experts * self.layout.payload_bytes

    @property
    def is_full(self) -> bool:
        """Whether no further expert may be added."""
        return len(self.experts) == self.max_experts

    def reserve(self, num_experts: int) -> None:
        """Make room for so many experts, or for as many as may be held; forget those inside."""
        self.experts = []
        num_experts = min(num_experts, self.max_experts)
        if num_experts > self._room:
            self._room = num_experts
            self._stacks = [
                np.empty((num_experts, *part.shape), numpy_dtype(part.dtype))
                for part in self.layout.parts
            ]

    def add(self, expert: int, address: int) -> None:
        """Copy the expert whose payload begins at `address`."""
        for part, stack in zip(self.layout.parts, self._stacks, strict=True):
            stack[len(self.experts)] = _part_at(address, part)
        self.experts.append(expert)

    def stacks(self) -> list[tuple[Part, np.ndarray]]:
        """Return every part with its stack (experts held, *part.shape)."""
        filled = [stack[: len(self.experts)] for stack in self._stacks]
        return list(zip(self.layout.parts, filled, strict=True))


class StackedExperts:
    """Experts computed by their SwitchGLU or SwitchMLP, so with mlx-lm's own numbers."""

    name = "mlx"

    def __init__(self, module: Any, staging: Staging) -> None:
        """`module` gives up its weights: between calls it holds none."""
        self._module = module
        self._staging = staging
        self._unload()

    def host_input(self, _x: Any) -> None:
        """Return nothing: the activations stay on the device."""

    def run(
        self, x: Any, _host_input: Any, assignment: Assignment, arrivals: Arrivals, stats: RunStats
    ) -> Any:
        """Return (pairs, hidden): every expert applied to the tokens x (T, hidden) it serves."""
        staging = self._staging
        staging.reserve(assignment.experts.size)
        outputs = []
        for expert, address in arrivals:
            if staging.is_full:
                outputs.append(self._compute(x, assignment))
                # Evaluated at once, or the stacks of all waves would stay in memory.
                wait_for(stats, outputs[-1])
                staging.reserve(assignment.experts.size)
            staging.add(expert, address)
        outputs.append(self._compute(x, assignment))
        return mx.concatenate(outputs)[mx.array(assignment.order)]

    def _compute(self, x: Any, assignment: Assignment) -> Any:
        """Return the results (rows, hidden) of the experts that are staged."""
        work = assignment.take(self._staging.experts)
        num_slots = len(self._staging.experts)
        slots = np.repeat(np.arange(num_slots, dtype=np.int32), np.diff(work.row_offsets))
        self._load()
        y = self._module(x[mx.array(work.rows)], mx.array(slots)[:, None])
        self._unload()
        return y.squeeze(1)

    def _load(self) -> None:
        for part, stack in self._staging.stacks():
            setattr(self._linear(part), part.role, to_mlx(stack, part.dtype))

    def _unload(self) -> None:
        """Drop the weights, which would otherwise stay until this layer's next call."""
        for part in self._staging.layout.parts:
            setattr(self._linear(part), part.role, mx.array([]))

    def _linear(self, part: Part) -> Any:
        return self._module[PROJECTION_MODULES[part.projection]]


def _part_at(address: int, part: Part) -> np.ndarray:
    """Return a view of one part of the expert whose payload begins at `address`."""
    raw = (ctypes.c_ubyte * part.length_bytes).from_address(address + part.offset_bytes)
    return np.frombuffer(memoryview(raw), numpy_dtype(part.dtype)).reshape(part.shape)
