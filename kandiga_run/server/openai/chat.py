"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kandiga_run.answers.tool_calls import ToolCall as ParsedCall
from kandiga_run.server.answering import ChatWanted, prepare_chat, submit
from kandiga_run.server.disconnects import unless_disconnected
from kandiga_run.server.errors import ApiError, as_api_error, openai_error
from kandiga_run.server.fields import stop_strings
from kandiga_run.server.identifiers import new_id
from kandiga_run.server.openai.chat_answer import (
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    Choice,
    ChunkChoice,
    CompletionDetails,
    Delta,
    FinishReason,
    FunctionCall,
    PromptDetails,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from kandiga_run.server.openai.chat_messages import template_messages
from kandiga_run.server.openai.chat_request import (
    ChatRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    ResponseFormat,
    SamplingFields,
)
from kandiga_run.server.openai.logprobs import choice_logprobs
from kandiga_run.server.replies import End, Piece, Progress, Reply, Whole, merged, wholes
from kandiga_run.server.responses_documented import answers
from kandiga_run.server.service import Service
from kandiga_run.server.serving import client_name, service_of, stream
from kandiga_run.server.sse import encode_event
from kandiga_run.server.whole_characters import WholeCharacters

router = APIRouter(dependencies=[WholeCharacters])

DONE = b"data: [DONE]\n\n"


@router.post("/v1/chat/completions", responses=answers(ChatCompletion))
async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    service.check_model(body.model)
    service.note_unknown(body.unknown_fields)
    wanted = _wanted(request, body)
    prepared = await asyncio.to_thread(prepare_chat, service, wanted)
    replies = submit(service, prepared)
    writer = _Writer(service, has_logprobs=bool(body.logprobs))
    if body.stream:
        has_usage = bool(body.stream_options and body.stream_options.include_usage)
        return stream(request, writer.events(replies, has_usage=has_usage), replies)
    return JSONResponse(writer.completion(await unless_disconnected(request, wholes(replies))))


def sampling_of(body: SamplingFields) -> dict[str, Any]:
    """Return the sampling fields a body gives, under the sampler's names."""
    names = set(SamplingFields.model_fields) - {"logit_bias"}
    chosen = {name: getattr(body, name) for name in names}
    if body.logit_bias:
        chosen["logit_bias"] = {_token_id(key): bias for key, bias in body.logit_bias.items()}
    return chosen


def usage_of_prompts(ends: Sequence[End], num_prompts: int = 1) -> Usage:
    """Return the tokens of all answers; a prompt counts once, however many answers it has."""
    each = len(ends) // num_prompts
    firsts = [end.usage for end in ends[::each]]
    prompt = sum(usage.prompt_tokens for usage in firsts)
    generated = sum(end.usage.generated_tokens for end in ends)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=generated,
        total_tokens=prompt + generated,
        prompt_tokens_details=PromptDetails(
            cached_tokens=sum(usage.cached_tokens for usage in firsts)
        ),
        completion_tokens_details=CompletionDetails(
            reasoning_tokens=sum(end.reasoning_tokens for end in ends)
        ),
    )


def _token_id(key: str) -> int:
    if not key.isdecimal() or not key.isascii() or len(key) > 9:
        raise ApiError(400, f"logit_bias: {key!r} is no token id", param="logit_bias")
    return int(key)


def _wanted(request: Request, body: ChatRequest) -> ChatWanted:
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    choice: Any = body.tool_choice or "auto"
    is_named = isinstance(choice, NamedTool)
    if isinstance(choice, NamedTool):
        tools = _named(tools, choice.function.name)
        choice = "required"
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
        variables.setdefault("enable_thinking", body.reasoning_effort != "none")
    return ChatWanted(
        messages=template_messages(body.messages),
        tools=tools or None,
        tool_choice=choice,
        parallel_calls=False if is_named else body.parallel_tool_calls,
        variables=variables,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stop=stop_strings(body.stop),
        sampling=sampling_of(body),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        num_answers=body.n or 1,
        schema=schema_of(body.response_format),
        client=client_name(request, body.user),
    )


