"""Calls of tools in what a model writes, read by mlx-lm's parser for the model's family.

The parsers are plain Python and are loaded from mlx-lm's files one by one: importing the package
would import mlx, which the native engine does without.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from kandiga_run.answers.marked_text import first_marker, held_length
from kandiga_run.errors import RunError
from kandiga_run.tokenizer.prompts import Prompts

#: Definitions of tools as OpenAI writes them: {"type": "function", "function": {"name": ...}}.
Tools = Sequence[Mapping[str, Any]]

#: The name under which mlx-lm's folder of parsers is imported, so that they find one another.
_PACKAGE = "_kandiga_mlx_lm_tool_parsers"

#: What a chat template of a family holds, in mlx-lm's order: the first that matches decides.
_TEMPLATE_MARKS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("minimax_m2", (("<minimax:tool_call>",),)),
    ("gemma4", (("<|tool_call>", "<tool_call|>"),)),
    ("function_gemma", (("<start_function_call>",),)),
    ("longcat", (("<longcat_tool_call>",),)),
    ("glm47", (("<arg_key>",),)),
    ("pythonic", (("<|tool_list_start|>",), ("<|tool_call_start|>",))),
    ("qwen3_coder", (("<tool_call>\\n<function=",), ("<tool_call>\n<function=",))),
    ("kimi_k2", (("<|tool_calls_section_begin|>",),)),
    ("minicpm5", (('<function name="', '<param name="'),)),
    ("mistral", (("[TOOL_CALLS]",),)),
    ("muse_spark", (("<atem:function_calls>",),)),
    ("json_tools", (("<tool_call>", "tool_call.name"),)),
)

#: For templates that do not name their marks: what the vocabulary holds.
_VOCABULARY_MARKS = (
    ("kimi_k3", ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>")),
    ("pythonic", ("<|tool_call_start|>", "<|tool_call_end|>")),
)


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]
    #: As the model wrote it; most families have none.
    id: str | None = None

    @property
    def arguments_json(self) -> str:
        """Return the arguments as OpenAI's API carries them."""
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes calls."""

    name: str
    start: str
    #: Empty where a call ends with the answer.
    end: str
    _parse: Callable[[str, Any], Any]
    _source: str = ""

    def mentions(self, token: str) -> bool:
        """Whether calls are written with this special token, inside or around them."""
        return token in (self.start, self.end) or token in self._source

    def parse(self, text: str, tools: Tools) -> list[ToolCall]:
        """Return the calls in the text between the marks. Raises ValueError when malformed."""
        try:
            # Parsers look names up in plain dicts and lists.
            parsed = self._parse(text, json.loads(json.dumps(list(tools))))
        except Exception as error:  # parsers of text a model wrote fail in every way there is
            raise ValueError(f"{type(error).__name__}: {error}") from error
        calls = parsed if isinstance(parsed, list) else [parsed]
        if not calls:
            raise ValueError("no call")
        return [_checked(call, tools) for call in calls]


def tool_format(prompts: Prompts) -> ToolFormat | None:
    """Return how this model writes calls of tools, or None when it knows none."""
    name = _parser_name(prompts)
    return None if name is None else load_format(name)


def load_format(name: str) -> ToolFormat:
    """Return a format by the name of mlx-lm's parser. Raises RunError when there is none."""
    module = _parser_module(name)
    # Which tokens stand within a call is written nowhere but in the parser's own patterns.
    source = inspect.getsource(module).replace("\\", "")
    return ToolFormat(
        name, module.tool_call_start, module.tool_call_end, module.parse_tool_call, source
    )


class Parsed(NamedTuple):
    """What became certain: text of the answer, and whole calls."""

    content: str
    calls: tuple[ToolCall, ...] = ()


