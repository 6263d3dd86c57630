"""GET /v1/models, in a shape that clients of both families read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from kandiga_run.server.errors import ApiError
from kandiga_run.server.fields import Answer
from kandiga_run.server.responses_documented import answers
from kandiga_run.server.service import Service
from kandiga_run.server.serving import service_of

router = APIRouter()


class ModelEntry(Answer):
    """The model: for OpenAI's clients id, object, created, owned_by; for Anthropic's the rest."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Literal["model"]
    display_name: str
    created_at: str
    #: tokens of prompt and answer together
    max_model_len: int
    max_input_tokens: int
    max_tokens: int
    lifecycle: Literal["active"]


class ModelList(Answer):
    """The one model there is."""

    object: Literal["list"]
    data: list[ModelEntry]
    has_more: bool
    first_id: str
    last_id: str


@router.get("/v1/models", responses=answers(ModelList, streams=False, refusals=(401, 403)))
async def list_models(request: Request) -> JSONResponse:
    """List the model being served."""
    entry = _entry(service_of(request))
    listed = ModelList(
        object="list", data=[entry], has_more=False, first_id=entry.id, last_id=entry.id
    )
    return JSONResponse(listed.json_value())


# Ids of published models have a slash in them.
@router.get(
    "/v1/models/{model_id:path}",
    responses=answers(ModelEntry, streams=False, refusals=(401, 403, 404)),
)
async def get_model(request: Request, model_id: str) -> JSONResponse:
    """Describe the model, under its own name or an alias."""
    service = service_of(request)
    if not service.settings.accepts_model(model_id):
        raise ApiError(404, f"no model {model_id!r} here", code="model_not_found", param="model")
    return JSONResponse(_entry(service).json_value())


def _entry(service: Service) -> ModelEntry:
    name, context = service.settings.model, service.scheduler.context_tokens
    return ModelEntry(
        id=name,
        object="model",
        created=service.started,
        owned_by="kandiga",
        type="model",
        display_name=name,
        created_at=datetime.fromtimestamp(service.started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        max_model_len=context,
        max_input_tokens=context - 1,
        max_tokens=context - 1,
        lifecycle="active",
    )
