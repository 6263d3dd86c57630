"""What a caller may ask of an answer: its length, where it stops, how tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field

from kandiga_run.errors import RunError
from kandiga_run.generation.sampling import SamplingOptions


@dataclass(frozen=True)
class GenerateOptions:
    """What to generate and when to stop."""

    max_tokens: int = 1024
    #: Text that ends the answer; neither it nor what follows is given out.
    stop: tuple[str, ...] = ()
    #: Tokens that end the answer; they give no text.
    stop_token_ids: frozenset[int] = frozenset()
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    #: Tokens a prefill step computes together, each expert read once for all of them; by default
    #: what the engine likes best.
    prefill_chunk: int | None = None
    #: Ask for log probabilities, and for this many alternatives a token.
    logprobs: int | None = None
    #: Tokens the model was made for; the answer ends there with "length".
    context_length: int | None = None

    def __post_init__(self) -> None:
        """Raise RunError for values that cannot work."""
        if self.max_tokens < 1:
            raise RunError(f"max_tokens {self.max_tokens}: wanted 1 or more")
        if self.prefill_chunk is not None and self.prefill_chunk < 1:
            raise RunError(f"prefill_chunk {self.prefill_chunk}: wanted 1 or more")
        if "" in self.stop:
            raise RunError("stop: an empty string would stop before the first token")

    def answer_limit(self, seen: int, state_tokens: int | None = None) -> int:
        """Return how many tokens may follow `seen` ones in a state that has room for so many.

        Raises RunError when the context or the state has no room for any.
        """
        limit = self.max_tokens
        for context in (self.context_length, state_tokens):
            if context is None:
                continue
            if seen >= context:
                raise RunError(
                    f"the prompt has {seen} tokens and the context {context}: shorten the prompt"
                )
            limit = min(limit, context - seen)
        return limit
