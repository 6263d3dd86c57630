"""Constrained answers: whatever the model prefers, the text fits."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kandiga_run.answers.after_reasoning import AfterReasoning
from kandiga_run.answers.constraint import Constraint, Grammars
from kandiga_run.errors import RunError
from kandiga_run.generation.sampling import Sampler, SamplingOptions
from tokenizer_files import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
STOP = TOKENIZER.token_to_id("<|im_end|>")
#: Engines pad their vocabulary past the tokenizer's.
VOCAB_SIZE = TOKENIZER.get_vocab_size() + 13
GRAMMARS = Grammars(TOKENIZER, VOCAB_SIZE, [STOP])
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def constrained_text(constraint: Constraint, seed: int, limit: int = 400) -> str:
    """Return the answer of a model that has no idea: random logits, drawn at random."""
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
    random = np.random.default_rng(seed)
    tokens: list[int] = []
    while not constraint.is_complete and len(tokens) < limit:
        logits = random.normal(size=VOCAB_SIZE).astype(np.float32)
        # Any model ends an answer sooner or later.
        logits[STOP] += len(tokens) / 10
        token = sampler.choose(logits, tokens, constraint.mask()).token
        assert token < TOKENIZER.get_vocab_size()
        if token == STOP:
            assert constraint.may_end
            break
        constraint.accept(token)
        tokens.append(token)
    return TOKENIZER.decode(tokens)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_answers_fit_the_schema(seed: int):
    value = json.loads(constrained_text(GRAMMARS.json_schema(SCHEMA), seed))
    assert set(value) <= {"name", "age", "tags"}
    assert isinstance(value["name"], str)
    assert 0 <= value["age"] <= 150
    assert set(value.get("tags", [])) <= {"red", "blue"}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("make", "fits"),
    [
        (
            lambda: GRAMMARS.regex(r"\d{4}-\d{2}"),  # digits of any script, as in Python
            lambda text: re.fullmatch(r"\d{4}-\d{2}", text),
        ),
        (
            lambda: GRAMMARS.choice(["yes", "no", 'per"haps', "née"]),
            lambda text: text in ("yes", "no", 'per"haps', "née"),
        ),
        (
            lambda: GRAMMARS.grammar('start: "<" WORD ">"\nWORD: /[a-z]{1,8}/'),
            lambda text: re.fullmatch(r"<[a-z]{1,8}>", text),
        ),
    ],
)
def test_other_grammars(make: Callable[[], Constraint], fits: Callable[[str], Any], seed: int):
    text = constrained_text(make(), seed)
    assert fits(text), text


def test_any_object_may_be_asked_for():
    constraint = GRAMMARS.json_object()
    for token in TOKENIZER.encode('{"a": [1, {"b": null}]}').ids:
        constraint.accept(token)
    assert constraint.may_end


def test_the_mask_of_a_complete_answer_has_the_stop_token_alone():
    constraint = GRAMMARS.choice(["ok"])
    for token in TOKENIZER.encode("ok").ids:
        constraint.accept(token)
    assert constraint.is_complete
    bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
    assert np.flatnonzero(bits).tolist() == [STOP]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GRAMMARS.json_schema({"type": "nonsense"}),
            "JSON schema is not usable: .*nonsense",
        ),
        (lambda: GRAMMARS.json_schema("{"), "JSON schema is not usable"),
        (lambda: GRAMMARS.regex("a(b"), "regular expression is not usable: .*unclosed group"),
        (lambda: GRAMMARS.grammar("begin: x"), "grammar is not usable"),
        (lambda: GRAMMARS.choice([]), "wanted one or more texts"),
        (lambda: Grammars(TOKENIZER, VOCAB_SIZE, []), "needs a token that ends it"),
    ],
)
def test_bad_grammars_are_one_line(make: Callable[[], object], message: str):
    with pytest.raises(RunError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_token_outside_the_mask_is_an_error():
    with pytest.raises(RunError, match="constraint failed"):
        GRAMMARS.choice(["ok"]).accept(TOKENIZER.encode("x").ids[0])


def test_reasoning_is_free_and_the_answer_is_not():
    end = TOKENIZER.encode("</t>").ids
    assert len(end) > 1
    constraint = AfterReasoning(GRAMMARS.choice(["ok"]), end)
    for token in [*TOKENIZER.encode("hm </").ids, *end]:
        assert constraint.mask() is None
        constraint.accept(token)
    assert constraint.mask() is not None
    for token in TOKENIZER.encode("ok").ids:
        constraint.accept(token)
    assert constraint.is_complete


@pytest.mark.parametrize("written", ["hm hm hm", "hm hm </"])
def test_reasoning_ends_when_its_budget_is_used_up(written: str):
    """The end mark is all that may come then, or what is left of it."""
    end = TOKENIZER.encode("</t>").ids
    reasoning = TOKENIZER.encode(written).ids
    constraint = AfterReasoning(None, end, budget=len(reasoning))
    for token in reasoning:
        assert constraint.mask() is None
        constraint.accept(token)
    forced: list[int] = []
    while (mask := constraint.mask()) is not None:
        (token,) = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        constraint.accept(int(token))
        forced.append(int(token))
        assert constraint.in_reasoning
    assert [*reasoning, *forced][-len(end) :] == end
    assert len(forced) == len(end) - (len(TOKENIZER.encode("</").ids) if "<" in written else 0)
    constraint.accept(TOKENIZER.encode("o").ids[0])
    assert not constraint.in_reasoning
    assert not constraint.is_complete


def test_a_model_may_begin_with_reasoning_or_leave_it():
    start, end = TOKENIZER.token_to_id("<|im_start|>"), TOKENIZER.token_to_id("<|endoftext|>")

    def allowed(constraint: AfterReasoning) -> set[int]:
        mask = constraint.mask()
        assert mask is not None
        return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())

    thinks = AfterReasoning(GRAMMARS.choice(["ok"]), [end], start)
    plain = {TOKENIZER.token_to_id("o")}
    assert allowed(thinks) == {start, *plain}
    thinks.accept(start)
    assert thinks.mask() is None
    thinks.accept(end)
    assert allowed(thinks) == plain
    answers = AfterReasoning(GRAMMARS.choice(["ok"]), [end], start)
    answers.accept(TOKENIZER.token_to_id("o"))
    assert allowed(answers) == {TOKENIZER.token_to_id("k")}
