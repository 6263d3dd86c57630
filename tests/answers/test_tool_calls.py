"""Calls of tools, in the notation of each family, whole or cut into pieces."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kandiga_run.answers.parts import AnswerFormat
from kandiga_run.answers.tool_calls import ToolCall, ToolCallSplitter, load_format, tool_format
from kandiga_run.tokenizer.prompts import Prompts
from tokenizer_files import CHATML_SPECIALS, byte_level_tokenizer, write_tokenizer

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
]
CALL = ToolCall("get_weather", {"city": "Paris", "days": 2})

#: What each family writes for CALL.
WRITTEN = {
    "json_tools": (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n'
        "</tool_call>"
    ),
    "qwen3_coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
    ),
    "glm47": (
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value>"
        "<arg_key>days</arg_key><arg_value>2</arg_value></tool_call>"
    ),
    "minimax_m2": (
        '<minimax:tool_call><invoke name="get_weather"><parameter name="city">Paris</parameter>'
        '<parameter name="days">2</parameter></invoke></minimax:tool_call>'
    ),
    "mistral": '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 2}',
    "pythonic": '<|tool_call_start|>[get_weather(city="Paris", days=2)]<|tool_call_end|>',
    "gemma4": '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>',
    "longcat": (
        "<longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key>\n"
        "<longcat_arg_value>Paris</longcat_arg_value>\n<longcat_arg_key>days</longcat_arg_key>\n"
        "<longcat_arg_value>2</longcat_arg_value>\n</longcat_tool_call>"
    ),
}


def split(
    name: str, text: str, piece_length: int, tools: Any = TOOLS
) -> tuple[str, list[ToolCall]]:
    splitter = ToolCallSplitter(load_format(name), tools)
    parts = [
        splitter.add(text[start : start + piece_length])
        for start in range(0, len(text), piece_length)
    ]
    parts.append(splitter.finish())
    return "".join(part.content for part in parts), [call for part in parts for call in part.calls]


@pytest.mark.parametrize("piece_length", [1, 4, 1000])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_call_after_text(name: str, piece_length: int):
    assert split(name, f"I will look.\n\n{WRITTEN[name]}", piece_length) == ("I will look.", [CALL])


@pytest.mark.parametrize("piece_length", [1, 1000])
@pytest.mark.parametrize("name", ["json_tools", "qwen3_coder", "glm47"])
def test_two_calls_and_nothing_between(name: str, piece_length: int):
    assert split(name, f"{WRITTEN[name]}\n{WRITTEN[name]}", piece_length) == ("", [CALL, CALL])


@pytest.mark.parametrize("piece_length", [1, 1000])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("json_tools", '<tool_call>{"name": "get_weather", </tool_call>'),
        ("json_tools", '<tool_call>["get_weather"]</tool_call>'),
        ("json_tools", '<tool_call>{"name": 1, "arguments": {}}</tool_call> more'),
        ("json_tools", 'before <tool_call>{"name": "get_wea'),
        ("glm47", "<tool_call>what ever</tool_call>"),
        ("qwen3_coder", "<tool_call>get_weather</tool_call>"),
        ("mistral", "[TOOL_CALLS]get_weather"),
        ("json_tools", "a <tool"),
    ],
)
def test_malformed_calls_are_content(name: str, text: str, piece_length: int):
    assert split(name, text, piece_length) == (text, [])


def test_a_whole_call_without_its_end_mark_counts():
    text = WRITTEN["json_tools"].removesuffix("</tool_call>")
    assert split("json_tools", text, 3) == ("", [CALL])


def test_without_tools_all_is_content():
    text = WRITTEN["json_tools"]
    assert split("json_tools", text, 3, tools=None) == (text, [])


def test_text_is_given_out_before_the_call_is_complete():
    splitter = ToolCallSplitter(load_format("json_tools"), TOOLS)
    assert splitter.add("I will").content == "I will"
    assert splitter.add(" look <tool_").content == " look"
    assert splitter.add('call>{"name": "get').content == ""


def test_arguments_as_apis_carry_them():
    assert CALL.arguments_json == '{"city": "Paris", "days": 2}'


def test_the_family_is_told_from_the_template_as_mlx_lm_tells_it(tmp_path: Path):
    from mlx_lm.tokenizer_utils import _infer_tool_parser

    class Seen:
        def __init__(self, template: str, vocabulary: dict[str, int]) -> None:
            self.chat_template, self._vocabulary = template, vocabulary

        def get_vocab(self) -> dict[str, int]:
            return self._vocabulary

    templates = [
        *("<minimax:tool_call>", "<|tool_call> <tool_call|>", "<start_function_call>"),
        *("<longcat_tool_call>", "<arg_key>", "<|tool_list_start|>", "<|tool_call_start|>"),
        *("<tool_call>\n<function=", "'<tool_call>\\n<function='", "<|tool_calls_section_begin|>"),
        *('<function name="a"><param name="b"', "[TOOL_CALLS]", "<atem:function_calls>"),
        *("<tool_call> tool_call.name", "<tool_call>", "nothing"),
    ]
    for index, template in enumerate(templates):
        tokenizer = byte_level_tokenizer()
        folder = write_tokenizer(tmp_path / str(index), tokenizer, chat_template=template)
        seen = tool_format(Prompts(folder))
        wanted = _infer_tool_parser(Seen(template, tokenizer.get_vocab()))
        assert (seen.name if seen else None) == wanted, template


def test_special_tokens_of_a_call_give_text(tmp_path: Path):
    marks = ("<|tool_call>", "<tool_call|>", '<|"|>', "<|unrelated|>")
    tokenizer = byte_level_tokenizer((*CHATML_SPECIALS, *marks))
    folder = write_tokenizer(
        tmp_path, tokenizer, chat_template=" ".join(marks), settings={"eos_token": "<|im_end|>"}
    )
    prompts = Prompts(folder)
    format_ = AnswerFormat.of(prompts)
    detokenizer = prompts.detokenizer(keep=format_.kept_tokens)
    splitter = format_.splitter("", TOOLS)
    text = WRITTEN["gemma4"] + "<|unrelated|><|im_end|>"
    parts = [splitter.add(detokenizer.add(token)) for token in prompts.encode(text)]
    parts.append(splitter.finish())
    assert [call for part in parts for call in part.calls] == [CALL]
    assert "".join(part.content for part in parts) == ""


def test_parsers_are_loaded_without_mlx_or_transformers():
    code = (
        "import sys; from kandiga_run.answers.tool_calls import load_format\n"
        "for name in ('json_tools', 'qwen3_coder', 'laguna', 'minicpm5'): load_format(name)\n"
        "print([n for n in ('mlx', 'mlx.core', 'mlx_lm', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PIECES = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            '{"name": "get_weather", "arguments": {}}',
            "<tool",
            "_call>",
        ),
        *("a", " ", "\n", "{", "}", "</"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(PIECES, max_size=10),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=12),
)
def test_where_the_text_is_cut_changes_nothing(pieces: list[str], cuts: list[int]):
    text = "".join(pieces)
    splitter = ToolCallSplitter(load_format("json_tools"), TOOLS)
    content, calls, position = "", list[ToolCall](), 0
    for cut in itertools.cycle(cuts):
        if position >= len(text):
            break
        part = splitter.add(text[position : position + cut])
        content, position = content + part.content, position + cut
        calls += part.calls
    part = splitter.finish()
    whole = split("json_tools", text, len(text) + 1)
    assert (content + part.content, [*calls, *part.calls]) == whole
    if not whole[1]:
        assert content + part.content == text
