"""An answer in the making, taken apart: reasoning, text, calls of tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from kandiga_run.answers.parts import AnswerSplitter, Parts
from kandiga_run.answers.tool_calls import ToolCall
from kandiga_run.generation.answer import Token
from kandiga_run.generation.loop import Generation

ReplyEnd = Literal["stop", "length", "tool_calls"]


class Chunk(NamedTuple):
    """What became certain with one token, possibly nothing."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    token: Token


class Reply(Iterator[Chunk]):
    """Iterate over it for chunks, close it to cancel; the whole so far is in its attributes."""

    def __init__(self, generation: Generation, splitter: AnswerSplitter) -> None:
        self.generation = generation
        self._splitter = splitter
        self._is_finished = False
        self.text = ""
        self.reasoning = ""
        self.tool_calls: list[ToolCall] = []

    @property
    def finish_reason(self) -> ReplyEnd | None:
        """Return why the answer ended, None when it has not or was cancelled."""
        reason = self.generation.finish_reason
        return "tool_calls" if reason == "stop" and self.tool_calls else reason

    def __next__(self) -> Chunk:
        """Return the next chunk; computing it takes as long as the model takes."""
        token = next(self.generation)
        parts = self._splitter.add(token.text)
        self._add(parts)
        if self.generation.finish_reason:
            rest = self._finish()
            parts = Parts(
                parts.reasoning + rest.reasoning,
                parts.content + rest.content,
                parts.calls + rest.calls,
            )
        return Chunk(parts.content, parts.reasoning, parts.calls, token)

    def close(self) -> None:
        """Cancel. What was generated so far stays, text held back included; iteration ends."""
        self.generation.close()
        self._finish()

    def _finish(self) -> Parts:
        if self._is_finished:
            return Parts()
        self._is_finished = True
        rest = self._splitter.finish()
        self._add(rest)
        return rest

    def _add(self, parts: Parts) -> None:
        self.reasoning += parts.reasoning
        self.text += parts.content
        self.tool_calls.extend(parts.calls)
