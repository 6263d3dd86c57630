"""The bodies of POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kandiga_run.server.fields import (
    Body,
    Boolean,
    Integer,
    JsonObject,
    Number,
    Seed,
    StopStrings,
    TextOnly,
    WholeBody,
)


class TextBlock(Body):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Body):
    """Reasoning of an earlier answer."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Body):
    """Reasoning another service keeps to itself; nothing to read here."""

    type: Literal["redacted_thinking"]
    data: str | None = None


class ToolUseBlock(Body):
    """A call the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonObject


ResultPart = Annotated[TextBlock, TextOnly]


class ToolResultBlock(Body):
    """What a called tool returned."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[ResultPart] | None = None
    is_error: Boolean | None = None


UserBlock = Annotated[TextBlock | ToolResultBlock, Field(discriminator="type"), TextOnly]
AssistantBlock = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock,
    Field(discriminator="type"),
    TextOnly,
]


class UserMessage(Body):
    """What a user said, or tools returned."""

    role: Literal["user"]
    content: str | list[UserBlock]


class AssistantMessage(Body):
    """What the model said before; as the last message, the beginning of its answer."""

    role: Literal["assistant"]
    content: str | list[AssistantBlock]


class SystemMessage(Body):
    """Instructions in the course of a conversation."""

    role: Literal["system"]
    content: str | list[TextBlock]


Message = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]


class Tool(Body):
    """A tool of the client's; tools that run at Anthropic's are not here."""

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    input_schema: JsonObject


class AnyChoice(Body):
    """Whether tools may, must or must not be called."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: Boolean | None = None


class NamedChoice(Body):
    """The one tool that must be called."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: Boolean | None = None


class Thinking(Body):
    """Whether the model should reason."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    #: tokens of reasoning, after which it is ended
    budget_tokens: Annotated[Integer, Field(ge=1)] | None = None


class JsonFormat(Body):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Body):
    """Demands on the answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class Metadata(Body):
    """Whom the request is made for."""

    user_id: str | None = None


class CountRequest(WholeBody):
    """A conversation whose tokens are counted."""

    model: str
    messages: list[Message] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: Annotated[AnyChoice | NamedChoice, Field(discriminator="type")] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest):
    """A conversation to answer."""

    max_tokens: Annotated[Integer, Field(ge=1, lt=1 << 31)]
    stream: Boolean | None = None
    stop_sequences: StopStrings | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Integer, Field(ge=0, lt=1 << 31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    metadata: Metadata | None = None

    def sampling(self) -> dict[str, Any]:
        """Return the sampling fields given, under the sampler's names."""
        names = ("temperature", "top_p", "top_k", "min_p", "seed")
        return {name: getattr(self, name) for name in names}
