"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients speak them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kandiga_run.answers.tool_calls import ToolCall
from kandiga_run.generation.usage import Usage
from kandiga_run.server.answering import count_chat_tokens, prepare_chat, submit
from kandiga_run.server.anthropic.answer import (
    AnthropicMessage,
    MessageUsage,
    StopReason,
    Text,
    Thinking,
    TokenCount,
    ToolUse,
)
from kandiga_run.server.anthropic.conversion import chat_wanted
from kandiga_run.server.anthropic.request import CountRequest, MessagesRequest
from kandiga_run.server.disconnects import unless_disconnected
from kandiga_run.server.errors import anthropic_error, as_api_error
from kandiga_run.server.identifiers import new_id
from kandiga_run.server.replies import End, Piece, Progress, Reply, Whole
from kandiga_run.server.responses_documented import anthropic_answers
from kandiga_run.server.serving import client_name, service_of, stream
from kandiga_run.server.sse import encode_event
from kandiga_run.server.whole_characters import WholeCharacters

router = APIRouter(dependencies=[WholeCharacters])


@router.post("/v1/messages", responses=anthropic_answers(AnthropicMessage))
async def create_message(request: Request, body: MessagesRequest) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    service.check_model(body.model)
    service.note_unknown(body.unknown_fields)
    wanted = chat_wanted(
        body,
        max_tokens=body.max_tokens,
        stop=tuple(body.stop_sequences or ()),
        sampling=body.sampling(),
        client=client_name(request, body.metadata.user_id if body.metadata else None),
    )
    prepared = await asyncio.to_thread(prepare_chat, service, wanted)
    (reply,) = submit(service, prepared)
    if body.stream:
        request_id = request.state.request_id
        events = _Events(service.settings.model, len(prepared.prompt_tokens), request_id)
        return stream(request, events.of(reply), [reply])
    whole = await unless_disconnected(request, reply.whole())
    return JSONResponse(_message(service.settings.model, whole))


@router.post(
    "/v1/messages/count_tokens",
    responses=anthropic_answers(TokenCount, streams=False, refusals=(400, 401, 403, 404, 413)),
)
async def count_tokens(request: Request, body: CountRequest) -> JSONResponse:
    """Count the tokens of a conversation as the chat template writes it."""
    service = service_of(request)
    service.check_model(body.model)
    service.note_unknown(body.unknown_fields)
    count = await asyncio.to_thread(count_chat_tokens, service, chat_wanted(body))
    return JSONResponse(TokenCount(input_tokens=count).json_value())


def _message(model: str, whole: Whole) -> dict[str, Any]:
    content: list[Text | Thinking | ToolUse] = []
    if whole.reasoning:
        content.append(Thinking(type="thinking", thinking=whole.reasoning, signature=""))
    if whole.content:
        content.append(Text(type="text", text=whole.content))
    content.extend(_tool_use(call) for call in whole.calls)
    return AnthropicMessage(
        id=new_id("msg_"),
        type="message",
        role="assistant",
        model=model,
        content=content,
        stop_reason=_stop_reason(whole.end),
        stop_sequence=whole.end.stop_string,
        usage=_usage(whole.end.usage),
    ).json_value()


def _tool_use(call: ToolCall) -> ToolUse:
    return ToolUse(
        type="tool_use", id=call.id or new_id("toolu_"), name=call.name, input=call.arguments
    )


def _stop_reason(end: End) -> StopReason:
    if end.finish_reason == "length":
        return "max_tokens"
    if end.finish_reason == "tool_calls":
        return "tool_use"
    return "stop_sequence" if end.stop_string is not None else "end_turn"


def _usage(usage: Usage) -> MessageUsage:
    computed = usage.prompt_tokens - usage.cached_tokens
    return MessageUsage(
        input_tokens=computed,
        cache_read_input_tokens=usage.cached_tokens,
        cache_creation_input_tokens=0,
        output_tokens=usage.generated_tokens,
    )


class _Events:
    """The events of one streamed answer: blocks one after the other, each opened and closed."""

    def __init__(self, model: str, prompt_tokens: int, request_id: str) -> None:
        self._model, self._request_id = model, request_id
        self._usage = Usage(prompt_tokens, 0, 0)
        self._index = -1
        self._open: str | None = None

    async def of(self, reply: Reply) -> AsyncGenerator[bytes, None]:
        """Yield the events; a failure is the last one."""
        has_started = False
        try:
            async for piece in reply.pieces():
                if isinstance(piece, Progress):
                    self._usage = Usage(piece.total, piece.cached, 0)
                if not has_started:
                    has_started = True
                    yield self._start()
                if isinstance(piece, Progress):
                    yield _event("ping")
                else:
                    for event in self._events(piece):
                        yield event
        except Exception as error:
            yield encode_event(anthropic_error(as_api_error(error), self._request_id), "error")

    def _events(self, piece: Piece | End) -> Iterator[bytes]:
        if isinstance(piece, End):
            yield from self._close()
            delta = {"stop_reason": _stop_reason(piece), "stop_sequence": piece.stop_string}
            usage = _usage(piece.usage).json_value()
            yield _event("message_delta", delta=delta, usage=usage)
            yield _event("message_stop")
            return
        if piece.reasoning:
            empty = {"type": "thinking", "thinking": "", "signature": ""}
            yield from self._in_block("thinking", empty)
            yield self._delta({"type": "thinking_delta", "thinking": piece.reasoning})
        if piece.content:
            yield from self._in_block("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": piece.content})
        for call in piece.calls:
            yield from self._close()
            block = _tool_use(call).json_value()
            yield from self._in_block("tool_use", {**block, "input": {}})
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments_json})
            yield from self._close()

    def _start(self) -> bytes:
        message = AnthropicMessage(
            id=new_id("msg_"),
            type="message",
            role="assistant",
            model=self._model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=_usage(self._usage),
        )
        return _event("message_start", message=message.json_value())

    def _in_block(self, kind: str, empty: dict[str, Any]) -> Iterator[bytes]:
        """Open a block of this kind unless one is open."""
        if self._open == kind:
            return
        yield from self._close()
        self._index, self._open = self._index + 1, kind
        yield _event("content_block_start", index=self._index, content_block=empty)

    def _close(self) -> Iterator[bytes]:
        if self._open is None:
            return
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        self._open = None
        yield _event("content_block_stop", index=self._index)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return encode_event({"type": kind, **fields}, kind)
