"""How a memory budget is divided: everything else first, the experts take what is left."""

from __future__ import annotations

from dataclasses import dataclass

from kandiga_run.errors import RunError

_MIB = 1 << 20
# A process takes a little more or less each time (0.3 MiB seen, more with a cold page cache), and
# the budget that an error names must work when it is typed.
_DIFFERENCE_MIB = 2


@dataclass(frozen=True)
class FixedBytes:
    """Memory that is taken whatever the experts get."""

    #: what the process held before it opened the model
    process: int
    dense_weights: int
    buffers: int
    kv_cache: int

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.process + self.dense_weights + self.buffers + self.kv_cache


def bytes_for_experts(
    budget_bytes: int, fixed: FixedBytes, least_bytes: int, *, kv_tokens: int | None = None
) -> int:
    """Return what a budget leaves to the experts, who need `least_bytes`.

    RunError when it does not reach, with the smallest budget that does. `kv_tokens` is the number
    of tokens that the KV cache is counted for, where it is known beforehand.
    """
    needed = fixed.total + least_bytes
    if budget_bytes < needed:
        of_tokens = "" if kv_tokens is None else f" of {kv_tokens} tokens"
        raise RunError(
            f"a memory budget of {budget_bytes / _MIB:.1f} MiB cannot work: this process takes "
            f"{fixed.process / _MIB:.1f}, dense weights {fixed.dense_weights / _MIB:.1f}, "
            f"buffers {fixed.buffers / _MIB:.1f}, the KV cache{of_tokens} "
            f"{fixed.kv_cache / _MIB:.1f}, experts at least {least_bytes / _MIB:.1f}; the smallest "
            f"that works is {-(-needed // _MIB) + _DIFFERENCE_MIB}MiB"
        )
    return budget_bytes - fixed.total
