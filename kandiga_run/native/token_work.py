"""What one token needs of the model: bytes that must be read from memory, and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from kandiga_run.container import Model


@dataclass(frozen=True)
class TokenWork:
    """The least work of a token, however cleverly it is done."""

    #: dense weights that every token reads, the head included
    dense_bytes: int
    #: the experts that one token chooses
    expert_bytes: int
    #: mean size of one of them
    bytes_per_expert: float
    #: KV cache and recurrent state at the depth in question
    state_bytes: int
    #: multiply-adds with dense weights, the head left out ...
    dense_multiply_adds: int
    #: ... of the head, computed for the last token of a prefill only ...
    head_multiply_adds: int
    #: ... and of the chosen experts
    expert_multiply_adds: int


def expert_work(model: Model, num_experts_per_token: int) -> tuple[int, int]:
    """Return (bytes, multiply-adds) of the experts of one token, over all layers."""
    container = model.container
    num_bytes = multiply_adds = 0
    for layer in container.layers:
        used = min(num_experts_per_token, container.num_experts(layer))
        layout = container.layout(layer)
        kernel_layout = model.expert_layout(layer)
        num_bytes += used * layout.payload_bytes
        multiply_adds += used * 3 * kernel_layout.hidden_size * kernel_layout.moe_intermediate_size
    return num_bytes, multiply_adds
