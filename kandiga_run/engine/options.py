"""What a user may choose about an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kandiga_run.engine.arithmetic import ArithmeticChoice
from kandiga_run.errors import RunError
from kandiga_run.kv.choices import KVChoice, check_kv

EngineName = Literal["auto", "native", "mlx"]
Residency = Literal["auto", "mapped", "owned"]
Check = Literal["first-touch", "always", "off"]


@dataclass(frozen=True)
class EngineOptions:
    """The defaults compute the model as published."""

    residency: Residency = "auto"
    #: Budget for dense weights, KV cache, expert slots and buffers together.
    memory_bytes: int | None = None
    #: Experts a token uses; "fast" is half of the model's own number, at least one.
    num_experts_per_token: int | Literal["fast"] | None = None
    check: Check = "first-touch"
    num_threads: int | None = None
    num_readers: int | None = None
    #: "auto" is as precise as the checkpoint: f32 for a float32 one, else f16. Native engine only.
    kv_dtype: Literal["auto", "f16", "f32"] = "auto"
    #: Tokens of the first state: a budget without room for them is refused at once. Native engine
    #: only, since mlx-lm alone knows how large a family's cache becomes.
    state_tokens: int = 1
    #: How quantized matrices are multiplied; "auto" is int16 in the native engine.
    arithmetic: ArithmeticChoice = "auto"
    #: How keys and values are held: "auto" is as `kv_dtype` says until a sequence is so long that
    #: compression pays; the choices with numbers are bits of keys and values.
    kv: KVChoice = "auto"
    #: Give one key bit to the sign of the residual's projection (QJL).
    kv_qjl: bool = False
    #: So many first and last layers with keys and values have 8 bits.
    kv_protect: int = 0

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "num_threads", "num_readers", "state_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RunError(f"{name} is {value}, wanted at least 1")
        check_kv(self.kv, self.kv_qjl, self.kv_protect)
