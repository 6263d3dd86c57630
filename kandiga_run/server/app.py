"""The application: the routes, and what stands before them."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from kandiga_run.server import models, page, status
from kandiga_run.server.access import ApiKey, LocalNamesOnly, is_loopback
from kandiga_run.server.anthropic import messages
from kandiga_run.server.document import document
from kandiga_run.server.errors import handle_errors
from kandiga_run.server.head_requests import HeadAsGet
from kandiga_run.server.limits import BodyLimit
from kandiga_run.server.metrics import CountRequests
from kandiga_run.server.openai import chat, completions, responses
from kandiga_run.server.request_ids import RequestIds
from kandiga_run.server.service import Service

_ROUTERS = (
    chat.router,
    completions.router,
    responses.router,
    messages.router,
    models.router,
    status.router,
    page.router,
)


def create_app(service: Service) -> FastAPI:
    """Return the ASGI application that serves `service`."""
    # No /docs: FastAPI's page loads its scripts from elsewhere.
    app = FastAPI(title="kandiga-run serve", docs_url=None, redoc_url=None)
    app.state.service = service
    for router in _ROUTERS:
        app.include_router(router)
    handle_errors(app)
    document(app, has_key=service.settings.api_key is not None)
    _add_middleware(app, service)
    return app


def _add_middleware(app: FastAPI, service: Service) -> None:
    """Put what every request passes before the routes; the last one added comes first."""
    settings = service.settings
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if settings.api_key is not None:
        app.add_middleware(ApiKey, key=settings.api_key)
    elif is_loopback(settings.host):
        app.add_middleware(LocalNamesOnly, host=settings.host)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=("retry-after", "request-id"),
        )
    paths = frozenset(app.openapi()["paths"])
    app.add_middleware(CountRequests, metrics=service.metrics, paths=paths)
    app.add_middleware(RequestIds)
