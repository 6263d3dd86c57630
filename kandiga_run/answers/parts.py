"""An answer's text taken apart while it arrives: reasoning, content, calls of tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kandiga_run.answers.after_reasoning import AfterReasoning
from kandiga_run.answers.reasoning import (
    ReasoningFormat,
    ReasoningSplitter,
    opens_reasoning,
    reasoning_format,
)
from kandiga_run.answers.tool_calls import (
    ToolCall,
    ToolCallSplitter,
    ToolFormat,
    Tools,
    tool_format,
)
from kandiga_run.generation.answer import TokenMask
from kandiga_run.tokenizer.prompts import Prompts


class Parts(NamedTuple):
    """What became certain with a piece of text."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class AnswerFormat:
    """How one model marks the parts of its answers. Made once for a model."""

    reasoning: ReasoningFormat | None
    tools: ToolFormat | None
    #: Special tokens that must give text, since they are the marks: `Prompts.detokenizer(keep=)`.
    kept_tokens: frozenset[int]
    #: The tokens that end reasoning, after which a constraint begins.
    reasoning_end_tokens: tuple[int, ...]
    #: The one token that begins reasoning, where it is one.
    reasoning_start_token: int | None

    @classmethod
    def of(cls, prompts: Prompts, *, with_tools: bool = True) -> AnswerFormat:
        """Return the format of the model that these prompts belong to.

        with_tools: False where no tools will be offered, which saves loading a parser.
        """
        reasoning = reasoning_format(prompts)
        tools = tool_format(prompts) if with_tools else None
        marks = reasoning.markers if reasoning else ()
        plain = {*prompts.special_tokens.values()}
        added = prompts.tokenizer.get_added_tokens_decoder()
        kept = {
            id_
            for id_, token in added.items()
            if any(token.content in mark for mark in marks)
            or (tools and token.content not in plain and tools.mentions(token.content))
        }
        end = tuple(prompts.encode(reasoning.end)) if reasoning else ()
        start = prompts.tokenizer.token_to_id(reasoning.start) if reasoning else None
        return cls(reasoning, tools, frozenset(kept) - prompts.stop_token_ids, end, start)

    @classmethod
    def plain(cls) -> AnswerFormat:
        """Return the format of text that is all content."""
        return cls(None, None, frozenset(), (), None)

    def after_reasoning(
        self, mask: TokenMask | None, *, is_open: bool, budget: int | None = None
    ) -> TokenMask | None:
        """Return a constraint that leaves reasoning free and holds the answer after it.

        mask: of the answer; None leaves that free, too, and stop strings begin with it.
        is_open: the prompt ends within reasoning; else the model may begin with some.
        budget: of tokens for reasoning.
        """
        start = None if is_open else self.reasoning_start_token
        if self.reasoning is None or not self.reasoning_end_tokens:
            return mask
        if not is_open and start is None:
            return mask
        return AfterReasoning(mask, self.reasoning_end_tokens, start, budget=budget)

    def splitter(self, rendered: str, tools: Tools | None = None) -> AnswerSplitter:
        """Return a splitter for the answer to a rendered prompt."""
        return AnswerSplitter(self, rendered, tools)


class AnswerSplitter:
    """Takes one answer apart."""

    def __init__(self, format_: AnswerFormat, rendered: str, tools: Tools | None) -> None:
        is_open = format_.reasoning is not None and opens_reasoning(format_.reasoning, rendered)
        self.opens_in_reasoning = is_open
        self._reasoning = ReasoningSplitter(format_.reasoning, is_open=is_open)
        self._calls = ToolCallSplitter(format_.tools, tools)

    @property
    def in_reasoning(self) -> bool:
        """Whether the latest text was reasoning."""
        return self._reasoning.in_reasoning

    def add(self, text: str) -> Parts:
        """Return what is certain after this much more text."""
        reasoning, content = self._reasoning.add(text)
        parsed = self._calls.add(content)
        return Parts(reasoning, parsed.content, parsed.calls)

    def finish(self) -> Parts:
        """Return what was held back, once no further text follows."""
        reasoning, content = self._reasoning.finish()
        first, last = self._calls.add(content), self._calls.finish()
        return Parts(reasoning, first.content + last.content, first.calls + last.calls)
