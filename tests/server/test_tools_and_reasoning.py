"""Reasoning and calls of tools, as each API carries them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from server.scripted import ScriptedServer, make_prompts

CALLS = (
    "Let me look.\n<tool_call>\n"
    '{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n<tool_call>\n'
    '{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
)
SCRIPTS = {
    "weather": CALLS,
    "18 degrees": "It is warm.",
    "think": "<think>\nTwo and two.\n</think>\n\nFour.",
    "plain": "Just text.",
    "both": json.dumps(
        [{"name": "get_weather", "arguments": {"city": c}} for c in ("Rome", "Bern")]
    ),
    "ponder": "<think>\nIt ends here. Or not.\n</think>\n\nIt ends here. Or not.",
}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS},
}
ASKED = [{"role": "user", "content": "The weather?"}]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedServer]:
    prompts = make_prompts(tmp_path_factory.mktemp("scripted"))
    with ScriptedServer(prompts, SCRIPTS) as server:
        yield server


@pytest.fixture(scope="module")
def chat(scripted: ScriptedServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def messages(scripted: ScriptedServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=scripted.url, api_key="x", max_retries=0) as client:
        yield client


class TestOpenAIChat:
    def test_parallel_calls_and_the_text_before_them(self, chat: openai.OpenAI) -> None:
        answer = chat.chat.completions.create(model="scripted", messages=ASKED, tools=[TOOL])
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me look."
        calls = choice.message.tool_calls
        assert [call.function.name for call in calls] == ["get_weather"] * 2
        cities = [json.loads(call.function.arguments)["city"] for call in calls]
        assert cities == ["Paris", "Oslo"]
        assert len({call.id for call in calls}) == 2

    def test_one_call_when_several_are_not_wanted(self, chat: openai.OpenAI) -> None:
        """The answer is over with the first call; the second is not computed."""
        wanted: dict[str, Any] = {"model": "scripted", "messages": ASKED, "tools": [TOOL]}
        both = chat.chat.completions.create(**wanted)
        answer = chat.chat.completions.create(**wanted, parallel_tool_calls=False)
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me look."
        assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [
            {"city": "Paris"}
        ]
        assert answer.usage.completion_tokens < both.usage.completion_tokens - 10
        with chat.chat.completions.stream(**wanted, parallel_tool_calls=False) as stream:
            streamed = stream.get_final_completion().choices[0]
        assert len(streamed.message.tool_calls) == 1
        assert streamed.finish_reason == "tool_calls"

    def test_several_calls_that_must_be_made(self, chat: openai.OpenAI) -> None:
        answer = chat.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "both"}],
            tools=[TOOL],
            tool_choice="required",
            parallel_tool_calls=True,
        )
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        calls = [json.loads(call.function.arguments) for call in choice.message.tool_calls]
        assert calls == [{"city": "Rome"}, {"city": "Bern"}]

    def test_stop_strings_count_in_the_answer_alone(self, chat: openai.OpenAI) -> None:
        answer = chat.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "ponder"}], stop=[" Or"]
        )
        message = answer.choices[0].message
        assert message.reasoning_content == "It ends here. Or not."
        assert message.content == "It ends here."
        assert answer.choices[0].finish_reason == "stop"

    def test_fields_without_effect_are_told_once(
        self, chat: openai.OpenAI, caplog: pytest.LogCaptureFixture
    ) -> None:
        asked = [{"role": "user", "content": "plain"}]
        for _ in range(2):
            chat.chat.completions.create(
                model="scripted", messages=asked, extra_body={"tempratrue": 1, "top_k": 1}
            )
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
            "no effect, since not known here: 'tempratrue' in a request"
        ]

    def test_the_same_as_a_stream(self, chat: openai.OpenAI) -> None:
        with chat.chat.completions.stream(model="scripted", messages=ASKED, tools=[TOOL]) as stream:
            kinds = {event.type for event in stream}
            choice = stream.get_final_completion().choices[0]
        assert "tool_calls.function.arguments.done" in kinds
        assert choice.message.content == "Let me look."
        assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [
            {"city": "Paris"},
            {"city": "Oslo"},
        ]
        assert choice.finish_reason == "tool_calls"

    def test_without_tools_or_with_none_it_is_text(
        self, chat: openai.OpenAI, scripted: ScriptedServer
    ) -> None:
        answer = chat.chat.completions.create(
            model="scripted", messages=ASKED, tools=[TOOL], tool_choice="none"
        )
        assert answer.choices[0].message.content == CALLS
        assert answer.choices[0].message.tool_calls is None
        assert "Tools:" not in scripted.engine.last_prompt

    def test_results_go_back_to_the_model(
        self, chat: openai.OpenAI, scripted: ScriptedServer
    ) -> None:
        first = chat.chat.completions.create(model="scripted", messages=ASKED, tools=[TOOL])
        said = first.choices[0].message
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
            for call in said.tool_calls
        ]
        answer = chat.chat.completions.create(
            model="scripted", messages=[*ASKED, said, *results], tools=[TOOL]
        )
        assert answer.choices[0].message.content == "It is warm."
        assert answer.choices[0].finish_reason == "stop"
        told = scripted.engine.last_prompt
        assert '{"name": "get_weather", "arguments": {"city": "Oslo"}}' in told
        assert told.count("<|im_start|>tool\n18 degrees<|im_end|>") == 2

    def test_reasoning_is_apart(self, chat: openai.OpenAI) -> None:
        question = [{"role": "user", "content": "think: 2 + 2?"}]
        answer = chat.chat.completions.create(model="scripted", messages=question)
        message = answer.choices[0].message
        assert message.content == "Four."
        assert message.reasoning_content == "Two and two."
        details = answer.usage.completion_tokens_details
        assert 0 < details.reasoning_tokens < answer.usage.completion_tokens
        reasoning = content = ""
        for chunk in chat.chat.completions.create(
            model="scripted", messages=question, stream=True, logprobs=True
        ):
            delta = chunk.choices[0].delta
            reasoning += getattr(delta, "reasoning_content", None) or ""
            content += delta.content or ""
        assert (reasoning, content) == ("Two and two.", "Four.")

    def test_reasoning_can_be_switched_off(
        self, chat: openai.OpenAI, scripted: ScriptedServer
    ) -> None:
        chat.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "plain"}],
            reasoning_effort="none",
        )
        text = scripted.engine.prompts.decode(scripted.engine.states[-1].tokens)
        assert "<think>\n\n</think>" in text


class TestAnthropic:
    TOOL = {"name": "get_weather", "description": "Weather.", "input_schema": PARAMETERS}  # noqa: RUF012

    def test_calls(self, messages: anthropic.Anthropic) -> None:
        answer = messages.messages.create(
            model="scripted", max_tokens=500, messages=ASKED, tools=[self.TOOL]
        )
        assert [block.type for block in answer.content] == ["text", "tool_use", "tool_use"]
        assert answer.content[0].text == "Let me look."
        assert [block.input for block in answer.content[1:]] == [
            {"city": "Paris"},
            {"city": "Oslo"},
        ]
        assert answer.stop_reason == "tool_use"

    def test_calls_as_a_stream(self, messages: anthropic.Anthropic) -> None:
        with messages.messages.stream(
            model="scripted", max_tokens=500, messages=ASKED, tools=[self.TOOL]
        ) as stream:
            final = stream.get_final_message()
        assert [block.type for block in final.content] == ["text", "tool_use", "tool_use"]
        assert final.content[2].input == {"city": "Oslo"}
        assert final.stop_reason == "tool_use"
        assert final.usage.output_tokens > 10

    def test_results_go_back_to_the_model(
        self, messages: anthropic.Anthropic, scripted: ScriptedServer
    ) -> None:
        first = messages.messages.create(
            model="scripted", max_tokens=500, messages=ASKED, tools=[self.TOOL]
        )
        results = [
            {
                "type": "tool_result",
                "tool_use_id": block.id,
                "content": [{"type": "text", "text": "18 degrees"}],
            }
            for block in first.content
            if block.type == "tool_use"
        ]
        answer = messages.messages.create(
            model="scripted",
            max_tokens=50,
            system="Be brief.",
            messages=[
                *ASKED,
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": results},
            ],
            tools=[self.TOOL],
        )
        assert answer.content[0].text == "It is warm."
        assert answer.stop_reason == "end_turn"
        assert "<|im_start|>system\nBe brief.<|im_end|>" in scripted.engine.last_prompt

    def test_thinking(self, messages: anthropic.Anthropic) -> None:
        body: dict[str, Any] = {
            "model": "scripted",
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "think: 2 + 2?"}],
            "thinking": {"type": "adaptive"},
        }
        whole = messages.messages.create(**body)
        with messages.messages.stream(**body) as stream:
            streamed = stream.get_final_message()
        for answer in (whole, streamed):
            assert [block.type for block in answer.content] == ["thinking", "text"]
            assert answer.content[0].thinking == "Two and two."
            assert answer.content[1].text == "Four."

    def test_thinking_has_a_budget(self, messages: anthropic.Anthropic) -> None:
        answer = messages.messages.create(
            model="scripted",
            max_tokens=200,
            messages=[{"role": "user", "content": "ponder"}],
            thinking={"type": "enabled", "budget_tokens": 6},
        )
        assert [block.type for block in answer.content] == ["thinking", "text"]
        assert 0 < len(answer.content[0].thinking) < len("It ends here. Or not.")

    def test_stop_sequences_count_in_the_answer_alone(self, messages: anthropic.Anthropic) -> None:
        answer = messages.messages.create(
            model="scripted",
            max_tokens=200,
            messages=[{"role": "user", "content": "ponder"}],
            thinking={"type": "adaptive"},
            stop_sequences=[" Or"],
        )
        assert answer.content[0].thinking == "It ends here. Or not."
        assert answer.content[1].text == "It ends here."
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " Or")

    def test_one_call_when_several_are_not_wanted(self, messages: anthropic.Anthropic) -> None:
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        answer = messages.messages.create(
            model="scripted", max_tokens=500, messages=ASKED, tools=[self.TOOL], tool_choice=choice
        )
        assert [block.type for block in answer.content] == ["text", "tool_use"]
        assert answer.stop_reason == "tool_use"

    def test_the_beginning_of_an_answer_is_continued(
        self, messages: anthropic.Anthropic, scripted: ScriptedServer
    ) -> None:
        answer = messages.messages.create(
            model="scripted",
            max_tokens=50,
            messages=[
                {"role": "user", "content": "plain"},
                {"role": "assistant", "content": "Just"},
            ],
        )
        assert answer.content[0].text == " text."


class TestResponses:
    TOOL = {"type": "function", "name": "get_weather", "parameters": PARAMETERS}  # noqa: RUF012

    def test_calls_and_their_results(self, chat: openai.OpenAI) -> None:
        first = chat.responses.create(model="scripted", input="The weather?", tools=[self.TOOL])
        assert [item.type for item in first.output] == ["message", "function_call", "function_call"]
        assert first.output_text == "Let me look."
        results = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "18 degrees"}
            for item in first.output
            if item.type == "function_call"
        ]
        by_id = chat.responses.create(
            model="scripted", input=results, previous_response_id=first.id, tools=[self.TOOL]
        )
        in_full = chat.responses.create(
            model="scripted",
            input=[{"role": "user", "content": "The weather?"}, *first.output, *results],
            tools=[self.TOOL],
            store=False,
        )
        assert by_id.output_text == in_full.output_text == "It is warm."
        assert by_id.usage.input_tokens == in_full.usage.input_tokens

    def test_one_call_when_several_are_not_wanted(self, chat: openai.OpenAI) -> None:
        answer = chat.responses.create(
            model="scripted", input="The weather?", tools=[self.TOOL], parallel_tool_calls=False
        )
        assert [item.type for item in answer.output] == ["message", "function_call"]
        assert answer.parallel_tool_calls is False

    def test_a_stream_builds_the_same_items(self, chat: openai.OpenAI) -> None:
        with chat.responses.stream(
            model="scripted", input="The weather?", tools=[self.TOOL]
        ) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert kinds.count("response.function_call_arguments.done") == 2
        assert final.output_text == "Let me look."
        assert [json.loads(item.arguments) for item in final.output[1:]] == [
            {"city": "Paris"},
            {"city": "Oslo"},
        ]

    def test_reasoning_is_an_item(self, chat: openai.OpenAI) -> None:
        with chat.responses.stream(model="scripted", input="think: 2 + 2?") as stream:
            text = "".join(
                event.delta for event in stream if event.type == "response.reasoning_text.delta"
            )
            final = stream.get_final_response()
        assert text == "Two and two."
        assert [item.type for item in final.output] == ["reasoning", "message"]
        assert final.output[0].content[0].text == "Two and two."
        assert final.output_text == "Four."
        assert final.usage.output_tokens_details.reasoning_tokens > 0
