"""From logits to a token: penalties, temperature, top-k, top-p, min-p, a seeded draw.

The order is the one transformers uses, because the values published in generation_config.json
were chosen under it:

1. repetition penalty on the logits of tokens already in the sequence,
2. frequency and presence penalty on those of the answer alone, then logit bias, then the mask,
3. temperature (0 is greedy: the largest logit, ties to the lower id, and nothing below applies),
4. top-k: the k largest logits, ties to the lower id,
5. top-p: of those, the fewest whose probability reaches p,
6. min-p: of those, the ones at least min_p times as probable as the most probable,
7. one draw from what is left.

Filters 4 to 6 each keep a prefix of the tokens sorted by descending logit, so only as many
leading tokens as needed are ever sorted: a full sort of a 250k vocabulary costs as much as
several layers of a small model.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kandiga_run.errors import RunError

#: How many leading tokens top-p sorts first; a confident model rarely needs more.
_FIRST_SORTED = 256


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. The defaults are greedy. Raises RunError when out of range."""

    temperature: float = 0.0
    #: Keep this many most probable tokens; 0 keeps all.
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    #: Above 1 makes tokens already in the sequence (prompt included) less probable.
    repetition_penalty: float = 1.0
    #: How many of the last tokens the penalty looks at; None looks at all of them.
    repetition_window: int | None = None
    #: Taken off the logit of a token the answer holds already, whatever the number of times ...
    presence_penalty: float = 0.0
    #: ... and once more for each time.
    frequency_penalty: float = 0.0
    #: Added to the logits of single tokens, by id; ids outside the vocabulary change nothing.
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    #: The same seed, prompt and options give the same text; None draws a seed.
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check every range once, for command line, server and Python callers alike."""
        window = self.repetition_window
        checks = (
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                0 < self.repetition_penalty < math.inf,
                "above 0 (1 changes nothing)",
            ),
            ("repetition_window", window, window is None or window >= 0, "0 or more tokens"),
            (
                "presence_penalty",
                self.presence_penalty,
                math.isfinite(self.presence_penalty),
                "a finite number",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                math.isfinite(self.frequency_penalty),
                "a finite number",
            ),
            (
                "logit_bias",
                dict(self.logit_bias),
                all(math.isfinite(bias) for bias in self.logit_bias.values()),
                "finite numbers",
            ),
            ("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more"),
        )
        for name, seen, is_valid, wanted in checks:
            if not is_valid:
                raise RunError(f"{name} {seen}: wanted {wanted}")


@dataclass(frozen=True)
class Choice:
    """A chosen token and, when asked for, natural log probabilities under the model itself.

    Log probabilities are those of the logits as the engine gave them, before penalty,
    temperature and filters.
    """

    token: int
    logprob: float | None = None
    #: The most probable tokens, best first, as (token, logprob).
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses tokens of one answer; holds its random generator (PCG64) and what it chose."""

    def __init__(self, options: SamplingOptions, *, logprobs: int | None = None) -> None:
        """Make a sampler; `logprobs` asks for log probabilities and that many alternatives."""
        self.options = options
        self.logprobs = logprobs
        #: The seed in use, also when none was given.
        self.seed = secrets.randbits(32) if options.seed is None else options.seed
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._chosen: Counter[int] = Counter()
        self._masked: NDArray[np.float32] | None = None

    def choose(
        self,
        logits: NDArray[np.float32],
        history: Sequence[int],
        mask: NDArray[np.uint32] | None = None,
    ) -> Choice:
        """Return the next token, given logits (vocab,) and the tokens so far, prompt included.

        `mask` (words,) has a bit for each token that may be chosen, the lowest bit of a word first;
        tokens past its end may not be. Raises RunError when it leaves no token, and when the logits
        hold no usable maximum (NaN or infinite): a broken computation must not turn into text.
        """
        peak = float(np.max(logits))
        if not math.isfinite(peak):
            raise RunError(
                f"the model gave {peak} as its largest logit after {len(history)} tokens: the "
                "weights or the computation are damaged; run kandiga-pack verify on the container"
            )
        options = self.options
        penalized = self._adjust(_penalize(logits, history, options))
        if mask is not None:
            penalized = self._narrow(penalized, mask)
        if options.temperature == 0:
            token = int(np.argmax(penalized))
        else:
            token = self._draw(penalized / np.float32(options.temperature))
        self._chosen[token] += 1
        if self.logprobs is None:
            return Choice(token)
        return _with_logprobs(token, logits, self.logprobs)

    def _adjust(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits less the penalties on this answer's own tokens, plus the bias."""
        options = self.options
        changes = {id_: bias for id_, bias in options.logit_bias.items() if 0 <= id_ < logits.size}
        if options.presence_penalty or options.frequency_penalty:
            for token, times in self._chosen.items():
                penalty = options.presence_penalty + times * options.frequency_penalty
                changes[token] = changes.get(token, 0.0) - penalty
        if not changes:
            return logits
        adjusted = logits.copy()
        adjusted[list(changes)] += np.fromiter(changes.values(), np.float32)
        return adjusted

    def _narrow(self, logits: NDArray[np.float32], mask: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Return logits with minus infinity for what the mask leaves out."""
        if self._masked is None:
            # Whole bytes: kept from token to token, as a vocabulary's worth of floats is 1 MB.
            self._masked = np.empty((-(-logits.size // 8), 8), dtype=np.float32)
        flat = self._masked.reshape(-1)
        bits = mask.view(np.uint8)[: len(self._masked)]
        np.take(_bits_to_logits(), bits, axis=0, out=self._masked[: len(bits)], mode="clip")
        self._masked[len(bits) :] = -np.inf
        narrowed = flat[: logits.size]
        narrowed += logits
        if narrowed.max() == -np.inf:
            raise RunError("no token is allowed to come next: the grammar of the answer has no end")
        return narrowed

    def _draw(self, scaled: NDArray[np.float32]) -> int:
        ids, weights = candidates(scaled, self.options)
        # float64 sums: over 250k tokens a float32 running sum loses the tail it should draw from.
        mass = np.cumsum(weights, dtype=np.float64)
        index = int(np.searchsorted(mass, self._random.random() * mass[-1], side="right"))
        if index == len(ids):  # the product was rounded up to the whole mass
            index = int(np.flatnonzero(weights)[-1])
        return int(ids[index])


def candidates(
    scaled: NDArray[np.float32], options: SamplingOptions
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return ids (n,) that survive top-k, top-p and min-p, and their unnormalized probabilities.

    `scaled` (vocab,) are logits after penalty and temperature. Ids are ordered by descending
    logit, ties by id; without any filter they are in vocabulary order.
    """
    vocab_size = scaled.size
    peak = np.max(scaled)
    top_k = min(options.top_k, vocab_size) or vocab_size
    keep = top_k
    if options.min_p > 0:
        floor = peak + np.float32(math.log(options.min_p))
        keep = min(keep, int(np.count_nonzero(scaled >= floor)))
    if options.top_p < 1:
        keep = min(keep, _top_p_count(scaled, peak, options.top_p, top_k))
    if keep == vocab_size:
        return np.arange(vocab_size), np.exp(scaled - peak)
    ids = _leading(scaled, keep)
    return ids, np.exp(scaled[ids] - peak)


def _top_p_count(scaled: NDArray[np.float32], peak: np.float32, top_p: float, top_k: int) -> int:
    """Return how many leading tokens of the `top_k` it takes to reach probability `top_p`."""
    if top_k < scaled.size:
        mass = np.cumsum(np.exp(scaled[_leading(scaled, top_k)] - peak), dtype=np.float64)
        return _reach(mass, top_p * mass[-1])
    wanted = top_p * float(np.sum(np.exp(scaled - peak), dtype=np.float64))
    count = min(_FIRST_SORTED, scaled.size)
    while True:
        mass = np.cumsum(np.exp(scaled[_leading(scaled, count)] - peak), dtype=np.float64)
        if mass[-1] >= wanted or count == scaled.size:
            return _reach(mass, wanted)
        count = min(count * 8, scaled.size)


def _reach(mass: NDArray[np.float64], wanted: float) -> int:
    return min(int(np.searchsorted(mass, wanted, side="left")) + 1, mass.size)


def _leading(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` largest values, descending, ties to the lower index.

    argpartition alone would pick arbitrarily among values tied with the last one.
    """
    if count >= values.size:
        return np.argsort(-values, kind="stable")
    last = values.size - count
    threshold = np.partition(values, last)[last]
    ids = np.flatnonzero(values >= threshold)
    return ids[np.argsort(-values[ids], kind="stable")][:count]


def _penalize(
    logits: NDArray[np.float32], history: Sequence[int], options: SamplingOptions
) -> NDArray[np.float32]:
    """Return logits with seen tokens made less probable, whichever the sign of their logit."""
    penalty, window = np.float32(options.repetition_penalty), options.repetition_window
    if penalty == 1 or window == 0 or not history:
        return logits
    recent = history if window is None else history[-window:]
    seen = np.unique(np.asarray(recent, dtype=np.int64))
    seen = seen[seen < logits.size]
    penalized = logits.copy()
    values = penalized[seen]
    with np.errstate(divide="ignore", over="ignore"):  # a penalty near 0 makes infinities
        penalized[seen] = np.where(values < 0, values * penalty, values / penalty)
    return penalized


@cache
def _bits_to_logits() -> NDArray[np.float32]:
    """Return what each byte of a mask adds to the logits of its eight tokens: 0 or -infinity."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits, np.float32(0), np.float32(-np.inf))


def _with_logprobs(token: int, logits: NDArray[np.float32], count: int) -> Choice:
    peak = np.max(logits)
    normalizer = float(peak) + math.log(float(np.sum(np.exp(logits - peak), dtype=np.float64)))
    best = _leading(logits, count) if count else np.empty(0, dtype=np.int64)
    top = tuple((int(index), float(logits[index]) - normalizer) for index in best)
    return Choice(token, float(logits[token]) - normalizer, top)