def _named(tools: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise ApiError(400, f"tool_choice: {name!r} is not one of the tools", param="tool_choice")
    return named


def schema_of(response_format: ResponseFormat | None) -> dict[str, Any] | None:
    """Return the JSON schema that a response format asks for."""
    match response_format:
        case JsonObjectFormat():
            return {"type": "object"}
        case JsonSchemaFormat() as format_:
            return format_.json_schema.schema_
    return None


class _Writer:
    """Writes one request's answer, whole or as chunks, always under the same id."""

    def __init__(self, service: Service, *, has_logprobs: bool) -> None:
        self._vocabulary = service.token_bytes
        self._model = service.settings.model
        self._has_logprobs = has_logprobs
        self._id, self._created = new_id("chatcmpl-"), int(time.time())

    def completion(self, answers: Sequence[Whole]) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        return ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._model,
            choices=[self._choice(index, whole) for index, whole in enumerate(answers)],
            usage=usage_of_prompts([whole.end for whole in answers]),
        ).json_value()

    async def events(
        self, replies: Sequence[Reply], *, has_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream; a failure is its last event."""
        ends: dict[int, End] = {}
        num_calls = [0] * len(replies)
        for index in range(len(replies)):
            yield self._chunk(index, Delta(role="assistant", content=""))
        try:
            async for index, piece in merged(replies):
                match piece:
                    case Piece():
                        yield self._chunk(index, _delta(piece, num_calls[index]), piece)
                        num_calls[index] += len(piece.calls)
                    case End():
                        ends[index] = piece
                        yield self._chunk(index, Delta(), finish_reason=piece.finish_reason)
                    case Progress():
                        continue
        except Exception as error:
            yield encode_event(openai_error(as_api_error(error)))
            return
        if has_usage:
            yield self._encoded([], usage=usage_of_prompts([ends[index] for index in sorted(ends)]))
        yield DONE

    def _choice(self, index: int, whole: Whole) -> Choice:
        message: dict[str, Any] = {"role": "assistant", "refusal": None}
        message["content"] = whole.content or (None if whole.calls else "")
        if whole.reasoning:
            message["reasoning_content"] = whole.reasoning
        if whole.calls:
            message["tool_calls"] = [_call(call) for call in whole.calls]
        logprobs = choice_logprobs(self._vocabulary, whole.tokens) if self._has_logprobs else None
        return Choice(
            index=index,
            message=ChatMessage(**message),
            logprobs=logprobs,
            finish_reason=whole.end.finish_reason,
        )

    def _chunk(
        self,
        index: int,
        delta: Delta,
        piece: Piece | None = None,
        finish_reason: FinishReason | None = None,
    ) -> bytes:
        tokens = piece.tokens if piece else ()
        logprobs = choice_logprobs(self._vocabulary, tokens) if tokens else None
        choice = ChunkChoice(
            index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason
        )
        return self._encoded([choice])

    def _encoded(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        chunk: dict[str, Any] = {"usage": usage} if usage else {}
        return encode_event(
            ChatChunk(
                id=self._id,
                object="chat.completion.chunk",
                created=self._created,
                model=self._model,
                choices=choices,
                **chunk,
            ).json_value()
        )


def _delta(piece: Piece, num_calls: int) -> Delta:
    fields: dict[str, Any] = {}
    if piece.content or piece.tokens:
        fields["content"] = piece.content
    if piece.reasoning:
        fields["reasoning_content"] = piece.reasoning
    if piece.calls:
        fields["tool_calls"] = [
            ToolCallDelta(index=num_calls + index, **_call_fields(call))
            for index, call in enumerate(piece.calls)
        ]
    return Delta(**fields)


def _call(call: ParsedCall) -> ToolCall:
    return ToolCall(**_call_fields(call))


def _call_fields(call: ParsedCall) -> dict[str, Any]:
    function = FunctionCall(name=call.name, arguments=call.arguments_json)
    return {"id": call.id or new_id("call_"), "type": "function", "function": function}
