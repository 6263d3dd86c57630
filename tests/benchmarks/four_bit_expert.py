"""The expert that the kernel benchmarks compute with."""

from typing import Any

import numpy as np

import cython_kernels


def expert_layout(
    hidden_size: int, intermediate: int, arithmetic: str
) -> cython_kernels.ExpertLayout:
    """A 4-bit expert of group size 64."""
    shapes = {
        "gate": (intermediate, hidden_size),
        "up": (intermediate, hidden_size),
        "down": (hidden_size, intermediate),
    }
    parts: dict[tuple[str, str], dict[str, Any]] = {}
    offset_bytes = 0
    for projection, (rows, columns) in shapes.items():
        groups = (rows, columns // 64)
        table = (("weight", "u32", (rows, columns // 8)), ("scales", "bf16", groups))
        for role, dtype, shape in (*table, ("biases", "bf16", groups)):
            parts[projection, role] = {
                "offset_bytes": offset_bytes,
                "dtype": dtype,
                "shape": shape,
                "bits": 4,
                "group_size": 64,
                "mode": "affine",
            }
            offset_bytes += int(np.prod(shape)) * (4 if dtype == "u32" else 2)
    sizes = {"hidden_size": hidden_size, "moe_intermediate_size": intermediate}
    return cython_kernels.ExpertLayout(parts, arithmetic=arithmetic, **sizes)
