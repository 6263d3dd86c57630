"""Small things every route does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import cast

from fastapi import Request

from kandiga_run.server.replies import Reply
from kandiga_run.server.service import Service
from kandiga_run.server.sse import EventStream


def service_of(request: Request) -> Service:
    """Return what the app was made for."""
    return cast(Service, request.app.state.service)


def client_name(request: Request, user: str | None = None) -> str:
    """Return who asks, for taking turns: an address, and whom it asks for."""
    host = request.client.host if request.client else ""
    return f"{host} {user}" if user else host


def stream(
    request: Request, events: AsyncGenerator[bytes, None], replies: Sequence[Reply]
) -> EventStream:
    """Return a response that streams events; when it ends, so do the replies."""

    def cancel() -> None:
        for reply in replies:
            reply.cancel()

    return EventStream(events, service_of(request).settings.keep_alive_seconds, on_close=cancel)
