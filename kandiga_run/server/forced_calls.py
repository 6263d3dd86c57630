"""`tool_choice` "required" or named: the answer is held to one call, written as plain JSON.

Families write calls in many ways; a grammar for each would have to be kept in step with its
parser. A JSON object with name and arguments is something every model can write, and a schema makes
it valid by construction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kandiga_run.answers.parts import Parts
from kandiga_run.answers.reasoning import ReasoningFormat, ReasoningSplitter
from kandiga_run.answers.tool_calls import ToolCall


def call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the schema of a call of one of the tools, {"name", "arguments"}."""
    return {"anyOf": [_one_call(tool["function"]) for tool in tools]}


def _one_call(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


class ForcedCall:
    """Takes an answer apart that is reasoning and then one call in JSON."""

    def __init__(self, format_: ReasoningFormat | None, *, is_open: bool) -> None:
        """Expect reasoning first when the prompt ends within it."""
        self._reasoning = ReasoningSplitter(format_ if is_open else None, is_open=is_open)
        self._text = ""

    @property
    def in_reasoning(self) -> bool:
        """Whether the latest text was reasoning."""
        return self._reasoning.in_reasoning

    def add(self, text: str) -> Parts:
        """Return the reasoning that is certain; the call comes whole, at the end."""
        reasoning, content = self._reasoning.add(text)
        self._text += content
        return Parts(reasoning)

    def finish(self) -> Parts:
        """Return the call, or as content what an answer cut short has of it."""
        reasoning, content = self._reasoning.finish()
        text = self._text + content
        try:
            call = json.loads(text)
        except ValueError:
            return Parts(reasoning, text)
        return Parts(reasoning, "", (ToolCall(call["name"], call["arguments"]),))
