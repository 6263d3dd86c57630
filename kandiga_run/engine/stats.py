"""Counters of a run: what was computed, what was read, how long it took.

The engine and the expert store add to one `RunStats`; whoever wants the figures of a phase
(prefill, one chat turn) takes a `snapshot()` before it and subtracts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

#: Counters of kernel time, in the order of the labels of `cython_kernels.time_totals`.
KERNEL_TIMES = (
    "dense_seconds",
    "routing_seconds",
    "expert_seconds",
    "attention_seconds",
    "gated_delta_seconds",
    "kv_coding_seconds",
)

_SETTINGS = frozenset({"kv", "residency", "arithmetic", "top_k", "num_experts_per_token", "tuned"})


@dataclass
class RunStats:
    """Counters since the engine was loaded, and the settings they were made with."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    #: (layer, expert) pairs asked for; a prefill chunk asks once for an expert many tokens share.
    experts_requested: int = 0
    #: of those, read from disk ...
    experts_read: int = 0
    #: ... or found in memory.
    experts_reused: int = 0
    #: of those read, begun before the router had asked, and how many of them it then asked for.
    experts_read_ahead: int = 0
    experts_read_ahead_used: int = 0
    bytes_read: int = 0
    #: time the computation stood still until an expert had arrived.
    read_wait_seconds: float = 0.0
    #: time inside `Engine.forward` ...
    forward_seconds: float = 0.0
    #: ... of that in kernels, waits excluded: embedding, norms, projections, shared experts, head;
    dense_seconds: float = 0.0
    #: the router's matrix and its choice;
    routing_seconds: float = 0.0
    #: routed experts and their sum;
    expert_seconds: float = 0.0
    #: rope, KV cache and attention itself, without the projections around them;
    attention_seconds: float = 0.0
    #: the same of gated delta layers.
    gated_delta_seconds: float = 0.0
    #: coding of keys and values for a compressed KV cache.
    kv_coding_seconds: float = 0.0
    #: time in which tokens were chosen from logits; outside of `forward_seconds`.
    sampling_seconds: float = 0.0
    #: mlx engine: times the CPU waited for the device to learn which experts are needed (once per
    #: MoE layer and forward call), and how long. The device computes meanwhile.
    device_waits: int = 0
    device_wait_seconds: float = 0.0

    #: "mapped" or "owned"; empty until a store is open.
    residency: str = ""
    #: "exact", "int16" or "int8": how quantized matrices are multiplied.
    arithmetic: str = "exact"
    #: how keys and values were chosen to be held, such as "auto" or "k4v3".
    kv: str = ""
    #: experts a token uses according to the model's config.
    top_k: int = 0
    #: what was taken from settings that `kandiga-run tune` kept, or why not; empty without any.
    tuned: str = ""
    #: experts a token uses in this run; fewer than `top_k` is a lossy choice of the user.
    num_experts_per_token: int = 0

    def snapshot(self) -> RunStats:
        """Return a copy that later additions do not change."""
        return replace(self)

    def minus(self, earlier: RunStats) -> RunStats:
        """Return the counters added since `earlier`; settings stay as they are here."""
        return self._counters_with(earlier, -1)

    def plus(self, later: RunStats) -> RunStats:
        """Return the counters of both; settings are those of `later`."""
        return later._counters_with(self, 1)

    def _counters_with(self, other: RunStats, sign: int) -> RunStats:
        result = {
            field.name: getattr(self, field.name) + sign * getattr(other, field.name)
            for field in fields(self)
            if field.name not in _SETTINGS
        }
        return replace(self, **result)

    @property
    def other_seconds(self) -> float:
        """Return the time in `forward` that was neither kernels nor waiting for reads.

        With the native engine that is Python and the store's bookkeeping, with the mlx engine also
        everything mlx computes.
        """
        kernels: list[float] = [getattr(self, name) for name in KERNEL_TIMES]
        return max(0.0, self.forward_seconds - self.read_wait_seconds - sum(kernels))

    def add_kernel_times(self, nanoseconds: Sequence[int]) -> None:
        """Add what `cython_kernels.time_totals` counted during one call of `forward`."""
        for name, value in zip(KERNEL_TIMES, nanoseconds, strict=True):
            setattr(self, name, getattr(self, name) + value * 1e-9)

    @property
    def is_lossy(self) -> bool:
        """Whether the user chose fewer experts than published, or compressed keys and values."""
        return self.has_fewer_experts or self.kv not in ("", "auto", "fp16")

    @property
    def has_fewer_experts(self) -> bool:
        """Whether this run uses fewer experts than the model was published with."""
        return 0 < self.num_experts_per_token < self.top_k

    def to_dict(self) -> dict[str, Any]:
        """Return counters and settings as plain JSON values."""
        return asdict(self)
