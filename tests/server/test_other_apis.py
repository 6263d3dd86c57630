"""/v1/completions, /v1/responses and /v1/messages of a real model, by their own clients."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from kandiga_run.engine import load_engine
from kandiga_run.generation.loop import GenerateOptions, generate
from kandiga_run.tokenizer.prompts import Prompts

TEXT = "The router selects a few"
LONG = {"role": "user", "content": "x " * 5000}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def continued(model: Path, tokens: list[int], max_tokens: int) -> str:
    """Return the greedy continuation of an engine nobody else uses."""
    prompts = Prompts(model)
    options = GenerateOptions(max_tokens=max_tokens, stop_token_ids=prompts.stop_token_ids)
    with closing(load_engine(model)) as engine:
        detokenizer = prompts.detokenizer()
        return "".join(
            one.text for one in generate(engine, tokens, options, detokenizer=detokenizer)
        )


class TestCompletions:
    def test_text_and_tokens_are_continued(self, openai_client: openai.OpenAI, model: Path) -> None:
        tokens = Prompts(model).encode_raw(TEXT)
        wanted = continued(model, tokens, 10)
        create = openai_client.completions.create
        by_text = create(model=model.name, prompt=TEXT, max_tokens=10)
        by_tokens = create(model=model.name, prompt=tokens, max_tokens=10)
        assert by_text.choices[0].text == by_tokens.choices[0].text == wanted
        assert by_text.usage.prompt_tokens == len(tokens)
        assert by_text.usage.completion_tokens == 10
        assert by_text.choices[0].finish_reason == "length"

    def test_several_prompts_n_and_echo(self, openai_client: openai.OpenAI, model: Path) -> None:
        answer = openai_client.completions.create(
            model=model.name, prompt=[TEXT, "Two"], n=2, echo=True, max_tokens=3
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        starts = [TEXT, TEXT, "Two", "Two"]
        assert all(
            choice.text.startswith(start)
            for choice, start in zip(answer.choices, starts, strict=True)
        )
        counted = sum(len(Prompts(model).encode_raw(text)) for text in (TEXT, "Two"))
        assert answer.usage.prompt_tokens == counted
        assert answer.usage.completion_tokens == 12

    def test_a_stream_with_log_probabilities(
        self, openai_client: openai.OpenAI, model: Path
    ) -> None:
        chunks = list(
            openai_client.completions.create(
                model=model.name,
                prompt=TEXT,
                max_tokens=6,
                logprobs=2,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert chunks[-1].usage.completion_tokens == 6
        logprobs = [one.choices[0].logprobs for one in chunks if one.choices]
        values = [value for one in logprobs if one for value in one.token_logprobs]
        best = [top for one in logprobs if one for top in one.top_logprobs]
        assert len(values) == len(best) == 6
        for value, top in zip(values, best, strict=True):
            assert math.isclose(value, max(top.values()))

    def test_16_tokens_without_a_limit(self, openai_client: openai.OpenAI, model: Path) -> None:
        answer = openai_client.completions.create(model=model.name, prompt=TEXT)
        assert answer.usage.completion_tokens <= 16

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"suffix": "end"}, "suffix is not supported"),
            ({"best_of": 4}, "best_of is not supported"),
            ({"prompt": [1, 99999]}, "outside of the vocabulary"),
            ({"prompt": []}, "prompt"),
        ],
    )
    def test_refusals(
        self, openai_client: openai.OpenAI, model: Path, changes: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(openai.BadRequestError, match=said):
            openai_client.completions.create(**{"model": model.name, "prompt": TEXT, **changes})


class TestResponses:
    def test_a_text_and_going_on_by_id(self, openai_client: openai.OpenAI, model: Path) -> None:
        create = openai_client.responses.create
        first = create(
            model=model.name, input="Hello", instructions="Be brief.", max_output_tokens=8
        )
        assert first.status == "incomplete"
        assert first.incomplete_details.reason == "max_output_tokens"
        assert first.output_text
        second = create(
            model=model.name, input="Go on", previous_response_id=first.id, max_output_tokens=8
        )
        full = create(
            model=model.name,
            input=[
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": first.output_text},
                {"role": "user", "content": "Go on"},
            ],
            max_output_tokens=8,
        )
        assert second.output_text == full.output_text
        assert openai_client.responses.retrieve(first.id).output_text == first.output_text
        openai_client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            openai_client.responses.retrieve(first.id)

    def test_what_is_not_stored_is_not_remembered(
        self, openai_client: openai.OpenAI, model: Path
    ) -> None:
        answer = openai_client.responses.create(
            model=model.name, input="Hello", store=False, max_output_tokens=2
        )
        with pytest.raises(openai.NotFoundError):
            openai_client.responses.create(
                model=model.name, input="Go on", previous_response_id=answer.id
            )

    def test_a_schema_and_log_probabilities(
        self, openai_client: openai.OpenAI, model: Path
    ) -> None:
        answer = openai_client.responses.create(
            model=model.name,
            input="Where?",
            text={"format": {"type": "json_schema", "name": "place", "schema": SCHEMA}},
            include=["message.output_text.logprobs"],
            top_logprobs=1,
        )
        assert json.loads(answer.output_text)["city"] in ("Paris", "Oslo")
        assert answer.status == "completed"
        part = answer.output[0].content[0]
        assert "".join(one.token for one in part.logprobs) == answer.output_text

    def test_images_are_refused(self, openai_client: openai.OpenAI, model: Path) -> None:
        image = {"type": "input_image", "image_url": "https://example.com/a.png"}
        with pytest.raises(openai.BadRequestError, match="input_image part: this server"):
            openai_client.responses.create(
                model=model.name, input=[{"role": "user", "content": [image]}]
            )


class TestMessages:
    def test_an_answer_its_usage_and_the_count(
        self, anthropic_client: anthropic.Anthropic, model: Path
    ) -> None:
        body: dict[str, Any] = {
            "model": model.name,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [{"role": "user", "content": "Hello, you."}],
        }
        rendered = [{"role": "system", "content": "Be brief."}, body["messages"][0]]
        prompts = Prompts(model)
        tokens = prompts.encode(prompts.render(rendered))
        answer = anthropic_client.messages.create(**body, max_tokens=9)
        assert answer.content[0].text == continued(model, tokens, 9)
        assert answer.stop_reason == "max_tokens"
        usage = answer.usage
        assert usage.input_tokens + usage.cache_read_input_tokens == len(tokens)
        assert usage.output_tokens == 9
        assert anthropic_client.messages.count_tokens(**body).input_tokens == len(tokens)
        with anthropic_client.messages.stream(**body, max_tokens=9) as stream:
            assert "".join(stream.text_stream) == answer.content[0].text
            assert stream.get_final_message().usage.output_tokens == 9

    def test_the_stop_sequence_is_named(
        self, anthropic_client: anthropic.Anthropic, model: Path
    ) -> None:
        body: dict[str, Any] = {
            "model": model.name,
            "messages": [{"role": "user", "content": "Hello, you."}],
            "max_tokens": 16,
        }
        text = anthropic_client.messages.create(**body).content[0].text
        stop = text[4:6]
        answer = anthropic_client.messages.create(**body, stop_sequences=["never in it", stop])
        assert answer.stop_reason == "stop_sequence"
        assert answer.stop_sequence == stop
        assert answer.content[0].text == text[: text.index(stop)]

    def test_a_tool_that_must_be_called_and_a_schema(
        self, anthropic_client: anthropic.Anthropic, model: Path
    ) -> None:
        body: dict[str, Any] = {
            "model": model.name,
            "messages": [{"role": "user", "content": "Where?"}],
            "max_tokens": 300,
        }
        tool = {"name": "place", "input_schema": SCHEMA}
        forced = anthropic_client.messages.create(**body, tools=[tool], tool_choice={"type": "any"})
        assert forced.stop_reason == "tool_use"
        assert forced.content[0].input["city"] in ("Paris", "Oslo")
        held = anthropic_client.messages.create(
            **body, output_config={"format": {"type": "json_schema", "schema": SCHEMA}}
        )
        assert json.loads(held.content[0].text)["city"] in ("Paris", "Oslo")

    @pytest.mark.parametrize(
        ("changes", "status", "kind"),
        [
            ({"model": "claude"}, 404, "not_found_error"),
            ({"max_tokens": 0}, 400, "invalid_request_error"),
            (
                {"messages": [{"role": "user", "content": "x " * 5000}]},
                400,
                "invalid_request_error",
            ),
            (
                {
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {
                                    "type": "image",
                                    "source": {"type": "url", "url": "https://example.com/a.png"},
                                }
                            ],
                        }
                    ]
                },
                400,
                "invalid_request_error",
            ),
        ],
    )
    def test_refusals_have_anthropics_shape(
        self,
        anthropic_client: anthropic.Anthropic,
        model: Path,
        changes: dict[str, Any],
        status: int,
        kind: str,
    ) -> None:
        body: dict[str, Any] = {
            "model": model.name,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 4,
        }
        with pytest.raises(anthropic.APIStatusError) as caught:
            anthropic_client.messages.create(**{**body, **changes})
        assert caught.value.status_code == status
        assert caught.value.body["error"]["type"] == kind
        assert caught.value.request_id.startswith("req_")

    def test_models(self, anthropic_client: anthropic.Anthropic, model: Path) -> None:
        (only,) = anthropic_client.models.list().data
        assert only.id == model.name
        assert only.max_input_tokens == 2047


def test_a_prompt_seen_before_is_not_read_again(openai_client: openai.OpenAI, model: Path) -> None:
    messages = [{"role": "user", "content": "The same long beginning. " * 60}]
    fixed: dict[str, Any] = {"model": model.name, "messages": messages, "max_tokens": 4}
    first = openai_client.chat.completions.create(**fixed)
    second = openai_client.chat.completions.create(**fixed)
    assert second.usage.prompt_tokens == first.usage.prompt_tokens
    assert second.usage.prompt_tokens_details.cached_tokens > 0
    assert second.choices[0].message.content == first.choices[0].message.content
