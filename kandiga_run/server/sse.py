"""Server-sent events: encoding, and comments that keep a silent connection open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

#: A comment line: clients skip it, proxies see that the connection lives.
KEEP_ALIVE = b": keep-alive\n\n"

_HEADERS = {"cache-control": "no-cache, no-store", "x-accel-buffering": "no"}


def encode_event(data: Any, event: str | None = None) -> bytes:
    """Return one event; JSON holds no line break, so the data is always one line."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate cannot be sent as UTF-8; a model cannot write one, a client's echo could.
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {text}\n\n".encode(errors="replace")


async def with_keep_alive(
    events: AsyncGenerator[bytes, None], seconds: float
) -> AsyncGenerator[bytes, None]:
    """Yield the events, and a comment whenever none came for so many seconds.

    The wait for the next event is never cancelled by the comment: it goes on underneath.
    """
    waiting: asyncio.Task[bytes] | None = None
    try:
        while True:
            if waiting is None:
                waiting = asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({waiting}, timeout=seconds)
            if not done:
                yield KEEP_ALIVE
                continue
            finished, waiting = waiting, None
            try:
                yield finished.result()
            except StopAsyncIteration:
                return
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await events.aclose()


class EventStream(StreamingResponse):
    """A stream whose events stop being made when the client is gone."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        keep_alive_seconds: float,
        on_close: Callable[[], None],
    ) -> None:
        """Send `events`. However the response ends they are closed, and `on_close` is called."""
        self._on_close = on_close
        self._guarded = with_keep_alive(events, keep_alive_seconds)
        super().__init__(self._guarded, headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the client leaves."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Neither left to the garbage collector, which lets the answer go on being computed, nor
            # to the generators, which do not run when the client left before the first event.
            self._on_close()
            await self._guarded.aclose()
