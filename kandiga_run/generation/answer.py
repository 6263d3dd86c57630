"""One answer in the making: logits in, tokens with their text out. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kandiga_run.generation.options import GenerateOptions
from kandiga_run.generation.sampling import Sampler
from kandiga_run.generation.stop_strings import StopStrings
from kandiga_run.tokenizer.detokenizer import StreamingDetokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Token:
    """One sampled token and the text that became certain with it, possibly none.

    A token that ends the answer is given out too, with the last of the text.
    """

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class TokenMask(Protocol):
    """Which tokens may come next, such as those that keep an answer within a JSON schema."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow: the answer ends."""

    @property
    def in_reasoning(self) -> bool:
        """Whether the latest token was reasoning, in which stop strings do not count."""

    def mask(self) -> NDArray[np.uint32] | None:
        """Return a bit for each token that is allowed, as `Sampler.choose` takes it; None: all."""

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""


class Answer:
    """Chooses the tokens of one answer, settles when it ends and which text may be shown.

    `finish_reason` is None until the answer ended by itself.
    """

    def __init__(
        self,
        options: GenerateOptions,
        prompt_tokens: Sequence[int],
        history: Sequence[int] = (),
        detokenizer: StreamingDetokenizer | None = None,
        limit: int | None = None,
        mask: TokenMask | None = None,
    ) -> None:
        """Begin an answer to `history` and then `prompt_tokens`.

        detokenizer: makes the text; without one tokens carry no text and stop strings never match.
        limit: of tokens, `options.max_tokens` by default; see `GenerateOptions.answer_limit`.
        mask: narrows the choice of each token.
        """
        self._options = options
        self._detokenizer = detokenizer
        self._limit = options.max_tokens if limit is None else limit
        self._mask = mask
        self._sampler = Sampler(options.sampling, logprobs=options.logprobs)
        self._stops = StopStrings(options.stop)
        self._history = [*history, *prompt_tokens]
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None

    @property
    def seed(self) -> int:
        """Return the seed in use, drawn when none was given."""
        return self._sampler.seed

    def add(self, logits: NDArray[np.float32]) -> Token:
        """Choose the next token given logits (vocab,).

        Raises RunError when the logits hold no usable maximum, or the mask leaves no token.
        """
        allowed = self._mask.mask() if self._mask else None
        choice = self._sampler.choose(logits, self._history, allowed)
        self.token_ids.append(choice.token)
        self._history.append(choice.token)
        if choice.token in self._options.stop_token_ids:
            text, self.finish_reason = "", "stop"
        else:
            text = self._detokenizer.add(choice.token) if self._detokenizer else ""
            self._look_for_end(choice.token)
        text = self._showable(text)
        self.text += text
        return Token(choice.token, text, choice.logprob, choice.top_logprobs)

    def _look_for_end(self, token: int) -> None:
        if self._mask:
            self._mask.accept(token)
            if self._mask.is_complete:
                self.finish_reason = "stop"
        if self.finish_reason is None and len(self.token_ids) == self._limit:
            self.finish_reason = "length"

    def _showable(self, text: str) -> str:
        """Return what may be shown, given the text of a token; settle whether it ends here."""
        if self.finish_reason and self._detokenizer:
            text += self._detokenizer.finish()
        if self._mask and self._mask.in_reasoning:
            return text
        text, is_stopped = self._stops.add(text)
        if is_stopped:
            self.finish_reason = "stop"
        elif self.finish_reason:
            text += self._stops.finish()
        return text
