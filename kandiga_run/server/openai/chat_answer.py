"""What POST /v1/chat/completions returns: one object, or the chunks of a stream."""

from __future__ import annotations

from typing import Literal

from kandiga_run.server.fields import Answer

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptDetails(Answer):
    """Which part of the prompt did not have to be computed."""

    cached_tokens: int


class CompletionDetails(Answer):
    """Which part of the answer was reasoning."""

    reasoning_tokens: int


class Usage(Answer):
    """Tokens counted, not estimated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Answer):
    """A token that might have been chosen; the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A chosen token and the best alternatives."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Answer):
    """The tokens of the visible answer."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionCall(Answer):
    """A function and its arguments, a JSON text; in a stream possibly a part of it."""

    name: str | None = None
    arguments: str


class ToolCall(Answer):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ToolCallDelta(Answer):
    """A part of a call: the first of an index has id and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall


class ChatMessage(Answer):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(Answer):
    """One of n answers."""

    index: int
    message: ChatMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Answer):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[Choice]
    usage: Usage


class Delta(Answer):
    """What is added to an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Answer):
    """What is added to one of n answers."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Answer):
    """One event of a stream; the one with the usage has no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
