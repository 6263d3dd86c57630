"""The body and the answer of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from kandiga_run.server.fields import Answer, Boolean, Integer, JsonObject, StopStrings
from kandiga_run.server.openai.chat_answer import Usage
from kandiga_run.server.openai.chat_request import ResponseFormat, SamplingFields, StreamOptions

TokenId = Annotated[Integer, Field(ge=0, lt=1 << 31)]


class CompletionRequest(SamplingFields):
    """Plain text, or tokens, to continue."""

    model: str | None = None
    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=16)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=16)
        ]
    )
    max_tokens: Annotated[Integer, Field(ge=1, lt=1 << 31)] | None = None
    stream: Boolean | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[str, Field(min_length=1)] | StopStrings | None = None
    n: Annotated[Integer, Field(ge=1, le=16)] | None = None
    logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    echo: Boolean | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: JsonObject | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_done(cls, data: Any) -> Any:
        if isinstance(data, dict):
            if data.get("suffix"):
                raise PydanticCustomError("unsupported_field", "suffix is not supported")
            best_of = data.get("best_of")
            if best_of is not None and best_of != (data.get("n") or 1):
                raise PydanticCustomError(
                    "unsupported_field", "best_of is not supported, use n and choose"
                )
            if data.get("echo") and data.get("logprobs") is not None:
                raise PydanticCustomError(
                    "unsupported_field", "echo is not supported together with logprobs"
                )
        return data

    @property
    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, one or more, each text or tokens."""
        prompt: Any = self.prompt
        is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
        return [prompt] if is_one else prompt


class CompletionLogprobs(Answer):
    """Log probabilities by position; the keys of `top_logprobs` are tokens."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Answer):
    """One continuation, or in a stream a part of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(Answer):
    """Continuations of one or more prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
