"""Reasoning apart from the answer, however the text is cut into pieces."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kandiga_run.answers.reasoning import (
    ReasoningFormat,
    ReasoningSplitter,
    opens_reasoning,
    reasoning_format,
)
from kandiga_run.tokenizer.prompts import Prompts
from tokenizer_files import CHATML_SPECIALS, byte_level_tokenizer, write_tokenizer

THINK = ReasoningFormat("<think>", "</think>")
HARMONY = ReasoningFormat(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    ("<|start|>assistant", "<|channel|>final<|message|>"),
    recurs=True,
)


def split(
    text: str, piece_length: int, format_: ReasoningFormat | None = THINK, *, is_open: bool = False
) -> tuple[str, str]:
    splitter = ReasoningSplitter(format_, is_open=is_open)
    reasoning = content = ""
    for start in range(0, len(text), piece_length):
        part = splitter.add(text[start : start + piece_length])
        reasoning, content = reasoning + part.reasoning, content + part.content
    part = splitter.finish()
    return reasoning + part.reasoning, content + part.content


@pytest.mark.parametrize("piece_length", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "is_open", "reasoning", "content"),
    [
        ("<think>\nhm\n\nyes\n</think>\n\nParis.", False, "hm\n\nyes", "Paris."),
        ("hm\n</think>\n\nParis.\n", True, "hm", "Paris.\n"),
        ("\n</think>\n\nParis.", True, "", "Paris."),
        ("<think></think>Paris.", False, "", "Paris."),
        ("Paris.", False, "", "Paris."),
        ("  a < b and <thin air\n", False, "", "  a < b and <thin air\n"),
        ("still thinking ", True, "still thinking", ""),
        # A tag that an answer merely talks about is text.
        ("Write <think> before it and </think> after.", False, "", None),
        ("<think>a</think>b <think> c", False, "a", "b <think> c"),
        # Some models end reasoning that nobody began.
        ("</think>Paris.", False, "", "Paris."),
    ],
)
def test_think(text: str, is_open: bool, reasoning: str, content: str | None, piece_length: int):
    wanted = (reasoning, text if content is None else content)
    assert split(text, piece_length, is_open=is_open) == wanted


@pytest.mark.parametrize("piece_length", [1, 5, 1000])
def test_channels_take_turns(piece_length: int):
    text = (
        "<|channel|>analysis<|message|>first<|end|><|start|>assistant"
        "<|channel|>analysis<|message|>second<|end|><|start|>assistant"
        "<|channel|>final<|message|>Paris."
    )
    assert split(text, piece_length, HARMONY) == ("first\n\nsecond", "Paris.")


def test_nothing_is_held_back_without_need():
    splitter = ReasoningSplitter(THINK)
    assert splitter.add("<think>one").reasoning == "one"
    assert splitter.add(" two </th").reasoning == " two"
    assert splitter.in_reasoning
    assert splitter.add("ink>Paris <b").content == "Paris <b"
    assert not splitter.in_reasoning


def test_without_a_format_all_is_content():
    assert split("<think>a</think>b", 3, None) == ("", "<think>a</think>b")


@pytest.mark.parametrize(
    ("rendered", "is_open"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>user\nwhat is <think>?<|im_end|>\n<|im_start|>assistant\n", False),
    ],
)
def test_template_that_opens_reasoning(rendered: str, is_open: bool):
    assert opens_reasoning(THINK, rendered) is is_open


def test_the_format_follows_from_vocabulary_or_template(tmp_path: Path):
    plain = write_tokenizer(tmp_path / "plain", byte_level_tokenizer(), chat_template="{{ 1 }}")
    assert reasoning_format(Prompts(plain)) is None
    tokens = byte_level_tokenizer((*CHATML_SPECIALS, "<think>", "</think>"))
    by_token = write_tokenizer(tmp_path / "token", tokens, chat_template="{{ 1 }}")
    assert reasoning_format(Prompts(by_token)) == THINK
    template = "{{ '<think>' }}{{ '</think>' }}"
    by_text = write_tokenizer(tmp_path / "text", byte_level_tokenizer(), chat_template=template)
    assert reasoning_format(Prompts(by_text)) == THINK
    channels = ("<|channel|>", "<|message|>", "<|end|>")
    harmony = write_tokenizer(
        tmp_path / "harmony",
        byte_level_tokenizer((*CHATML_SPECIALS, *channels)),
        chat_template="{{ 1 }}",
    )
    assert reasoning_format(Prompts(harmony)) == HARMONY


PIECES = st.sampled_from(
    ["<think>", "</think>", "<th", "ink>", "</", "think>", "a", " ", "\n", "\n\n", "<", ">", "b c"]
)


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(PIECES, max_size=12),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    is_open=st.booleans(),
    recurs=st.booleans(),
)
def test_where_the_text_is_cut_changes_nothing(
    pieces: list[str], cuts: list[int], is_open: bool, recurs: bool
):
    format_ = replace(THINK, recurs=recurs)
    text = "".join(pieces)
    splitter = ReasoningSplitter(format_, is_open=is_open)
    reasoning = content = ""
    position = 0
    for cut in itertools.cycle(cuts):
        if position >= len(text):
            break
        part = splitter.add(text[position : position + cut])
        reasoning, content = reasoning + part.reasoning, content + part.content
        position += cut
    part = splitter.finish()
    assert (reasoning + part.reasoning, content + part.content) == split(
        text, len(text) + 1, format_, is_open=is_open
    )
    # Nothing of the text is lost but marks and blank space.
    bare = "".join(reasoning + part.reasoning + content + part.content).split()
    assert "".join(bare).count("a") == text.count("a")
