"""The schema that calls which must be made are held to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kandiga_run.answers.constraint import Grammars
from kandiga_run.answers.tool_calls import ToolCall
from kandiga_run.server.forced_calls import ForcedCalls, calls_schema
from tokenizer_files import byte_level_tokenizer


def arguments_schema(parameters: dict[str, Any] | None) -> dict[str, Any]:
    function = {"name": "f"} if parameters is None else {"name": "f", "parameters": parameters}
    return calls_schema([{"function": function}], many=False)["$defs"]["tool0"]


def test_no_arguments_but_those_that_are_named() -> None:
    """A model that may write others does, and the tool refuses them."""
    inner = {"type": "object", "properties": {"x": {"type": "number"}}}
    listed = {"type": "array", "items": inner}
    properties = {"point": inner, "points": listed, "any": {"type": "object"}}
    parameters = {"type": "object", "properties": properties}
    closed = {**inner, "additionalProperties": False}
    assert arguments_schema(parameters) == {
        "type": "object",
        "properties": {
            "point": closed,
            "points": {"type": "array", "items": closed},
            "any": {"type": "object"},
        },
        "additionalProperties": False,
    }
    assert properties["point"] is inner
    assert "additionalProperties" not in inner


@pytest.mark.parametrize("parameters", [None, {"type": "object"}, {"properties": {}}])
def test_no_parameters_are_no_arguments(parameters: dict[str, Any] | None) -> None:
    schema = arguments_schema(parameters)
    assert (schema["properties"], schema["additionalProperties"]) == ({}, False)


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "object", "properties": {}, "additionalProperties": True},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
    ],
)
def test_what_says_otherwise_is_left_alone(parameters: dict[str, Any]) -> None:
    schema = arguments_schema(parameters)
    assert schema.get("additionalProperties") == parameters.get("additionalProperties")
    assert parameters.items() <= schema.items()


def test_definitions_are_found_where_they_are_then() -> None:
    """As pydantic writes parameters; the grammar looks pointers up from its own root."""
    address = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Address"}}}
    parameters = {
        "$defs": {"Address": address},
        "type": "object",
        "properties": {"to": {"$ref": "#/$defs/Address"}},
    }
    tools = [{"function": {"name": name, "parameters": parameters}} for name in ("f", "g")]
    schema = calls_schema(tools, many=True)
    tokenizer = byte_level_tokenizer()
    constraint = Grammars(tokenizer, tokenizer.get_vocab_size(), [0]).json_schema(schema)
    text = '{"name":"g","arguments":{"to":{"next":{}}}}'
    for token in tokenizer.encode(text).ids:
        constraint.accept(token)
    assert constraint.is_complete


@pytest.mark.parametrize("many", [False, True])
def test_an_array_only_where_several_may_be_called(many: bool) -> None:
    schema = calls_schema([{"function": {"name": "f"}}], many=many)
    assert ("array" in json.dumps(schema)) is many


def test_calls_are_taken_apart() -> None:
    f = {"name": "f", "arguments": {"a": 1}}
    for text, calls in (
        (json.dumps(f), (ToolCall("f", {"a": 1}),)),
        (json.dumps([f, f]), (ToolCall("f", {"a": 1}),) * 2),
        (json.dumps(f)[:-1], ()),
    ):
        splitter = ForcedCalls(None, is_open=False)
        assert splitter.add(text) == ("", "", ())
        parts = splitter.finish()
        assert parts.calls == calls
        assert parts.content == ("" if calls else text)
