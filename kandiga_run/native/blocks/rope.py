"""Rotary position embedding of the first dimensions of each head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cython_kernels import RotatedHeads
from kandiga_run.config import Config
from kandiga_run.errors import RunError


class Rope:
    """Rotates the first `rotary_dim` dimensions of a head; all of them, or a part."""

    def __init__(
        self, rotary_dim: int, theta: float, *, traditional: bool = False, scale: float = 1.0
    ) -> None:
        if theta <= 0:
            raise RunError(f"config.json: rope_theta is {theta}, wanted a number above zero")
        exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
        self._inverse_frequencies = (theta**-exponents).astype(np.float32)
        self._traditional = traditional
        self._scale = scale

    def bind(
        self,
        queries: NDArray[np.float32],
        keys: NDArray[np.float32],
        norms: tuple[NDArray[np.float32], NDArray[np.float32], float] | None,
    ) -> RotatedHeads:
        """Return a call that rotates queries and keys (max_rows, num_heads, head_dim) in place.

        norms: weights of an RMSNorm over each query and key head before it, and its epsilon. The
        call takes the number of tokens and the position of the first.
        """
        query_norm, key_norm, eps = norms if norms is not None else (None, None, 0.0)
        return RotatedHeads(
            queries,
            keys,
            self._inverse_frequencies,
            query_norm=query_norm,
            key_norm=key_norm,
            eps=eps,
            traditional=self._traditional,
            scale=self._scale,
        )


def rope_number(config: Config, key: str, default: float | None = None) -> float:
    """Return rope_theta or partial_rotary_factor, from rope_parameters or beside it."""
    parameters = config.section("rope_parameters")
    return parameters.number(key) if key in parameters else config.number(key, default)


def rope_scale(config: Config, *, linear: bool = True) -> float:
    """Return the factor on positions that rope_scaling or rope_parameters asks for.

    Multimodal rope ("mrope") gives a text token the same position three times, which is plain
    rope. Types that change the frequencies are refused, and linear where mlx-lm ignores it.
    """
    parameters = config.section("rope_scaling" if "rope_scaling" in config else "rope_parameters")
    kind = parameters.text("type" if "type" in parameters else "rope_type", "default")
    if kind in ("default", "mrope"):
        return 1.0
    if kind == "linear" and linear:
        return 1.0 / parameters.number("factor")
    raise RunError(
        f"{parameters.where}: rope type {kind!r} is not implemented by the native engine for "
        "this architecture"
    )
