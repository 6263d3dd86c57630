"""Reasoning apart from the answer: `<think>...</think>` and what other families write for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from kandiga_run.answers.marked_text import first_marker, held_length
from kandiga_run.tokenizer.prompts import Prompts


@dataclass(frozen=True)
class ReasoningFormat:
    """How a family of models marks its reasoning."""

    start: str
    end: str
    #: Marks around the answer itself, which are no text of it.
    dropped: tuple[str, ...] = ()
    #: Whether reasoning may begin again after text of the answer.
    recurs: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Return every mark."""
        return (self.start, self.end, *self.dropped)


#: In order of precedence; a model's format is the first whose marks its vocabulary can write.
_FORMATS = (
    ReasoningFormat("<think>", "</think>"),
    ReasoningFormat("<longcat_think>", "</longcat_think>"),
    ReasoningFormat("<|think:start|>", "<|think:end|>"),
    ReasoningFormat("[THINK]", "[/THINK]"),
    ReasoningFormat("<|channel>thought", "<channel|>", recurs=True),
    ReasoningFormat(
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        (
            "<|open|>response<|sep|>",
            "<|close|>response<|sep|>",
            "<|close|>message<|sep|>",
        ),
        recurs=True,
    ),
    ReasoningFormat(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        ("<|start|>assistant", "<|channel|>final<|message|>"),
        recurs=True,
    ),
)


def reasoning_format(prompts: Prompts) -> ReasoningFormat | None:
    """Return how this model marks its reasoning, or None when it has no such thing."""
    template = prompts.template_source
    for candidate in _FORMATS:
        marks = (candidate.start, candidate.end)
        if all(_has_tokens(mark, prompts) or mark in template for mark in marks):
            return candidate
    return None


def _has_tokens(mark: str, prompts: Prompts) -> bool:
    """Whether every bracketed piece of a mark is a token; "<|channel>thought" has one."""
    pieces = re.findall(r"<[^<>]*>|\[[^][]*\]", mark)
    return all(prompts.tokenizer.token_to_id(piece) is not None for piece in pieces)


def opens_reasoning(format_: ReasoningFormat, rendered: str) -> bool:
    """Whether a rendered prompt ends within reasoning, which the model then goes on with."""
    return rendered.rstrip().endswith(format_.start)


class Split(NamedTuple):
    """A piece of an answer, taken apart."""

    reasoning: str
    content: str


class ReasoningSplitter:
    """Takes the text of one answer apart while it arrives.

    Blank lines around the marks belong to neither part. Reasoning that never ends, as in an answer
    cut short, is reasoning.
    """

    def __init__(self, format_: ReasoningFormat | None, *, is_open: bool = False) -> None:
        """Split by `format_`; without one all text is content.

        is_open: the prompt ends within reasoning, see `opens_reasoning`.
        """
        self._format = format_
        self._in_reasoning = is_open and format_ is not None
        self._held = ""
        self._parts = {True: _Trimmed(), False: _Trimmed()}
        self._has_content = False

    @property
    def in_reasoning(self) -> bool:
        """Whether the latest text was reasoning."""
        return self._in_reasoning

    def add(self, text: str) -> Split:
        """Return what is certain after this much more text."""
        if self._format is None:
            return Split("", text)
        out: dict[bool, list[str]] = {True: [], False: []}
        self._held += text
        while (found := first_marker(self._held, self._markers())) is not None:
            index, marker = found
            self._give(self._held[:index], out)
            self._held = self._held[index:]
            if marker in self._markers():  # which text of the answer before it may have changed
                self._held = self._held[len(marker) :]
                self._turn(marker)
        keep = held_length(self._held, self._markers())
        cut = len(self._held) - keep
        self._give(self._held[:cut], out)
        self._held = self._held[cut:]
        return Split("".join(out[True]), "".join(out[False]))

    def finish(self) -> Split:
        """Return what was held back, once no further text follows."""
        held, self._held = self._held, ""
        out: dict[bool, list[str]] = {True: [], False: []}
        self._give(held, out)
        # Spaces at the very end belong to content; those of reasoning are never shown.
        content = "".join(out[False]) + self._parts[False].rest()
        return Split("".join(out[True]), content)

    def _markers(self) -> tuple[str, ...]:
        assert self._format is not None
        if self._in_reasoning:
            return (self._format.end,)
        if self._has_content and not self._format.recurs:
            return self._format.dropped
        # A second end mark, which some models write, is no text either.
        return self._format.markers

    def _turn(self, marker: str) -> None:
        assert self._format is not None
        if marker in (self._format.start, self._format.end):
            self._in_reasoning = marker == self._format.start
        if not self._has_content or self._in_reasoning:
            self._parts[self._in_reasoning].begin()

    def _give(self, text: str, out: dict[bool, list[str]]) -> None:
        shown = self._parts[self._in_reasoning].add(text)
        if shown:
            out[self._in_reasoning].append(shown)
            self._has_content |= not self._in_reasoning


class _Trimmed:
    """Text without blank space at its beginning, its end held back until more follows."""

    def __init__(self) -> None:
        self._blank = ""
        self._at_start = False
        self._is_empty = True

    def begin(self) -> None:
        """Stand behind a mark: the blank space that follows is not shown."""
        self._blank = "" if self._is_empty else "\n\n"
        self._at_start = True

    def add(self, text: str) -> str:
        """Return what to show."""
        if self._at_start:
            text = text.lstrip()
            self._at_start = not text
        if not text:
            return ""
        shown = text.rstrip()
        if not shown:
            self._blank += text
            return ""
        before, self._blank = self._blank, text[len(shown) :]
        self._is_empty = False
        return before + shown

    def rest(self) -> str:
        """Return the blank space held back."""
        rest, self._blank = self._blank, ""
        return rest
