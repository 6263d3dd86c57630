"""Answers held to a JSON schema, a regular expression, a list of choices or a grammar.

llguidance walks the grammar over the vocabulary and says, for every token, whether it may come
next. The mask is packed, a bit for each token: 30 kB for a vocabulary of 250k, filled in place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kandiga_run.errors import RunError

#: Between the tokens of JSON. Bounded, since small models otherwise indent for ever; enough for
#: fifteen levels of it. A schema's own "x-guidance" goes before.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{0,32}"


class Grammars:
    """Makes constraints for one model. Takes a second for a large vocabulary: make it once."""

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, stop_token_ids: Iterable[int]
    ) -> None:
        """Index the vocabulary.

        vocab_size: of the engine, which may have more rows than the tokenizer has tokens.
        stop_token_ids: what may follow a complete answer. Raises RunError without any.
        """
        stops = sorted(stop_token_ids)
        if not stops:
            raise RunError("a constrained answer needs a token that ends it; the model names none")
        self._tokenizer = LLTokenizer(
            tokenizer.to_str(),
            n_vocab=max(vocab_size, tokenizer.get_vocab_size(with_added_tokens=True)),
            eos_token=stops,
        )

    def json_schema(self, schema: Mapping[str, Any] | str) -> Constraint:
        """Return a constraint to JSON that fits the schema. Raises RunError for a bad schema."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, {"whitespace_pattern": _WHITESPACE})
        except ValueError as error:
            raise RunError(f"the JSON schema is not usable: {_one_line(error)}") from error
        return self._constraint(grammar, "JSON schema")

    def json_object(self) -> Constraint:
        """Return a constraint to any JSON object."""
        return self.json_schema({"type": "object"})

    def regex(self, pattern: str) -> Constraint:
        """Return a constraint to what the whole pattern matches (Rust's regex syntax)."""
        return self._constraint(LLMatcher.grammar_from_regex(pattern), "regular expression")

    def choice(self, choices: Sequence[str]) -> Constraint:
        """Return a constraint to one of the given texts."""
        if not choices or "" in choices:
            raise RunError(f"choices {list(choices)}: wanted one or more texts, none empty")
        alternatives = " | ".join(json.dumps(text, ensure_ascii=False) for text in choices)
        return self.grammar(f"start: {alternatives}")

    def grammar(self, lark: str) -> Constraint:
        """Return a constraint to a grammar in Lark's syntax, as llguidance reads it."""
        return self._constraint(LLMatcher.grammar_from_lark(lark), "grammar")

    def _constraint(self, grammar: str, what: str) -> Constraint:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise RunError(f"the {what} is not usable: {_one_line(matcher.get_error())}")
        return Constraint(matcher, self._tokenizer.vocab_size)


class Constraint:
    """What one answer may still become."""

    in_reasoning = False

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        """Begin at the first token; `Grammars` makes these."""
        self._matcher = matcher
        self._mask = np.zeros(-(-vocab_size // 32), dtype=np.uint32)

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def may_end(self) -> bool:
        """Whether the answer is whole, though more may follow."""
        return bool(self._matcher.is_accepting())

    def mask(self) -> NDArray[np.uint32]:
        """Return which tokens may come next, a bit each, the lowest of a word first.

        The array is overwritten by the next call. Raises RunError when the grammar is too complex.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        return self._mask

    def accept(self, token: int) -> None:
        """Go on after this token. Raises RunError when the mask does not have it."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RunError(f"the constraint failed: {_one_line(self._matcher.get_error())}")


def _one_line(message: object) -> str:
    return " ".join(str(message).split())[:300]
