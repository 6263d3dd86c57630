"""Token embedding, and the head that turns hidden states into logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cython_kernels import Matrix, embed_rows, matmul
from kandiga_run.native.weights import Weights

Array = NDArray[np.float32]


class Embedding:
    """Rows of the table (vocab_size, H), dequantized on the way."""

    def __init__(self, table: Matrix) -> None:
        self.table = table
        self.vocab_size = table.out_features
        self.hidden_size = table.in_features

    def forward(self, tokens: NDArray[np.int32], out: Array) -> None:
        """Write the rows of tokens (T,) into out (T, H)."""
        embed_rows(self.table, tokens, out)


class Head:
    """logits = x W^T, with W its own matrix or, tied, the embedding table."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix

    def forward(self, x: Array, out: Array) -> None:
        """Compute x (T, H) into out (T, vocab_size)."""
        matmul(self._matrix, x, out)


def embedding_and_head(
    weights: Weights, embed_name: str, head_name: str, vocab_size: int, hidden_size: int, tied: bool
) -> tuple[Embedding, Head]:
    """Return both ends of the decoder; a tied head ignores a stored lm_head, as mlx-lm does."""
    if tied:
        weights.ignore(f"{head_name}.")
        table = weights.linear(embed_name, vocab_size, hidden_size)
        return Embedding(table), Head(table)
    embedding = Embedding(weights.table(embed_name, vocab_size, hidden_size))
    return embedding, Head(weights.linear(head_name, vocab_size, hidden_size))
