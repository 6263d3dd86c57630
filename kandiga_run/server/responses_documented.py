"""What a route may return, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from kandiga_run.server.errors import AnthropicError, OpenAIError

_REFUSALS = {
    400: "The request cannot be answered as it is.",
    401: "The API key is missing or wrong.",
    403: "The server is not to be reached under this name.",
    404: "The model, or what the path names, is not here.",
    413: "The body is longer than the server accepts.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "The answer could not be computed.",
    503: "The server is shutting down.",
}

#: What each event of a stream is; its data is the JSON that the API's clients know.
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


def answers(
    model: type[BaseModel] | None,
    *,
    streams: bool = True,
    error: type[BaseModel] = OpenAIError,
    refusals: tuple[int, ...] = (400, 401, 403, 404, 413, 429, 500, 503),
) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` of a route that returns `model`, or a stream of events."""
    content: dict[str, Any] = {}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    success: dict[str, Any] = {"description": "The answer."}
    if content:
        success["content"] = content
    if model is not None:
        success["model"] = model
    documented: dict[int | str, dict[str, Any]] = {200: success}
    for status in refusals:
        documented[status] = {"description": _REFUSALS[status], "model": error}
        if status == 429:
            documented[status]["headers"] = {
                "Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}
            }
    return documented


def anthropic_answers(model: type[BaseModel], **options: Any) -> dict[int | str, dict[str, Any]]:
    """Return the same for a route whose errors have Anthropic's shape."""
    return answers(model, error=AnthropicError, **options)
