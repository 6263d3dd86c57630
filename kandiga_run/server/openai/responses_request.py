"""The body of POST /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from kandiga_run.server.fields import (
    Body,
    Boolean,
    Integer,
    JsonObject,
    Number,
    Seed,
    TextOnly,
    WholeBody,
)


class InputText(Body):
    """A piece of text, of a user or of an earlier answer."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class Refusal(Body):
    """What a model said when it declined."""

    type: Literal["refusal"]
    refusal: str


Part = Annotated[InputText | Refusal, Field(discriminator="type"), TextOnly]


class MessageItem(Body):
    """A message; "developer" is another name for instructions."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]


class ReasoningText(Body):
    """A piece of reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Body):
    """Reasoning of an earlier answer."""

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None
    summary: list[ReasoningText] | None = None


class FunctionCallItem(Body):
    """A call the model made; `arguments` is a JSON text."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(Body):
    """What a called function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[Part]


def _kind(item: Any) -> str:
    """Return the type of an item; a message needs not name it."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "message" if kind is None else str(kind)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class FunctionTool(Body):
    """A function the model may call; `parameters` is a JSON schema."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: JsonObject | None = None
    strict: Boolean | None = None


class NamedFunction(Body):
    """The one function that must be called."""

    type: Literal["function"]
    name: str


class PlainFormat(Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Body):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    name: str = "answer"
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: Boolean | None = None


class TextConfig(Body):
    """The form of the text."""

    format: (
        Annotated[PlainFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None


class Reasoning(Body):
    """How much the model should reason."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


class ResponsesRequest(WholeBody):
    """Items to answer."""

    model: str | None = None
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: Boolean | None = None
    stream: Boolean | None = None
    max_output_tokens: Annotated[Integer, Field(ge=1, lt=1 << 31)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Integer, Field(ge=0, lt=1 << 31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    include: list[str] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: Boolean | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_done(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name in ("background", "conversation", "prompt"):
                if data.get(name):
                    raise PydanticCustomError(
                        "unsupported_field", "{name} is not supported", {"name": name}
                    )
        return data

    @property
    def wants_logprobs(self) -> bool:
        """Whether log probabilities are asked for."""
        return "message.output_text.logprobs" in (self.include or ())

    def sampling(self) -> dict[str, Any]:
        """Return the sampling fields given, under the sampler's names."""
        names = ("temperature", "top_p", "top_k", "min_p", "seed")
        return {name: getattr(self, name) for name in names}
