"""Decoders of published families, by the `model_type` of their config.json."""

from __future__ import annotations

from collections.abc import Callable

from kandiga_run.native.architectures import mixtral, qwen3_5_moe, qwen3_moe, qwen3_next
from kandiga_run.native.builder import Builder
from kandiga_run.native.decoder import Decoder

#: Functions that read the config, take the tensors they need and return the decoder.
ARCHITECTURES: dict[str, Callable[[Builder], Decoder]] = {
    "mixtral": mixtral.build,
    "qwen3_moe": qwen3_moe.build,
    "qwen3_next": qwen3_next.build,
    "qwen3_5_moe": qwen3_5_moe.build,
}
