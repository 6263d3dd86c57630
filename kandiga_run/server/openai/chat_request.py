"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

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


class TextPart(Body):
    """A piece of text."""

    type: Literal["text"]
    text: str


class RefusalPart(Body):
    """What a model said when it declined."""

    type: Literal["refusal"]
    refusal: str


ContentPart = Annotated[
    TextPart | RefusalPart,
    Field(discriminator="type"),
    TextOnly,
]
Content = str | list[ContentPart]


class CalledFunction(Body):
    """Which function an assistant called; `arguments` is a JSON text."""

    name: str
    arguments: str = "{}"


class MessageToolCall(Body):
    """A call in an earlier assistant message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class SystemMessage(Body):
    """Instructions; "developer" is another name for them."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Body):
    """What a user said."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(Body):
    """What the model said before, with its reasoning and calls."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    name: str | None = None


class ToolMessage(Body):
    """What a called tool returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str | None = None
    name: str | None = None


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class FunctionDefinition(Body):
    """A function the model may call; `parameters` is a JSON schema."""

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: JsonObject | None = None
    strict: Boolean | None = None


class Tool(Body):
    """A tool the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Body):
    """The name of one of the tools."""

    name: str


class NamedTool(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Body):
    """A JSON schema and its name."""

    name: str = "answer"
    description: str | None = None
    schema_: JsonObject = Field(alias="schema", default_factory=dict)
    strict: Boolean | None = None


class JsonSchemaFormat(Body):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StreamOptions(Body):
    """What a stream carries besides the answer."""

    include_usage: Boolean | None = None


class SamplingFields(WholeBody):
    """How tokens are chosen; what is not given comes from the model's generation_config.json."""

    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Integer, Field(ge=0, lt=1 << 31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    seed: Seed | None = None


class ChatRequest(SamplingFields):
    """A conversation to answer."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    max_tokens: Annotated[Integer, Field(ge=1, lt=1 << 31)] | None = None
    max_completion_tokens: Annotated[Integer, Field(ge=1, lt=1 << 31)] | None = None
    stream: Boolean | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[str, Field(min_length=1)] | StopStrings | None = None
    n: Annotated[Integer, Field(ge=1, le=16)] | None = None
    logprobs: Boolean | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Boolean | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    #: given to the chat template as they are, such as {"enable_thinking": false}
    chat_template_kwargs: JsonObject | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_done(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name in ("functions", "function_call"):
                if data.get(name) is not None:
                    raise PydanticCustomError(
                        "unsupported_field", "{name} is not supported, use tools", {"name": name}
                    )
            if "audio" in (data.get("modalities") or ()) or data.get("audio") is not None:
                raise PydanticCustomError("unsupported_field", "audio answers are not supported")
        return data
