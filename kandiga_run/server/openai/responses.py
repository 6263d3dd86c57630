"""POST /v1/responses, and what was answered there by id."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kandiga_run.server.answering import ChatWanted, prepare_chat, submit
from kandiga_run.server.disconnects import unless_disconnected
from kandiga_run.server.errors import ApiError
from kandiga_run.server.fields import Answer
from kandiga_run.server.openai.chat_messages import merge_leading_system
from kandiga_run.server.openai.responses_answer import ResponseObject
from kandiga_run.server.openai.responses_items import item_messages
from kandiga_run.server.openai.responses_request import (
    NamedFunction,
    ObjectFormat,
    ResponsesRequest,
    SchemaFormat,
)
from kandiga_run.server.openai.responses_writer import ResponseWriter
from kandiga_run.server.response_memory import Remembered
from kandiga_run.server.responses_documented import answers
from kandiga_run.server.service import Service
from kandiga_run.server.serving import client_name, service_of, stream
from kandiga_run.server.whole_characters import WholeCharacters

router = APIRouter(dependencies=[WholeCharacters])


class Deleted(Answer):
    """A response that is no longer known."""

    id: str
    object: str
    deleted: bool


@router.post("/v1/responses", responses=answers(ResponseObject))
async def create_response(request: Request, body: ResponsesRequest) -> Response:
    """Answer items, or go on from an earlier response."""
    service = service_of(request)
    service.check_model(body.model)
    service.note_unknown(body.unknown_fields)
    messages = [*_earlier(service, body.previous_response_id), *item_messages(body.input)]
    wanted = _wanted(body, messages, client_name(request, body.user))
    prepared = await asyncio.to_thread(prepare_chat, service, wanted)
    (reply,) = submit(service, prepared)

    def remember(response: dict[str, Any], answer: dict[str, Any]) -> None:
        if body.store is not False:
            service.responses.add(Remembered(response, [*messages, answer]))

    writer = ResponseWriter(service, body, remember)
    if body.stream:
        return stream(request, writer.events(reply), [reply])
    return JSONResponse(writer.response(await unless_disconnected(request, reply.whole())))


@router.get(
    "/v1/responses/{response_id}",
    responses=answers(ResponseObject, streams=False, refusals=(401, 403, 404)),
)
async def get_response(request: Request, response_id: str) -> JSONResponse:
    """Return a response again, while the server remembers it."""
    return JSONResponse(_known(service_of(request), response_id).response)


@router.delete(
    "/v1/responses/{response_id}",
    responses=answers(Deleted, streams=False, refusals=(401, 403, 404)),
)
async def delete_response(request: Request, response_id: str) -> JSONResponse:
    """Forget a response."""
    service = service_of(request)
    _known(service, response_id)
    service.responses.remove(response_id)
    deleted = Deleted(id=response_id, object="response", deleted=True)
    return JSONResponse(deleted.json_value())


def _known(service: Service, response_id: str) -> Remembered:
    known = service.responses.get(response_id)
    if known is None:
        raise ApiError(404, f"no response {response_id!r} is remembered here")
    return known


def _earlier(service: Service, response_id: str | None) -> list[dict[str, Any]]:
    """Return the conversation so far, without the instructions: they hold for one response."""
    return [] if response_id is None else _known(service, response_id).messages


def _wanted(body: ResponsesRequest, messages: list[dict[str, Any]], client: str) -> ChatWanted:
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    tools = [
        {
            "type": "function",
            "function": tool.model_dump(include={"name", "description", "parameters"}),
        }
        for tool in body.tools or ()
    ]
    choice: Any = body.tool_choice or "auto"
    is_named = isinstance(choice, NamedFunction)
    if isinstance(choice, NamedFunction):
        name, choice = choice.name, "required"
        tools = [tool for tool in tools if tool["function"]["name"] == name]  # type: ignore[index]
        if not tools:
            raise ApiError(400, f"{name!r} is not one of the tools", param="tool_choice")
    effort = body.reasoning.effort if body.reasoning else None
    variables = {"reasoning_effort": effort, "enable_thinking": effort != "none"} if effort else {}
    return ChatWanted(
        messages=merge_leading_system([*instructions, *messages]),
        tools=tools or None,
        tool_choice=choice,
        parallel_calls=False if is_named else body.parallel_tool_calls,
        variables=variables,
        max_tokens=body.max_output_tokens,
        sampling=body.sampling(),
        logprobs=(body.top_logprobs or 0) if body.wants_logprobs else None,
        schema=_schema(body),
        client=client,
    )


def _schema(body: ResponsesRequest) -> dict[str, Any] | None:
    match body.text.format if body.text else None:
        case ObjectFormat():
            return {"type": "object"}
        case SchemaFormat() as format_:
            return format_.schema_
    return None
