"""The models that most cases are made of."""

from __future__ import annotations

from typing import Any

from contents import Layout, Model, Part, weights


def quantized(
    projection: str, rows: int, cols: int, mode: str, bits: int, group: int, scales: str
) -> list[Part]:
    coding = (mode, bits, group)
    roles = ("scales", "biases") if mode == "affine" else ("scales",)
    return [
        Part(projection, "weight", "u32", (rows, cols * bits // 32), *coding),
        *(Part(projection, role, scales, (rows, cols // group), *coding) for role in roles),
    ]


def swiglu(bits: int, group: int = 32, scales: str = "bf16") -> Layout:
    parts = []
    for projection in ("gate", "up", "down"):
        parts += quantized(projection, 32, max(32, group), "affine", bits, group, scales)
    return Layout(parts)


PLAIN = Layout([Part("fc1", "weight", "f16", (1, 2)), Part("fc2", "weight", "f16", (2, 1))])
DENSE: list[tuple[str, str, tuple[int, ...], bytes]] = [("a", "u8", (3,), b"abc")]


def counted(layer: int, expert: int, part: Part) -> bytes:
    start = 1 + 8 * expert + (4 if part.projection == "fc2" else 0)
    return bytes(range(start, start + 4))


def tiny(experts: int = 1, **changes: Any) -> Model:
    """The worked example of the specification has two experts; most bad sets have one."""
    meta = {"activation": "relu", "hidden_size": 2} | changes
    return Model([PLAIN], {3: (0, experts)}, DENSE, meta, part_bytes=counted)


def sharded() -> Model:
    """Three shards; two layouts; a gap between the layers."""
    return Model(
        [swiglu(4), swiglu(8, 64, "f16")],
        {0: (0, 2), 2: (1, 1)},
        [("embed.weight", "bf16", (8, 8), weights("embed", 128)), *DENSE],
        {"quantization": {"bits": 4, "group_size": 32}},
        {"config.json": b'{"model_type":"tiny"}'},
        [[0], [2]],
    )


def file_model(config: str) -> Model:
    model = tiny()
    model.files = {"config.json": config.encode("latin-1")}
    return model
