"""An answer as the Responses API writes it: items, whole or event by event."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from kandiga_run.answers.tool_calls import ToolCall
from kandiga_run.server.errors import as_api_error
from kandiga_run.server.identifiers import new_id
from kandiga_run.server.openai.logprobs import token_logprob
from kandiga_run.server.openai.responses_answer import (
    IncompleteDetails,
    InputDetails,
    OutputDetails,
    ResponseFailure,
    ResponseObject,
    ResponseUsage,
    Status,
)
from kandiga_run.server.openai.responses_items import answer_message
from kandiga_run.server.openai.responses_request import ResponsesRequest
from kandiga_run.server.replies import End, Piece, Reply, Whole
from kandiga_run.server.service import Service
from kandiga_run.server.sse import encode_event

#: Told (the response, the answer as a message) of every response that was finished.
Remember = Callable[[dict[str, Any], dict[str, Any]], None]


class ResponseWriter:
    """Writes one response. Items are plain JSON values: events show them while they grow."""

    def __init__(self, service: Service, body: ResponsesRequest, remember: Remember) -> None:
        self._service, self._body, self._remember = service, body, remember
        self._id, self._created = new_id("resp_"), int(time.time())
        self._output: list[dict[str, Any]] = []
        self._sequence = -1

    def response(self, whole: Whole) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        parts = Piece(whole.reasoning, whole.content, tuple(whole.calls), tuple(whole.tokens))
        for _ in (*self._piece(parts), *self._close_item()):
            pass  # the items are made on the way; nobody reads their events
        return self._finished(whole)

    async def events(self, reply: Reply) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream; a failure is its last event."""
        whole: Whole | None = None
        reasoning, content, calls = "", "", list[ToolCall]()
        try:
            yield self._event("response.created", response=self._object("in_progress"))
            yield self._event("response.in_progress", response=self._object("in_progress"))
            async for piece in reply.pieces():
                if isinstance(piece, Piece):
                    reasoning += piece.reasoning
                    content += piece.content
                    calls.extend(piece.calls)
                    for event in self._piece(piece):
                        yield event
                elif isinstance(piece, End):
                    whole = Whole(piece, reasoning, content, calls)
            assert whole is not None
            for event in self._close_item():
                yield event
            finished = self._finished(whole)
            yield self._event(f"response.{finished['status']}", response=finished)
        except Exception as error:
            failure = as_api_error(error)
            failed = ResponseFailure(code=failure.code or "server_error", message=failure.message)
            yield self._event("response.failed", response=self._object("failed", error=failed))

    def _finished(self, whole: Whole) -> dict[str, Any]:
        is_cut = whole.end.finish_reason == "length"
        response = self._object(
            "incomplete" if is_cut else "completed",
            completed_at=int(time.time()),
            usage=_usage(whole.end),
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut else None,
        )
        self._remember(response, answer_message(whole))
        return response

    def _object(self, status: Status, **fields: Any) -> dict[str, Any]:
        body = self._body
        given = body.model_dump(mode="json", by_alias=True, exclude_none=True)
        known: dict[str, Any] = {"error": None, "incomplete_details": None, "usage": None}
        return ResponseObject(
            id=self._id,
            object="response",
            created_at=self._created,
            status=status,
            model=self._service.settings.model,
            output=self._output,  # type: ignore[arg-type]
            instructions=body.instructions,
            previous_response_id=body.previous_response_id,
            max_output_tokens=body.max_output_tokens,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            temperature=body.temperature,
            top_p=body.top_p,
            tool_choice=given.get("tool_choice", "auto"),
            tools=given.get("tools", []),
            text=given.get("text") or {"format": {"type": "text"}},
            reasoning=given.get("reasoning", {}),
            metadata=body.metadata or {},
            store=body.store is not False,
            truncation="disabled",
            **{**known, **fields},
        ).json_value()

    def _piece(self, piece: Piece) -> Iterator[bytes]:
        if piece.reasoning:
            yield from self._in_item("reasoning")
            self._last_part()["text"] += piece.reasoning
            yield self._part_event("response.reasoning_text.delta", delta=piece.reasoning)
        if piece.content or piece.tokens:
            yield from self._in_item("message")
            vocabulary = self._service.token_bytes
            logprobs = [token_logprob(vocabulary, one).json_value() for one in piece.tokens]
            part = self._last_part()
            part["text"] += piece.content
            part["logprobs"] += logprobs
            yield self._part_event(
                "response.output_text.delta", delta=piece.content, logprobs=logprobs
            )
        for call in piece.calls:
            yield from self._call(call)

    def _call(self, call: ToolCall) -> Iterator[bytes]:
        yield from self._close_item()
        item = {
            "type": "function_call",
            "id": new_id("fc_"),
            "status": "in_progress",
            "call_id": call.id or new_id("call_"),
            "name": call.name,
            "arguments": "",
        }
        self._output.append(item)
        yield self._item_event("response.output_item.added")
        item["arguments"] = call.arguments_json
        kind, where = "response.function_call_arguments", self._where()
        yield self._event(f"{kind}.delta", **where, delta=call.arguments_json)
        yield self._event(f"{kind}.done", **where, name=call.name, arguments=call.arguments_json)
        item["status"] = "completed"
        yield self._item_event("response.output_item.done")

    def _in_item(self, kind: str) -> Iterator[bytes]:
        """Open an item of this kind with one empty part, unless one is open."""
        last = self._output[-1] if self._output else None
        if last is not None and last["type"] == kind and last["status"] == "in_progress":
            return
        yield from self._close_item()
        part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        item: dict[str, Any] = {"type": kind, "status": "in_progress"}
        if kind == "reasoning":
            item |= {"id": new_id("rs_"), "summary": [], "content": []}
        else:
            item |= {"id": new_id("msg_"), "role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._output.append(item)
        yield self._item_event("response.output_item.added")
        item["content"].append(part)
        yield self._part_event("response.content_part.added", part=part)

    def _close_item(self) -> Iterator[bytes]:
        item = self._output[-1] if self._output else None
        if item is None or item["status"] != "in_progress":
            return
        part = self._last_part()
        if item["type"] == "reasoning":
            yield self._part_event("response.reasoning_text.done", text=part["text"])
        else:
            yield self._part_event(
                "response.output_text.done", text=part["text"], logprobs=part["logprobs"]
            )
        yield self._part_event("response.content_part.done", part=part)
        item["status"] = "completed"
        yield self._item_event("response.output_item.done")

    def _last_part(self) -> dict[str, Any]:
        part: dict[str, Any] = self._output[-1]["content"][0]
        return part

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, **self._where(), content_index=0, **fields)

    def _item_event(self, kind: str) -> bytes:
        index = len(self._output) - 1
        return self._event(kind, output_index=index, item=self._output[-1])

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._sequence += 1
        return encode_event({"type": kind, "sequence_number": self._sequence, **fields}, kind)


def _usage(end: End) -> ResponseUsage:
    usage = end.usage
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(cached_tokens=usage.cached_tokens, cache_write_tokens=0),
        output_tokens=usage.generated_tokens,
        output_tokens_details=OutputDetails(reasoning_tokens=end.reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.generated_tokens,
    )
