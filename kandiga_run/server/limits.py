"""A bound on the body of a request, kept while it is read."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kandiga_run.server.errors import ApiError, error_response


class BodyLimit:
    """Refuses a body longer than `max_bytes` with 413, announced or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await self._refusal(scope)(scope, receive, send)
            return
        received = 0
        is_answered = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise _TooLongError
            return message

        async def noted(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except _TooLongError:
            if not is_answered:
                await self._refusal(scope)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ASGIApp:
        message = f"the body is longer than {self._max_bytes} bytes, the limit of this server"
        return error_response(
            scope, ApiError(413, message, code="request_too_large", headers={"connection": "close"})
        )


class _TooLongError(BaseException):
    # Not an Exception: the routes' own handling of failures must let it pass.
    pass