class ToolCallSplitter:
    """Takes calls out of the text of one answer while it arrives.

    Text before a call is content. What looks like a call and cannot be parsed is content too.
    """

    def __init__(self, format_: ToolFormat | None, tools: Tools | None) -> None:
        """Look for calls if the model has a format and the request has tools."""
        self._format = format_ if tools else None
        self._tools = tools or ()
        self._held = ""
        self._blank = ""
        self._in_call = False

    def add(self, text: str) -> Parsed:
        """Return what is certain after this much more text."""
        if self._format is None:
            return Parsed(text)
        self._held += text
        content: list[str] = []
        calls: list[ToolCall] = []
        while self._step(self._format, content, calls):
            pass
        return Parsed("".join(content), tuple(calls))

    def finish(self) -> Parsed:
        """Return what was held back, once no further text follows."""
        if self._format is None:
            return Parsed("")
        held, self._held = self._held, ""
        if not self._in_call:
            return Parsed(self._blank + held)
        self._in_call = False
        # The end mark may be a token that ends the answer, or be cut off: a whole call counts.
        content, calls = self._parsed(self._format, held, "")
        return Parsed(content, calls)

    def _step(self, format_: ToolFormat, content: list[str], calls: list[ToolCall]) -> bool:
        """Go past one mark; return False when the text at hand holds no further one."""
        mark = format_.end if self._in_call else format_.start
        found = first_marker(self._held, (mark,)) if mark else None
        if found is None:
            if not self._in_call:
                cut = len(self._held) - held_length(self._held, (mark,))
                content.append(self._shown(self._held[:cut]))
                self._held = self._held[cut:]
            return False
        before, self._held = self._held[: found[0]], self._held[found[0] + len(mark) :]
        if self._in_call:
            text, parsed = self._parsed(format_, before, mark)
            content.append(text)
            calls.extend(parsed)
        else:
            content.append(self._shown(before))
        self._in_call = not self._in_call
        return True

    def _parsed(self, format_: ToolFormat, text: str, end: str) -> tuple[str, tuple[ToolCall, ...]]:
        try:
            calls = format_.parse(text, self._tools)
        except ValueError:
            blank, self._blank = self._blank, ""
            return f"{blank}{format_.start}{text}{end}", ()
        self._blank = ""
        return "", tuple(calls)

    def _shown(self, text: str) -> str:
        """Return content, blank space held back: before and between calls it is no content."""
        shown = text.rstrip()
        if not shown:
            self._blank += text
            return ""
        before, self._blank = self._blank, text[len(shown) :]
        return before + shown


def _checked(call: Any, tools: Tools) -> ToolCall:
    """Return a parser's result as a call. Raises ValueError when it is none."""
    if not isinstance(call, Mapping):
        raise ValueError(f"a call is an object, seen {call!r}")  # noqa: TRY004 - one for all
    name, arguments = call.get("name"), call.get("arguments", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError(f"a call has a name and arguments, seen {call}")
    if set(arguments) == {"raw"} and name not in _tool_names(tools):
        raise ValueError("no call")  # what the parser of GLM makes of any text at all
    id_ = call.get("id")
    return ToolCall(name, arguments, id_ if isinstance(id_, str) else None)


def _tool_names(tools: Tools) -> set[str]:
    return {str((tool.get("function") or {}).get("name")) for tool in tools}


def _parser_name(prompts: Prompts) -> str | None:
    configured = prompts.tokenizer_config.get("tool_parser_type")
    if isinstance(configured, str):
        return configured
    template = prompts.template_source
    for name, alternatives in _TEMPLATE_MARKS:
        if any(all(mark in template for mark in marks) for marks in alternatives):
            return name
    for name, marks in _VOCABULARY_MARKS:
        if all(prompts.tokenizer.token_to_id(mark) is not None for mark in marks):
            return name
    return None


def _parser_module(name: str) -> ModuleType:
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(_parser_folder())]
        sys.modules[_PACKAGE] = package
    if not name.isidentifier():
        raise RunError(f"tool_parser_type {name!r}: not a name of a parser of mlx-lm")
    try:
        return importlib.import_module(f"{_PACKAGE}.{name}")
    except ImportError as error:
        raise RunError(f"mlx-lm has no usable tool parser {name!r}: {error}") from error


def _parser_folder() -> Path:
    spec = importlib.util.find_spec("mlx_lm")  # finds, does not import
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "tool_parsers"
        if folder.is_dir():
            return folder
    raise RunError("calling tools needs the parsers of mlx-lm: pip install mlx-lm")
