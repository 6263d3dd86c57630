"""Answers on their way from the scheduler to a client, taken apart but in no API's shape yet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from kandiga_run.answers.parts import AnswerSplitter, Parts
from kandiga_run.answers.tool_calls import ToolCall
from kandiga_run.generation.answer import Token
from kandiga_run.generation.options import GenerateOptions
from kandiga_run.generation.usage import Usage
from kandiga_run.scheduler import Failed, Finished, Prefilled, Ticket
from kandiga_run.server.errors import ApiError
from kandiga_run.server.forced_calls import ForcedCalls, OneCall
from kandiga_run.terminal.failures import describe

Splitter = AnswerSplitter | ForcedCalls | OneCall

FinishReason = Literal["stop", "length", "tool_calls"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """What became certain of an answer. Tokens are those of the visible text, if asked for."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    tokens: tuple[Token, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.reasoning or self.content or self.calls or self.tokens)


@dataclass(frozen=True)
class Progress:
    """So many tokens of the prompt have been read."""

    done: int
    total: int
    #: of those done, the ones a kept state had seen before
    cached: int


@dataclass(frozen=True)
class End:
    """How an answer ended, and what it took."""

    finish_reason: FinishReason
    usage: Usage
    reasoning_tokens: int
    #: the stop string that ended it
    stop_string: str | None = None


@dataclass
class Whole:
    """A finished answer."""

    end: End
    reasoning: str = ""
    content: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)


class Reply:
    """One answer of one request: iterate `pieces` to its `End`, or take the `whole`."""

    def __init__(
        self,
        ticket: Ticket,
        splitter: Splitter | None,
        *,
        decode: Callable[[Sequence[int]], str],
        on_first_token: Callable[[float], None],
    ) -> None:
        """Follow a ticket that was just made.

        splitter: takes the answer apart; without one all text is content.
        decode: makes text of ids.
        on_first_token: told how many seconds the first token took, those in the queue included.
        """
        self._on_first_token, self._started = on_first_token, perf_counter()
        self._ticket, self._splitter = ticket, splitter
        self._decode = decode
        self._ids: list[int] = []
        self._reasoning_tokens = 0
        #: where the ids of what is no reasoning begin
        self._content_start = 0
        self._has_calls = False

    @property
    def _options(self) -> GenerateOptions:
        return self._ticket.request.options

    @property
    def _is_over(self) -> bool:
        """Whether the answer is complete, though the model would go on."""
        return isinstance(self._splitter, OneCall) and self._splitter.is_over

    def cancel(self) -> None:
        """Compute no further token."""
        self._ticket.cancel()

    async def pieces(self) -> AsyncGenerator[Piece | Progress | End, None]:
        """Yield what there is to tell, `End` last; giving up cancels the answer.

        Raises the error of an answer that could not be computed.
        """
        cached: int | None = None
        try:
            async for event in self._ticket.events():
                match event:
                    case Token():
                        if not (piece := self._piece(event)).is_empty:
                            yield piece
                        if self._is_over:
                            self._ticket.cancel()
                    case Prefilled():
                        cached = event.done if cached is None else cached
                        yield Progress(event.done, event.total, cached)
                    case Failed():
                        raise _failure(event.error)
                    case Finished(finish_reason="cancelled") if not self._is_over:
                        raise ApiError(503, "the answer was given up: the server is shutting down")
                    case Finished():
                        if not (piece := self._last_piece()).is_empty:
                            yield piece
                        yield self._end(event)
        finally:
            self._ticket.cancel()

    async def whole(self) -> Whole:
        """Return the finished answer."""
        pieces = [piece async for piece in self.pieces()]
        end = pieces[-1]
        assert isinstance(end, End)
        whole = Whole(end)
        for piece in pieces:
            if isinstance(piece, Piece):
                whole.reasoning += piece.reasoning
                whole.content += piece.content
                whole.calls.extend(piece.calls)
                whole.tokens.extend(piece.tokens)
        return whole

    def _piece(self, token: Token) -> Piece:
        if not self._ids:
            self._on_first_token(perf_counter() - self._started)
        self._ids.append(token.id)
        if self._splitter is None:
            return Piece(content=token.text, tokens=self._shown(token))
        # The marks around reasoning belong to it, whichever side of them the text is on.
        was_reasoning = self._splitter.in_reasoning
        parts = self._splitter.add(token.text)
        if was_reasoning or self._splitter.in_reasoning:
            self._reasoning_tokens += 1
            self._content_start = len(self._ids)
            return self._of(parts)
        return self._of(parts, self._shown(token))

    def _last_piece(self) -> Piece:
        return Piece() if self._splitter is None else self._of(self._splitter.finish())

    def _of(self, parts: Parts, tokens: tuple[Token, ...] = ()) -> Piece:
        self._has_calls |= bool(parts.calls)
        return Piece(parts.reasoning, parts.content, parts.calls, tokens)

    def _shown(self, token: Token) -> tuple[Token, ...]:
        is_end = token.id in self._options.stop_token_ids
        return () if token.logprob is None or is_end else (token,)

    def _end(self, event: Finished) -> End:
        reason: FinishReason = "length" if event.finish_reason == "length" else "stop"
        if self._has_calls and reason == "stop":
            reason = "tool_calls"
        return End(reason, event.usage, self._reasoning_tokens, self._stop_string(event))

    def _stop_string(self, event: Finished) -> str | None:
        """Return the stop string that ended the answer: the one complete first, then longest."""
        is_by_token = self._ids[-1:] and self._ids[-1] in self._options.stop_token_ids
        if not self._options.stop or event.finish_reason != "stop" or is_by_token:
            return None
        text = self._decode(self._ids[self._content_start :])
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._options.stop]
        return min((one for one in found if one[2] in text), default=(0, 0, None))[2]


def _failure(error: Exception) -> Exception:
    """Return what a client is told; who runs the server is told as well. A bug stays as it is."""
    described = describe(error)
    if described is None:
        return error
    _log.error("an answer could not be computed: %s", described[0])
    return ApiError(500, described[0])


async def wholes(replies: Sequence[Reply]) -> list[Whole]:
    """Return the finished answers; when one cannot be computed, the others are given up."""
    try:
        return list(await asyncio.gather(*(reply.whole() for reply in replies)))
    finally:
        for reply in replies:
            reply.cancel()


async def merged(
    replies: Sequence[Reply],
) -> AsyncGenerator[tuple[int, Piece | Progress | End], None]:
    """Yield (which reply, what it tells) of several replies as it comes."""
    queue: asyncio.Queue[tuple[int, Piece | Progress | End | Exception]] = asyncio.Queue()

    async def follow(index: int, reply: Reply) -> None:
        try:
            async for piece in reply.pieces():
                await queue.put((index, piece))
        except Exception as error:
            await queue.put((index, error))

    tasks = [asyncio.ensure_future(follow(index, reply)) for index, reply in enumerate(replies)]
    try:
        left = len(replies)
        while left:
            index, piece = await queue.get()
            if isinstance(piece, Exception):
                raise piece
            left -= isinstance(piece, End)
            yield index, piece
    finally:
        for task, reply in zip(tasks, replies, strict=True):
            reply.cancel()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
