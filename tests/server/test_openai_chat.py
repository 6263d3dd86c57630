"""/v1/chat/completions as OpenAI's own client uses it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest

from kandiga_run.engine import load_engine
from kandiga_run.generation.loop import GenerateOptions, generate
from kandiga_run.tokenizer.prompts import Prompts

HELLO = [{"role": "user", "content": "Hello, who are you?"}]
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "3?"}]},
]


def alone(model: Path, messages: Sequence[dict[str, Any]], max_tokens: int) -> tuple[str, int]:
    """Return the greedy answer of an engine nobody else uses, and the tokens of its prompt."""
    prompts = Prompts(model)
    tokens = prompts.encode(prompts.render(messages))
    options = GenerateOptions(max_tokens=max_tokens, stop_token_ids=prompts.stop_token_ids)
    with closing(load_engine(model)) as engine:
        generation = generate(engine, tokens, options, detokenizer=prompts.detokenizer())
        return "".join(token.text for token in generation), len(tokens)


def test_the_answer_is_the_one_of_the_engine_alone(
    openai_client: openai.OpenAI, model: Path
) -> None:
    text, prompt_tokens = alone(model, HELLO, 24)
    answer = openai_client.chat.completions.create(
        model=model.name, messages=HELLO, max_completion_tokens=24, temperature=0
    )
    assert answer.choices[0].message.content == text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == prompt_tokens
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == prompt_tokens + 24
    assert answer.model == model.name


def test_the_whole_history_counts(openai_client: openai.OpenAI, model: Path) -> None:
    flat = [*HISTORY[:3], {"role": "user", "content": "And 3?"}]
    text, prompt_tokens = alone(model, flat, 12)
    answer = openai_client.chat.completions.create(
        model=model.name, messages=HISTORY, max_tokens=12
    )
    assert answer.choices[0].message.content == text
    assert answer.usage.prompt_tokens == prompt_tokens


def test_a_stream_is_the_same_answer_in_pieces(openai_client: openai.OpenAI, model: Path) -> None:
    fixed = {"model": model.name, "messages": HELLO, "max_tokens": 16}
    whole = openai_client.chat.completions.create(**fixed)
    chunks = list(
        openai_client.chat.completions.create(
            **fixed, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(one.delta.content or "" for one in deltas) == whole.choices[0].message.content
    assert deltas[0].delta.role == "assistant"
    assert [one.finish_reason for one in deltas if one.finish_reason] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 16
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_same_seed_gives_the_same_text(openai_client: openai.OpenAI, model: Path) -> None:
    def text(seed: int) -> str:
        answer = openai_client.chat.completions.create(
            model=model.name, messages=HELLO, max_tokens=12, temperature=1.5, seed=seed
        )
        return answer.choices[0].message.content

    assert text(7) == text(7)
    assert len({text(seed) for seed in range(4)}) > 1


def test_n_answers_differ_and_are_counted(openai_client: openai.OpenAI, model: Path) -> None:
    fixed = {"model": model.name, "messages": HELLO, "max_tokens": 8, "temperature": 2.0, "seed": 1}
    answer = openai_client.chat.completions.create(**fixed, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == 3
    assert answer.usage.completion_tokens <= 24
    streamed = dict.fromkeys(range(3), "")
    for chunk in openai_client.chat.completions.create(**fixed, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert [streamed[index] for index in range(3)] == texts


def test_log_probabilities(openai_client: openai.OpenAI, model: Path) -> None:
    answer = openai_client.chat.completions.create(
        model=model.name, messages=HELLO, max_tokens=6, logprobs=True, top_logprobs=4
    )
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 6
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 4
        # Greedy: the token chosen is the best one.
        assert token.top_logprobs[0].bytes == token.bytes
        assert math.isclose(token.top_logprobs[0].logprob, token.logprob)
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
    joined = b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace")
    assert joined.startswith(answer.choices[0].message.content.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_a_stop_string_ends_the_answer_and_is_not_shown(
    openai_client: openai.OpenAI, model: Path
) -> None:
    fixed = {"model": model.name, "messages": HELLO, "max_tokens": 16}
    text = openai_client.chat.completions.create(**fixed).choices[0].message.content
    stop = text[5:7]
    answer = openai_client.chat.completions.create(**fixed, stop=[stop, "never in it"])
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_logit_bias_forbids_and_forces(openai_client: openai.OpenAI, model: Path) -> None:
    token = Prompts(model).tokenizer.token_to_id("e")
    answer = openai_client.chat.completions.create(
        model=model.name, messages=HELLO, max_tokens=4, logit_bias={str(token): 100}
    )
    assert answer.choices[0].message.content == "eeee"


def test_a_schema_holds_whatever_the_model_would_say(
    openai_client: openai.OpenAI, model: Path
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"enum": ["Paris", "Oslo"]},
            "people": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    answer = openai_client.chat.completions.create(
        model=model.name,
        messages=HELLO,
        max_tokens=200,
        temperature=1.0,
        seed=3,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "place", "schema": schema, "strict": True},
        },
    )
    place = json.loads(answer.choices[0].message.content)
    assert place["city"] in ("Paris", "Oslo")
    assert 0 <= place["people"] <= 99
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_tool_that_must_be_called_is(
    openai_client: openai.OpenAI, model: Path, choice: Any
) -> None:
    digit = {"type": "integer", "minimum": 0, "maximum": 9}
    parameters = {"type": "object", "properties": {"a": digit}, "required": ["a"]}
    parameters["additionalProperties"] = False
    names = ("add", "subtract")
    answer = openai_client.chat.completions.create(
        model=model.name,
        messages=HELLO,
        max_tokens=200,
        tools=[
            {"type": "function", "function": {"name": name, "parameters": parameters}}
            for name in names
        ],
        tool_choice=choice,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name in (names if choice == "required" else ("add",))
    assert json.loads(call.function.arguments)["a"] in range(10)
    assert call.id
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None


def test_models_are_listed(openai_client: openai.OpenAI, model: Path) -> None:
    assert [one.id for one in openai_client.models.list()] == [model.name]
    assert openai_client.models.retrieve(model.name).owned_by == "kandiga"
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("gpt-4")


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"model": "gpt-4"}, 404, "the model 'gpt-4' is not served here"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "image_url"),
        ({"temperature": -1}, 400, "temperature"),
        ({"n": 0}, 400, "n: "),
        ({"logit_bias": {"x": 1}}, 400, "'x' is no token id"),
        ({"tool_choice": "required"}, 400, "tools is empty"),
        ({"messages": [{"role": "user", "content": "long " * 3000}]}, 400, "too long"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                }
            },
            400,
            "schema",
        ),
    ],
)
def test_refusals_say_what_and_where(
    openai_client: openai.OpenAI, model: Path, changes: dict[str, Any], status: int, said: str
) -> None:
    body = {"model": model.name, "messages": HELLO, "max_tokens": 4, **changes}
    with pytest.raises(openai.APIStatusError) as caught:
        openai_client.chat.completions.create(**body)
    assert caught.value.status_code == status
    assert said in str(caught.value)
    assert caught.value.body["type"]


def test_a_prompt_past_the_context_has_the_code_clients_look_for(
    openai_client: openai.OpenAI, model: Path
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(
            model=model.name, messages=[{"role": "user", "content": "long " * 3000}]
        )
    assert caught.value.code == "context_length_exceeded"
    assert "2048" in str(caught.value)
