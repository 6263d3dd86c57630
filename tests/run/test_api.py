"""The Python API on a real, tiny model."""

import json
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kandiga_run as kr
from kandiga_run.memory.use import memory_use
from kandiga_run.sizes import format_size
from kandiga_run.tokenizer.prompts import Prompts
from packed import PackedModels

LIMIT = 12


@pytest.fixture(scope="module")
def folder(packed: PackedModels) -> Path:
    return packed("qwen3_moe").container


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[kr.LoadedModel]:
    with kr.load(folder, context=400) as model:
        yield model


def by_hand(folder: Path, text: str, limit: int = LIMIT) -> str:
    """Return the greedy answer by the functions one level below."""
    engine, prompts = kr.load_engine(folder), Prompts(folder)
    options = kr.GenerateOptions(max_tokens=limit, stop_token_ids=prompts.stop_token_ids)
    tokens = prompts.encode(prompts.render([{"role": "user", "content": text}]))
    with kr.generate(engine, tokens, options, detokenizer=prompts.detokenizer()) as answer:
        text = "".join(token.text for token in answer)
    engine.close()
    return text


class TestGenerate:
    """One answer."""

    def test_is_what_the_engine_answers(self, model: kr.LoadedModel, folder: Path) -> None:
        answer = model.generate("Hello", max_tokens=LIMIT)
        assert str(answer) == answer.text == by_hand(folder, "Hello")
        assert answer.finish_reason == "length"
        assert answer.usage.generated_tokens == LIMIT
        assert answer.stats.decode_tokens_per_second
        assert answer.reasoning == ""
        assert answer.tool_calls == ()

    def test_messages_and_system(self, model: kr.LoadedModel) -> None:
        question = {"role": "user", "content": "Hello"}
        system = {"role": "system", "content": "Be brief."}
        one = model.generate([system, question], max_tokens=LIMIT)
        other = model.generate("Hello", system="Be brief.", max_tokens=LIMIT)
        assert one.text == other.text
        assert one.usage.prompt_tokens == other.usage.prompt_tokens
        # All but one token of the second prompt were still there.
        assert other.usage.cached_tokens == other.usage.prompt_tokens - 1

    def test_raw_text(self, model: kr.LoadedModel) -> None:
        tokens = len(model.prompts.encode_raw("Once upon a time"))
        assert (
            model.generate("Once upon a time", raw=True, max_tokens=3).usage.prompt_tokens == tokens
        )

    def test_the_seed_gives_the_answer_again(self, model: kr.LoadedModel) -> None:
        first = model.generate("Hello", temperature=1.0, max_tokens=LIMIT)
        again = model.generate("Hello", temperature=1.0, max_tokens=LIMIT, seed=first.seed)
        assert again.text == first.text
        other = model.generate("Hello", temperature=1.0, max_tokens=LIMIT, seed=first.seed + 1)
        assert other.text != first.text

    def test_stop_text(self, model: kr.LoadedModel) -> None:
        whole = model.generate("Hello", max_tokens=LIMIT).text
        stop = whole[3:5]
        answer = model.generate("Hello", max_tokens=LIMIT, stop=[stop])
        assert answer.text == whole[: whole.index(stop)]
        assert answer.finish_reason == "stop"

    def test_constraints(self, model: kr.LoadedModel) -> None:
        schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}}
        schema |= {"required": ["n"], "additionalProperties": False}
        answer = model.generate("Hello", json_schema=schema, max_tokens=100)
        assert json.loads(answer.text)["n"] <= 99
        assert answer.finish_reason == "stop"
        assert re.fullmatch("[ab]{3}", model.generate("Hello", regex="[ab]{3}").text)
        assert model.generate("Hello", choices=["left", "right"]).text in ("left", "right")
        assert model.generate("Hello", grammar='start: "x"').text == "x"

    def test_progress(self, model: kr.LoadedModel) -> None:
        seen: list[tuple[int, int]] = []
        model.generate("Another one", max_tokens=1, on_progress=lambda *step: seen.append(step))
        assert seen
        assert seen[-1][0] == seen[-1][1]

    @pytest.mark.parametrize(
        ("prompt", "settings", "message"),
        [
            ("Hello", {"max_token": 3}, "no such setting: max_token; there are .*max_tokens"),
            ("Hello", {"regex": "a", "choices": ["a"]}, "both constrain the answer"),
            ("Hello", {"temperature": -1}, "temperature -1: wanted 0 or more"),
            ([], {}, "no message to answer"),
            ([{"role": "assistant", "content": "Hi"}], {}, "nothing to answer"),
            ("Hello", {"raw": True, "system": "x"}, "neither messages nor system"),
            ("Hello", {"raw": True, "think": True}, "it takes no think"),
            ("long " * 400, {}, "the context 400"),
        ],
    )
    def test_bad_settings(
        self, model: kr.LoadedModel, prompt: Any, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(kr.RunError, match=message):
            model.generate(prompt, **settings)
        assert model.generate("Hello", max_tokens=1).usage.generated_tokens == 1


class TestStream:
    """Chunks as they come."""

    def test_chunks_make_the_answer(self, model: kr.LoadedModel) -> None:
        with model.stream("Hello", max_tokens=LIMIT) as stream:
            text = "".join(chunk.text for chunk in stream)
            assert stream.completion.text == text
        assert text == model.generate("Hello", max_tokens=LIMIT).text

    def test_a_closed_stream_keeps_what_it_said(self, model: kr.LoadedModel) -> None:
        stream = model.stream("Hello", max_tokens=LIMIT)
        first = next(stream).text
        stream.close()
        assert list(stream) == []
        assert stream.completion.text.startswith(first)
        assert stream.completion.finish_reason is None

    def test_another_answer_ends_the_one_before(self, model: kr.LoadedModel) -> None:
        wanted = model.generate("Other", max_tokens=LIMIT).text
        stream = model.stream("Hello", max_tokens=LIMIT)
        next(stream)
        assert model.generate("Other", max_tokens=LIMIT).text == wanted
        assert list(stream) == []

    def test_no_completion_before_it_begins(self, model: kr.LoadedModel) -> None:
        with pytest.raises(kr.RunError, match="has not begun"):
            _ = model.stream("Hello").completion


class TestChat:
    """Turns."""

    def test_turns_remember(self, model: kr.LoadedModel) -> None:
        chat = model.chat(system="Be brief.", max_tokens=LIMIT)
        first = chat.say("Hello")
        second = chat.say("And now?", max_tokens=3)
        assert second.usage.generated_tokens == 3
        seen = first.usage.prompt_tokens + first.usage.generated_tokens - 1
        assert second.usage.cached_tokens == seen
        assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
        assert chat.undo() == "And now?"
        chat.messages.append({"role": "user", "content": "And now?"})
        assert chat.answer(max_tokens=3).text == second.text
        assert chat.answer(max_tokens=3).text == second.text  # in the place of the last
        assert len(chat.messages) == 4
        chat.reset()
        assert chat.messages == []

    def test_two_conversations_take_turns(self, model: kr.LoadedModel) -> None:
        alone = model.chat(max_tokens=LIMIT)
        wanted = [alone.say("Hello").text, alone.say("More").text]
        one, other = model.chat(max_tokens=LIMIT), model.chat(max_tokens=LIMIT)
        seen = [one.say("Hello").text]
        other.say("Something else entirely")
        seen.append(one.say("More").text)
        assert seen == wanted

    def test_results_of_tools(self, model: kr.LoadedModel) -> None:
        chat = model.chat(max_tokens=LIMIT)
        chat.messages += [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": ""},
            {"role": "tool", "content": "sunny"},
        ]
        assert chat.answer().usage.generated_tokens == LIMIT
        assert [m["role"] for m in chat.messages][-2:] == ["tool", "assistant"]


def test_reprs_say_what_a_thing_is(model: kr.LoadedModel, folder: Path) -> None:
    assert repr(model) == f"<LoadedModel {str(folder)!r}: native engine, 400 tokens of context>"
    answer = model.generate("Hello", max_tokens=40)
    assert re.fullmatch(
        r"<Completion '.*', length, 40 tokens, [\d.]+ tokens/s>", repr(answer), re.S
    )
    chat = model.chat()
    assert repr(chat) == f"<Chat with {str(folder)!r}: 0 messages>"
    assert answer._repr_markdown_() == answer.text


def test_lossy_choices_show(folder: Path) -> None:
    # The process that runs the tests counts in the budget, and may have run thousands before.
    megabytes = memory_use().resident_bytes // 1_000_000 + 100
    with kr.load(folder, fast=True, memory=f"{megabytes}MB", context=64) as model:
        assert f", within {format_size(megabytes * 1_000_000)}, lossy: " in repr(model)
        assert model.generate("Hello", max_tokens=2).usage.generated_tokens == 2


def test_a_default_model(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("KANDIGA_MODEL", raising=False)
    with pytest.raises(kr.RunError, match="kandiga-run setup"):
        kr.load()
    monkeypatch.setenv("KANDIGA_MODEL", str(folder))
    with kr.load() as model:
        assert model.name == str(folder)


def test_both_choices_of_experts_are_refused(folder: Path) -> None:
    with pytest.raises(kr.RunError, match="give one of them"):
        kr.load(folder, fast=True, experts=2)


def test_closing_twice_is_harmless(folder: Path) -> None:
    model = kr.load(folder)
    model.close()
    model.close()
    with pytest.raises(kr.RunError, match="closed"):
        model.generate("Hello")


def test_settings_are_documented_and_typed() -> None:
    hints = typing.get_type_hints(kr.Settings)
    assert set(hints) == set(kr.Settings.__optional_keys__)
    assert all(name in (kr.Settings.__doc__ or "") for name in hints)


def test_answering_imports_neither_mlx_nor_transformers(folder: Path) -> None:
    code = (
        "import sys, kandiga_run as kr\n"
        f"with kr.load({str(folder)!r}) as model:\n"
        "    model.chat().say('Hello', max_tokens=2, choices=['a', 'b'])\n"
        "names = ('mlx', 'mlx_lm', 'transformers', 'matplotlib', 'torch')\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
