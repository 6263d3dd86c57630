"""Two sets of logits of the same positions: how much the distributions they stand for differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]

# Rows computed together: a row of 250 000 logits takes 2 MB in float64.
_BLOCK_ROWS = 32


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Return log probabilities (T, vocab) in float64: float32 rounds a KL of 1e-8 away."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def kl_divergence(
    reference: NDArray[np.float64], other: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return KL(reference || other) in nats, (T,), of log probabilities (T, vocab)."""
    divergence: NDArray[np.float64] = (np.exp(reference) * (reference - other)).sum(axis=-1)
    return divergence


@dataclass(frozen=True)
class Summary:
    """Figures over all positions. KL in nats; perplexities over positions with a next token.

    log_perplexity_error: standard error of the difference between the two log perplexities.
    """

    num_tokens: int
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float
    log_perplexity_error: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return asdict(self)


class Comparison:
    """Gathers positions until a summary is asked for; keeps a few numbers of each, no logits."""

    def __init__(self) -> None:
        self._kl: list[NDArray[np.float64]] = []
        self._agrees: list[NDArray[np.bool_]] = []
        self._nll: list[NDArray[np.float64]] = []
        self._reference_nll: list[NDArray[np.float64]] = []

    def add(self, reference: Logits, other: Logits, targets: NDArray[np.int32]) -> None:
        """Add positions.

        Args:
            reference: logits (T, vocab) of what is taken to be right.
            other: those compared with it, of the same shape.
            targets: the tokens that follow in the text, (T,), or (T - 1,) when the text ends.

        Raises ValueError for other shapes, and for logits that are not finite.
        """
        if reference.shape != other.shape or len(reference) - len(targets) not in (0, 1):
            shapes = f"{reference.shape}, {other.shape} and {targets.shape}"
            raise ValueError(f"logits and targets of shapes {shapes} do not belong together")
        for start in range(0, len(reference), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            self._add_block(reference[rows], other[rows], targets[rows])

    def _add_block(self, reference: Logits, other: Logits, targets: NDArray[np.int32]) -> None:
        ours, theirs = log_softmax(reference), log_softmax(other)
        divergence = kl_divergence(ours, theirs)
        if not np.isfinite(divergence).all():
            raise ValueError("logits that are not finite")
        self._kl.append(divergence)
        self._agrees.append(reference.argmax(axis=-1) == other.argmax(axis=-1))
        positions = np.arange(len(targets))
        self._reference_nll.append(-ours[positions, targets])
        self._nll.append(-theirs[positions, targets])

    def summary(self) -> Summary:
        """Return the figures; ValueError when no position with a next token was added."""
        if not sum(map(len, self._nll)):
            raise ValueError("nothing was compared")
        kl = np.concatenate(self._kl)
        nll, reference_nll = np.concatenate(self._nll), np.concatenate(self._reference_nll)
        return Summary(
            num_tokens=len(kl),
            kl_mean=float(kl.mean()),
            kl_median=float(np.median(kl)),
            kl_p99=float(np.quantile(kl, 0.99)),
            kl_max=float(kl.max()),
            top1_agreement=float(np.concatenate(self._agrees).mean()),
            perplexity=float(np.exp(nll.mean())),
            reference_perplexity=float(np.exp(reference_nll.mean())),
            log_perplexity_error=float((nll - reference_nll).std() / np.sqrt(len(nll))),
        )
