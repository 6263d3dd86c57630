"""What POST /v1/messages returns when it does not stream."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kandiga_run.server.fields import Answer, JsonObject

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class Text(Answer):
    """Text of the answer."""

    type: Literal["text"]
    text: str


class Thinking(Answer):
    """Reasoning; the signature is for services that must know their own again."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUse(Answer):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonObject


class MessageUsage(Answer):
    """Tokens counted; `input_tokens` are those that had to be computed."""

    input_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int


class AnthropicMessage(Answer):
    """An answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Annotated[Text | Thinking | ToolUse, Field(discriminator="type")]]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(Answer):
    """The tokens of a conversation."""

    input_tokens: int
