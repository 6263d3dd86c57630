"""How many tokens an answer took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer."""

    #: of the prompt, those included that a kept state already held
    prompt_tokens: int
    cached_tokens: int
    #: every token chosen, the one that ended the answer included
    generated_tokens: int
