"""The client's end of a request: its events, and the way to cancel it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from kandiga_run.scheduler.events import Event, Failed, Finished, Queued
from kandiga_run.scheduler.request import Request


class Ticket:
    """Events of one request, for any number of readers in any thread or event loop.

    Each reader sees all events from the first on; the last is `Finished` or `Failed`.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], object]] = []
        self._is_cancelled = False

    def cancel(self) -> None:
        """End the answer; it computes at most the token it is at. Harmless once it has ended."""
        self._is_cancelled = True

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody asked for the end."""
        return self._is_cancelled

    @property
    def is_done(self) -> bool:
        """Whether the last event has come."""
        events = self._events
        return bool(events) and isinstance(events[-1], Finished | Failed)

    @property
    def so_far(self) -> tuple[Event, ...]:
        """Return the events that have come."""
        return tuple(self._events)

    def __iter__(self) -> Iterator[Event]:
        """Yield the events, waiting for each."""
        index = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda seen=index: len(self._events) > seen)  # type: ignore[misc]
            event = self._events[index]
            yield event
            if isinstance(event, Finished | Failed):
                return
            index += 1

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events, without blocking the event loop.

        Giving up the iteration does not cancel: call `cancel`.
        """
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(woken.set)

        with self._changed:
            self._wakers.append(wake)
        try:
            index = 0
            while True:
                woken.clear()
                while index < len(self._events):
                    event = self._events[index]
                    yield event
                    if isinstance(event, Finished | Failed):
                        return
                    index += 1
                await woken.wait()
        finally:
            with self._changed:
                self._wakers.remove(wake)

    def tell(self, event: Event) -> None:
        """Give an event to every reader. For the scheduler."""
        with self._changed:
            is_same_place = isinstance(event, Queued) and self._events[-1:] == [event]
            if self.is_done or is_same_place:
                return
            self._events.append(event)
            self._changed.notify_all()
            wakers = list(self._wakers)
        for wake in wakers:
            try:
                wake()
            except RuntimeError:  # its event loop was closed: nobody reads there any more
                continue
