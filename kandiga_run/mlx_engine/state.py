"""One sequence in the mlx engine: mlx-lm's own prompt cache."""

from __future__ import annotations

from typing import Any

from mlx_lm.models.cache import make_prompt_cache


class MlxState:
    """KV cache and recurrent state as the model's family wants them."""

    def __init__(self, model: Any, max_tokens: int) -> None:
        self.cache: list[Any] = make_prompt_cache(model)
        self.position = 0
        self.max_tokens = max_tokens

    @property
    def nbytes(self) -> int:
        """Return the size of the arrays held, room kept for later tokens included."""
        return sum(entry.nbytes for entry in self.cache) if self.position else 0

    def arrays(self) -> list[Any]:
        """Return what must be evaluated after a step besides the logits.

        The logits do not depend on the next recurrent state: left alone, its graph would grow
        with every token.
        """
        return [entry.state for entry in self.cache]
