"""`tool_choice` "required" or named: the answer is held to calls, written as plain JSON.

Families write calls in many ways; a grammar for each would have to be kept in step with its
parser. A JSON object with name and arguments is something every model can write, and a schema makes
it valid by construction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kandiga_run.answers.parts import AnswerSplitter, Parts
from kandiga_run.answers.reasoning import ReasoningFormat, ReasoningSplitter
from kandiga_run.answers.tool_calls import ToolCall

#: Calls in one answer: more are a model that repeats itself.
_MOST_CALLS = 16

#: Words with which several schemas become one: each alone must not be closed.
_JOINING = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties", "unevaluatedProperties"}


def calls_schema(tools: Sequence[Mapping[str, Any]], *, many: bool) -> dict[str, Any]:
    """Return the schema of a call of one of the tools, {"name", "arguments"}.

    many: an array of calls will do as well.
    """
    functions = [tool["function"] for tool in tools]
    places = [f"#/$defs/tool{index}" for index in range(len(functions))]
    defined = {
        place.rpartition("/")[2]: _arguments(function.get("parameters"), place)
        for place, function in zip(places, functions, strict=True)
    }
    call = {"anyOf": [_one_call(f["name"], p) for f, p in zip(functions, places, strict=True)]}
    if not many:
        return {"$defs": defined, **call}
    calls = {"type": "array", "items": call, "minItems": 1, "maxItems": _MOST_CALLS}
    return {"$defs": defined, "anyOf": [call, calls]}


def _one_call(name: str, arguments: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": {"$ref": arguments}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _arguments(parameters: Mapping[str, Any] | None, place: str) -> Any:
    """Return the schema of a tool's arguments as it stands at `place`."""
    # No parameters are an empty list of them.
    return _moved(_closed({"properties": {}, **(parameters or {"type": "object"})}), place)


def _moved(schema: Any, place: str) -> Any:
    """Return a schema whose pointers to itself, such as #/$defs/Address, point below `place`."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {name: _moved(each, place) for name, each in schema.items()}
    pointer = moved.get("$ref")
    if isinstance(pointer, str) and pointer.startswith("#"):
        moved["$ref"] = place + pointer[1:]
    return moved


def _closed(schema: Any) -> Any:
    """Return a schema whose objects have the properties it names and no others.

    JSON schema allows any besides, and a model that may write them does; a tool refuses them. What
    says "additionalProperties" itself is left alone.
    """
    if not isinstance(schema, Mapping) or _JOINING & schema.keys():
        return schema
    closed = dict(schema)
    if isinstance(closed.get("properties"), Mapping):
        closed["properties"] = {name: _closed(each) for name, each in closed["properties"].items()}
        closed.setdefault("additionalProperties", False)
    for word in ("$defs", "definitions"):
        if isinstance(closed.get(word), Mapping):
            closed[word] = {name: _closed(each) for name, each in closed[word].items()}
    if "items" in closed:
        closed["items"] = _closed(closed["items"])
    return closed


class ForcedCalls:
    """Takes an answer apart that is reasoning and then a call in JSON, or an array of calls."""

    def __init__(self, format_: ReasoningFormat | None, *, is_open: bool) -> None:
        """Expect reasoning first when the prompt ends within it."""
        self._reasoning = ReasoningSplitter(format_ if is_open else None, is_open=is_open)
        self._text = ""

    @property
    def in_reasoning(self) -> bool:
        """Whether the latest text was reasoning."""
        return self._reasoning.in_reasoning

    def add(self, text: str) -> Parts:
        """Return the reasoning that is certain; calls come whole, at the end."""
        reasoning, content = self._reasoning.add(text)
        self._text += content
        return Parts(reasoning)

    def finish(self) -> Parts:
        """Return the calls, or as content what an answer cut short has of them."""
        reasoning, content = self._reasoning.finish()
        text = self._text + content
        try:
            said = json.loads(text)
        except ValueError:
            return Parts(reasoning, text)
        calls = said if isinstance(said, list) else [said]
        return Parts(
            reasoning, "", tuple(ToolCall(call["name"], call["arguments"]) for call in calls)
        )


class OneCall:
    """Another splitter's answer up to its first call: with that it is over."""

    def __init__(self, splitter: AnswerSplitter) -> None:
        """Take apart as `splitter` does."""
        self._splitter = splitter
        #: whether there was a call
        self.is_over = False

    @property
    def in_reasoning(self) -> bool:
        """Whether the latest text was reasoning."""
        return self._splitter.in_reasoning

    def add(self, text: str) -> Parts:
        """Return what is certain after this much more text, nothing after the call."""
        return Parts() if self.is_over else self._up_to_call(self._splitter.add(text))

    def finish(self) -> Parts:
        """Return what was held back, once no further text follows."""
        return Parts() if self.is_over else self._up_to_call(self._splitter.finish())

    def _up_to_call(self, parts: Parts) -> Parts:
        self.is_over = bool(parts.calls)
        return Parts(parts.reasoning, parts.content, parts.calls[:1])
