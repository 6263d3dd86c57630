"""A real, tiny language model with the engine's interface: the next token follows from the last.

Logits are log counts of token pairs in a text, so answers are deterministic and sensible, and a
test knows at every moment which tokens a state has seen. It computes nothing of a transformer:
what a real engine must prove is proved elsewhere.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kandiga_run.engine.stats import RunStats
from kandiga_run.errors import RunError

# What an unseen pair weighs beside a pair seen once: rare, but not impossible.
UNSEEN_COUNT = 0.01


class BigramState:
    """The tokens seen."""

    recurrent_nbytes = 0
    kv_format = "none"
    nbytes = 0

    def __init__(self, max_tokens: int, can_trim: bool = False) -> None:
        self.max_tokens = max_tokens
        self.can_trim = can_trim
        self.tokens: list[int] = []

    @property
    def position(self) -> int:
        return len(self.tokens)

    def trim(self, num_tokens: int) -> None:
        assert self.can_trim
        del self.tokens[self.position - num_tokens :]


@dataclass(frozen=True)
class BigramMark:
    position: int
    nbytes: int = 100


class MarkingState(BigramState):
    """One that goes back to marks, as recurrent layers do, and nowhere else."""

    def __init__(self, max_tokens: int, can_trim: bool = False) -> None:
        super().__init__(max_tokens, can_trim)
        self.marks: list[BigramMark] = []
        self.can_mark = True
        self.is_broken = False

    def mark(self) -> BigramMark:
        self.marks.append(BigramMark(self.position))
        return self.marks[-1]

    def rewind(self, mark: BigramMark) -> None:
        assert mark in self.marks
        del self.tokens[mark.position :]


class BigramEngine:
    """Predicts from pair counts; records the size of every chunk it was given."""

    name = "bigram"
    prefill_chunk = 512

    def __init__(self, token_ids: Sequence[int], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.stats = RunStats(top_k=2, num_experts_per_token=2)
        self.chunks: list[int] = []
        self.states: list[BigramState] = []
        self.is_closed = False
        self.can_trim = False
        self.state_type = BigramState
        counts = np.full((vocab_size, vocab_size), UNSEEN_COUNT)
        for first, second in itertools.pairwise(token_ids):
            counts[first, second] += 1
        self.log_probabilities = np.log(counts / counts.sum(axis=1, keepdims=True))

    def new_state(self, max_tokens: int) -> BigramState:
        self.states.append(self.state_type(max_tokens, self.can_trim))
        return self.states[-1]

    def forward(
        self,
        tokens: NDArray[np.int32],
        state: BigramState,
        *,
        logits: Literal["all", "last"] = "last",
        between_layers: Callable[[], None] | None = None,
    ) -> NDArray[np.float32]:
        assert tokens.dtype == np.int32
        if between_layers:
            between_layers()
        if state.position + len(tokens) > state.max_tokens:
            raise RunError(f"no room for {len(tokens)} tokens")
        self.chunks.append(len(tokens))
        state.tokens.extend(tokens.tolist())
        self.stats.bytes_read += 100 * len(tokens)
        rows = tokens if logits == "all" else tokens[-1:]
        return self.log_probabilities[rows].astype(np.float32)

    def close(self) -> None:
        self.is_closed = True
