"""GET /health, /status and /metrics: whether the server lives, and how it does."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from kandiga_run.memory.use import memory_use
from kandiga_run.scheduler import Status
from kandiga_run.server.fields import Answer
from kandiga_run.server.responses_documented import answers
from kandiga_run.server.service import Service
from kandiga_run.server.serving import service_of

router = APIRouter()


class Health(Answer):
    """The server answers."""

    status: Literal["ok"]
    model: str


class EngineStatus(Answer):
    """How the model is computed."""

    name: str
    residency: str | None
    arithmetic: str
    #: the choice of --kv; and finished answers by how keys and values were really held
    kv: str | None
    answers_by_kv: dict[str, int]
    experts_per_token: int
    native_experts_per_token: int
    is_lossy: bool


class QueueStatus(Answer):
    """What is being computed, and what waits."""

    running: int
    waiting: int
    max_running: int
    max_waiting: int
    finished: int
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None


class MemoryStatus(Answer):
    """Memory of the process in bytes, and of the states within it."""

    resident_bytes: int
    anonymous_bytes: int | None
    file_bytes: int | None
    state_bytes: int
    prefix_cache_bytes: int


class ServerStatus(Answer):
    """What the page shows beside the conversation."""

    model: str
    context_tokens: int
    has_chat_template: bool
    uptime_seconds: int
    engine: EngineStatus
    queue: QueueStatus
    memory: MemoryStatus


@router.get("/health", responses=answers(Health, streams=False, refusals=(403,)))
async def health(request: Request) -> JSONResponse:
    """Say that the server answers; needs no key."""
    return JSONResponse(Health(status="ok", model=service_of(request).settings.model).json_value())


@router.get("/status", responses=answers(ServerStatus, streams=False, refusals=(401, 403)))
async def status(request: Request) -> JSONResponse:
    """Describe model, queue and memory."""
    service = service_of(request)
    now = service.scheduler.status()
    return JSONResponse(
        ServerStatus(
            model=service.settings.model,
            context_tokens=service.scheduler.context_tokens,
            has_chat_template=service.prompts.has_chat_template,
            uptime_seconds=int(time.time()) - service.started,
            engine=_engine(service),
            queue=_queue(now),
            memory=_memory(now),
        ).json_value()
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Figures for Prometheus.", "content": {CONTENT_TYPE_LATEST: {}}},
        **answers(None, streams=False, refusals=(401, 403)),
    },
)
async def metrics(request: Request) -> Response:
    """Give the figures in the text format of Prometheus."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _engine(service: Service) -> EngineStatus:
    engine, run = service.scheduler.engine, service.scheduler.engine.stats
    return EngineStatus(
        name=engine.name,
        residency=run.residency or None,
        arithmetic=run.arithmetic,
        kv=run.kv or None,
        answers_by_kv=dict(service.scheduler.status().finished_by_kv),
        experts_per_token=run.num_experts_per_token,
        native_experts_per_token=run.top_k,
        is_lossy=run.is_lossy,
    )


def _queue(now: Status) -> QueueStatus:
    return QueueStatus(
        running=now.running,
        waiting=now.waiting,
        max_running=now.max_running,
        max_waiting=now.max_waiting,
        finished=now.finished,
        prefill_tokens_per_second=now.prefill_tokens_per_second,
        decode_tokens_per_second=now.decode_tokens_per_second,
    )


def _memory(now: Status) -> MemoryStatus:
    used = memory_use()
    return MemoryStatus(
        resident_bytes=used.resident_bytes,
        anonymous_bytes=used.anonymous_bytes,
        file_bytes=used.file_bytes,
        state_bytes=now.state_bytes,
        prefix_cache_bytes=now.cache_bytes,
    )
