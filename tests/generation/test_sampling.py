"""The sampler against slow float64 versions of each filter, in the documented order."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kandiga_run.errors import RunError
from kandiga_run.generation.sampling import Sampler, SamplingOptions, candidates

# float32 exp and division: a few units in the last place of a probability near 1.
RELATIVE_TOLERANCE = 1e-5
# Draws are compared with probabilities by a chi-square statistic; the seed is fixed, so a correct
# sampler passes always. 10 degrees of freedom: 29.6 is exceeded once in a thousand seeds.
CHI_SQUARE_LIMIT = 29.6


def plain_survivors(logits: Sequence[float], options: SamplingOptions) -> dict[int, float]:
    """Return {token: probability} after the filters, one after the other, in plain Python."""
    scaled = {token: value / options.temperature for token, value in enumerate(logits)}
    order = sorted(scaled, key=lambda token: (-scaled[token], token))
    if options.top_k:
        order = order[: options.top_k]
    probability = plain_softmax({token: scaled[token] for token in order})
    if options.top_p < 1:
        mass, kept = 0.0, []
        for token in order:
            kept.append(token)
            mass += probability[token]
            if mass >= options.top_p:
                break
        order = kept
        probability = plain_softmax({token: scaled[token] for token in order})
    if options.min_p > 0:
        best = max(probability.values())
        order = [token for token in order if probability[token] >= options.min_p * best]
    return plain_softmax({token: scaled[token] for token in order})


def plain_softmax(scaled: dict[int, float]) -> dict[int, float]:
    peak = max(scaled.values())
    weights = {token: math.exp(value - peak) for token, value in scaled.items()}
    total = math.fsum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def is_near_a_border(logits: Sequence[float], options: SamplingOptions) -> bool:
    """Whether rounding to float32 may decide if a token survives: no right answer to compare."""
    nudged = [
        SamplingOptions(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=min(1.0, options.top_p * factor) if options.top_p < 1 else 1.0,
            min_p=min(1.0, options.min_p * factor),
        )
        for factor in (1 - RELATIVE_TOLERANCE, 1 + RELATIVE_TOLERANCE)
    ]
    return len({frozenset(plain_survivors(logits, option)) for option in nudged}) > 1


# On a grid: values closer than float64 can tell apart after exp have no right order.
logit_lists = st.lists(
    st.integers(-1280, 1280).map(lambda value: value / 64), min_size=1, max_size=60
)
filters = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    top_k=st.integers(0, 70),
    top_p=st.sampled_from([0.01, 0.3, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
)


@settings(max_examples=500, deadline=None)
@given(logits=logit_lists, options=filters)
def test_filters_equal_the_plain_version(logits: list[float], options: SamplingOptions) -> None:
    assume(not is_near_a_border(logits, options))
    scaled = np.asarray(logits, np.float32) / np.float32(options.temperature)
    ids, weights = candidates(scaled, options)
    wanted = plain_survivors(logits, options)
    assert set(ids.tolist()) == set(wanted)
    total = float(weights.sum(dtype=np.float64))
    for token, weight in zip(ids.tolist(), weights.tolist(), strict=True):
        assert weight / total == pytest.approx(wanted[token], rel=RELATIVE_TOLERANCE, abs=1e-12)


@pytest.mark.parametrize("top_p", [0.5, 0.999, 0.99999])
def test_top_p_of_a_large_vocabulary(top_p: float) -> None:
    """A flat distribution makes top-p sort more than its first guess, several times over."""
    logits = np.random.default_rng(0).normal(0, 0.5, 50_000).astype(np.float32)
    options = SamplingOptions(temperature=1.0, top_p=top_p)
    ids, _ = candidates(logits, options)
    wanted = plain_survivors(logits.tolist(), options)
    # Tokens whose summed probability lies within float32 rounding of p may fall either way.
    assert abs(len(ids) - len(wanted)) <= 50
    order = sorted(range(50_000), key=lambda token: (-logits[token], token))
    assert ids.tolist() == order[: len(ids)]


@pytest.mark.parametrize("top_k", [1, 3, 5, 8])
def test_ties_go_to_the_lower_id(top_k: int) -> None:
    logits = np.array([1, 3, 2, 3, 2, 2, 3, 1], np.float32)
    ids, _ = candidates(logits, SamplingOptions(temperature=1.0, top_k=top_k))
    assert ids.tolist()[:top_k] == [1, 3, 6, 2, 4, 5, 0, 7][:top_k] or top_k == 8


def choose(logits: Sequence[float], history: Sequence[int] = (), **options: float) -> int:
    sampler = Sampler(SamplingOptions(**options))  # type: ignore[arg-type]
    return sampler.choose(np.asarray(logits, np.float32), history).token


def test_greedy_takes_the_first_maximum() -> None:
    assert choose([0, 5, 5, 1]) == 1
    assert choose([0, 5, 5, 1], top_k=1, temperature=0.7) == 1


def test_greedy_ignores_the_seed() -> None:
    assert {choose([0.0, 0.1, 0.05], seed=seed) for seed in range(20)} == {1}


def draws(count: int, options: SamplingOptions, logits: Sequence[float]) -> list[int]:
    sampler = Sampler(options)
    array = np.asarray(logits, np.float32)
    return [sampler.choose(array, ()).token for _ in range(count)]


def test_same_seed_same_tokens() -> None:
    logits = np.random.default_rng(1).normal(size=100)
    options = SamplingOptions(temperature=1.0, top_p=0.9, seed=7)
    first, second = draws(50, options, logits), draws(50, options, logits)
    other = draws(50, SamplingOptions(temperature=1.0, top_p=0.9, seed=8), logits)
    assert first == second != other


def test_a_drawn_seed_reproduces() -> None:
    logits = np.random.default_rng(1).normal(size=100).astype(np.float32)
    sampler = Sampler(SamplingOptions(temperature=1.0))
    tokens = [sampler.choose(logits, ()).token for _ in range(20)]
    assert draws(20, SamplingOptions(temperature=1.0, seed=sampler.seed), logits) == tokens


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=1.0, seed=3),
        SamplingOptions(temperature=1.7, seed=3),
        SamplingOptions(temperature=0.6, top_k=6, top_p=0.95, min_p=0.02, seed=3),
    ],
    ids=["plain", "hot", "filtered"],
)
def test_draws_follow_the_probabilities(options: SamplingOptions) -> None:
    logits = np.random.default_rng(5).normal(0, 1.5, 11).tolist()
    wanted = plain_survivors(logits, options)
    count = 20_000
    seen = Counter(draws(count, options, logits))
    assert set(seen) <= set(wanted)
    chi_square = sum(
        (seen[token] - count * probability) ** 2 / (count * probability)
        for token, probability in wanted.items()
    )
    assert chi_square < CHI_SQUARE_LIMIT


@settings(max_examples=200, deadline=None)
@given(
    logits=logit_lists,
    history=st.lists(st.integers(0, 80), max_size=30),
    penalty=st.sampled_from([0.5, 1.0, 1.3, 2.0]),
    window=st.one_of(st.none(), st.integers(0, 40)),
)
def test_repetition_penalty(
    logits: list[float], history: list[int], penalty: float, window: int | None
) -> None:
    """Seen tokens lose, whether their logit is positive or negative; each only once."""
    recent = set(history if window is None else history[len(history) - min(window, len(history)) :])
    penalized = [
        (value * penalty if value < 0 else value / penalty) if token in recent else value
        for token, value in enumerate(logits)
    ]
    best = max(np.float32(value) for value in penalized)
    chosen = choose(logits, history, repetition_penalty=penalty, repetition_window=window or 0)
    if window is None:
        chosen = choose(logits, history, repetition_penalty=penalty)
    assert np.float32(penalized[chosen]) == pytest.approx(best, rel=1e-6)


def test_penalty_leaves_the_engine_logits_alone() -> None:
    logits = np.array([1, 2, 3], np.float32)
    Sampler(SamplingOptions(repetition_penalty=2.0)).choose(logits, [2])
    assert logits.tolist() == [1, 2, 3]


@settings(max_examples=100, deadline=None)
@given(logits=logit_lists, count=st.integers(0, 5))
def test_logprobs_are_those_of_the_model(logits: list[float], count: int) -> None:
    """Temperature and filters do not change what the model itself said."""
    options = SamplingOptions(temperature=0.5, top_k=3, seed=0)
    choice = Sampler(options, logprobs=count).choose(np.asarray(logits, np.float32), ())
    wanted = {token: math.log(p) if p else -math.inf for token, p in plain_all(logits).items()}
    assert choice.logprob == pytest.approx(wanted[choice.token], rel=1e-5, abs=1e-5)
    order = sorted(wanted, key=lambda token: (-np.float32(logits[token]), token))
    assert [token for token, _ in choice.top_logprobs] == order[:count]
    for token, logprob in choice.top_logprobs:
        assert logprob == pytest.approx(wanted[token], rel=1e-5, abs=1e-5)


def plain_all(logits: Sequence[float]) -> dict[int, float]:
    return plain_softmax(dict(enumerate(logits)))


def test_no_logprobs_unless_asked() -> None:
    choice = Sampler(SamplingOptions()).choose(np.zeros(3, np.float32), ())
    assert choice.logprob is None
    assert choice.top_logprobs == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_damaged_logits_are_an_error(bad: float, temperature: float) -> None:
    with pytest.raises(RunError, match=r"as its largest logit after 3 tokens.*kandiga-pack verify"):
        choose([1.0, bad, 0.0], [5, 6, 7], temperature=temperature)


def test_masked_tokens_are_never_drawn() -> None:
    logits = [-math.inf, 0.0, -math.inf, 0.0]
    assert set(draws(200, SamplingOptions(temperature=1.0, seed=0), logits)) == {1, 3}
    options = SamplingOptions(temperature=1.0, top_k=4, top_p=0.999999, seed=0)
    assert set(draws(200, options, logits)) == {1, 3}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("repetition_window", -1),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(RunError, match=f"^{name} .*wanted"):
        SamplingOptions(**{name: value})  # type: ignore[arg-type]


def packed_mask(allowed: Sequence[int], vocab_size: int) -> NDArray[np.uint32]:
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("vocab_size", [5, 32, 33, 250])
def test_mask_narrows_the_choice(vocab_size: int, temperature: float):
    random = np.random.default_rng(0)
    sampler = Sampler(SamplingOptions(temperature=temperature, top_k=3, top_p=0.9, seed=1))
    for allowed in ([4], [0, vocab_size - 1], list(range(1, vocab_size, 2))):
        logits = random.normal(size=vocab_size).astype(np.float32)
        before = logits.copy()
        for _ in range(20):
            token = sampler.choose(logits, [], packed_mask(allowed, vocab_size)).token
            assert token in allowed
            if temperature == 0:
                assert token == max(allowed, key=lambda id_: logits[id_])
        assert np.array_equal(logits, before)


def test_tokens_past_the_end_of_a_mask_are_not_allowed():
    logits = np.arange(100, dtype=np.float32)
    assert Sampler(SamplingOptions()).choose(logits, [], packed_mask([3], 32)).token == 3


def test_mask_without_a_token_is_an_error():
    with pytest.raises(RunError, match="no token is allowed"):
        Sampler(SamplingOptions()).choose(np.zeros(40, np.float32), [], packed_mask([], 40))


def test_logit_bias():
    logits = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    bias = {2: -100.0, 0: 1.5, 99: 100.0, -1: 100.0}
    assert Sampler(SamplingOptions(logit_bias=bias)).choose(logits, []).token == 0


def test_frequency_and_presence_penalties_count_the_answer_alone():
    logits = np.array([1.0, 0.9, 0.0], dtype=np.float32)

    def answer(**penalties: float) -> list[int]:
        sampler = Sampler(SamplingOptions(**penalties))
        # Token 0 stands in the prompt twenty times, which these penalties do not look at.
        return [sampler.choose(logits, [0] * 20).token for _ in range(7)]

    # Presence: once each, then the largest again for ever.
    assert answer(presence_penalty=0.2) == [0, 1, 0, 0, 0, 0, 0]
    # Frequency: 1.0, then 0.9 against 0.8, 0.8 against 0.7, in turns.
    assert answer(frequency_penalty=0.2) == [0, 1, 0, 1, 0, 1, 0]
    assert answer(presence_penalty=2.0) == [0, 1, 2, 0, 0, 0, 0]
    assert answer(presence_penalty=-0.2, frequency_penalty=-0.2) == [0] * 7


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": math.nan},
        {"frequency_penalty": math.inf},
        {"logit_bias": {1: math.nan}},
    ],
)
def test_penalties_must_be_numbers(options: dict[str, Any]):
    with pytest.raises(RunError, match=r"wanted (a )?finite number"):
        SamplingOptions(**options)
