"""A name for every request, by which client and server can speak of it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kandiga_run.server.identifiers import new_id


class RequestIds:
    """Adds the headers both families of clients look for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id("req_")
        scope.setdefault("state", {})["request_id"] = request_id

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                value = request_id.encode()
                ids = [(b"request-id", value), (b"x-request-id", value)]
                message["headers"] = [*message.get("headers", ()), *ids]
            await send(message)

        await self._app(scope, receive, named)
