"""Models known by name: what `setup` offers, and what `plan` knows without asking anybody.

The sizes are those of the published 4-bit checkpoints' language models, and a test computes them
again from the published shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

from kandiga_run.forecast.shape import DenseBytes, Download, ExpertLayer, ModelShape, SequenceShape

_QUANTIZED_ROW_BYTES = 4.5 / 8  # of a weight: 4 bits, and a scale and a bias of 16 bits for each 64


@dataclass(frozen=True)
class Preset:
    """A model that has a short name.

    checkpoint: its id on the Hub, packed on arrival. published: the id of a .kexp set, where
    somebody has published one; it goes first.
    """

    name: str
    title: str
    checkpoint: str
    published: str | None
    shape: ModelShape


def _qwen3_5(
    name: str,
    *,
    num_layers: int,
    hidden_size: int,
    moe_intermediate_size: int,
    num_experts: int,
    top_k: int,
    num_value_heads: int,
    dense: DenseBytes,
    num_files: int,
) -> ModelShape:
    """Return the shape of a Qwen3.5: three gated delta layers, then one of attention."""
    payload = int(3 * hidden_size * moe_intermediate_size * _QUANTIZED_ROW_BYTES)
    block = -(-payload // 16384) * 16384
    key_dim = value_dim = 128
    conv_dim = 2 * 16 * key_dim + num_value_heads * value_dim
    gated_delta_bytes = 4 * (3 * conv_dim + num_value_heads * value_dim * key_dim)
    num_kv_layers = num_layers // 4
    total = num_layers * num_experts * payload + dense.total
    return ModelShape(
        name=name,
        kind="preset",
        architecture="qwen3_5_moe",
        top_k=top_k,
        layers=(ExpertLayer(num_experts, block, payload),) * num_layers,
        dense=dense,
        sequence=SequenceShape(
            num_kv_layers, 2, 256, (num_layers - num_kv_layers) * gated_delta_bytes
        ),
        hidden_size=hidden_size,
        vocab_size=248320,
        context_length=262144,
        download=Download(total, -(-total // num_files)),
    )


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "qwen3.5-35b-a3b",
            "Qwen3.5 35B-A3B",
            "mlx-community/Qwen3.5-35B-A3B-4bit",
            None,
            _qwen3_5(
                "qwen3.5-35b-a3b",
                num_layers=40,
                hidden_size=2048,
                moe_intermediate_size=512,
                num_experts=256,
                top_k=8,
                num_value_heads=32,
                dense=DenseBytes(1_103_331_456, 286_064_640),
                num_files=4,
            ),
        ),
        Preset(
            "qwen3.5-122b-a10b",
            "Qwen3.5 122B-A10B",
            "mlx-community/Qwen3.5-122B-A10B-4bit",
            None,
            _qwen3_5(
                "qwen3.5-122b-a10b",
                num_layers=48,
                hidden_size=3072,
                moe_intermediate_size=1024,
                num_experts=256,
                top_k=8,
                num_value_heads=64,
                dense=DenseBytes(3_050_767_872, 429_096_960),
                num_files=14,
            ),
        ),
        Preset(
            "qwen3.5-397b-a17b",
            "Qwen3.5 397B-A17B",
            "mlx-community/Qwen3.5-397B-A17B-4bit",
            None,
            _qwen3_5(
                "qwen3.5-397b-a17b",
                num_layers=60,
                hidden_size=4096,
                moe_intermediate_size=1024,
                num_experts=512,
                top_k=10,
                num_value_heads=64,
                dense=DenseBytes(5_006_936_192, 572_129_280),
                num_files=46,
            ),
        ),
    )
}
