"""Log probabilities as OpenAI's APIs carry them."""

from __future__ import annotations

from collections.abc import Sequence

from kandiga_run.generation.answer import Token
from kandiga_run.server.openai.chat_answer import ChoiceLogprobs, TokenLogprob, TopLogprob
from kandiga_run.tokenizer.token_bytes import TokenBytes

#: What stands for a probability of zero: JSON has no infinity.
_LEAST = -9999.0


def choice_logprobs(vocabulary: TokenBytes, tokens: Sequence[Token]) -> ChoiceLogprobs:
    """Return the log probabilities of tokens and of their alternatives."""
    return ChoiceLogprobs(content=[token_logprob(vocabulary, token) for token in tokens])


def token_logprob(vocabulary: TokenBytes, token: Token) -> TokenLogprob:
    """Return one token's log probability and those of its alternatives."""
    text, data = token_text(vocabulary, token.id)
    top = []
    for other, logprob in token.top_logprobs:
        other_text, other_data = token_text(vocabulary, other)
        top.append(TopLogprob(token=other_text, logprob=finite(logprob), bytes=other_data))
    assert token.logprob is not None
    return TokenLogprob(token=text, logprob=finite(token.logprob), bytes=data, top_logprobs=top)


def token_text(vocabulary: TokenBytes, token: int) -> tuple[str, list[int]]:
    """Return a token's text, which for half a character is not it, and its bytes."""
    data = vocabulary[token]
    return data.decode(errors="replace"), list(data)


def unique_text(vocabulary: TokenBytes, token: int) -> str:
    """Return a token's text, or for half a character its bytes as OpenAI writes them."""
    data = vocabulary[token]
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """Return a number that JSON has."""
    return max(logprob, _LEAST)
