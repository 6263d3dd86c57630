"""What POST /v1/responses returns when it does not stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kandiga_run.server.fields import Answer, JsonObject
from kandiga_run.server.openai.chat_answer import TokenLogprob

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(Answer):
    """Text of the answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[JsonObject]
    logprobs: list[TokenLogprob]


class OutputMessage(Answer):
    """The visible answer."""

    type: Literal["message"]
    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningContent(Answer):
    """Text of the reasoning."""

    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(Answer):
    """The reasoning before the answer."""

    type: Literal["reasoning"]
    id: str
    status: Status
    summary: list[JsonObject]
    content: list[ReasoningContent]


class OutputCall(Answer):
    """A call of a function."""

    type: Literal["function_call"]
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


OutputItem = Annotated[OutputMessage | OutputReasoning | OutputCall, Field(discriminator="type")]


class InputDetails(Answer):
    """Which part of the input did not have to be computed."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Answer):
    """Which part of the output was reasoning."""

    reasoning_tokens: int


class ResponseUsage(Answer):
    """Tokens counted."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(Answer):
    """Why an answer was cut short."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(Answer):
    """Why an answer could not be computed."""

    code: str
    message: str


class ResponseObject(Answer):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None = None
    status: Status
    model: str
    output: list[OutputItem]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    previous_response_id: str | None
    max_output_tokens: int | None
    parallel_tool_calls: bool
    temperature: float | None
    top_p: float | None
    tool_choice: Any
    tools: list[JsonObject]
    text: JsonObject
    reasoning: JsonObject
    metadata: dict[str, str]
    store: bool
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
