"""The generation loop over a tiny real model whose every step a test can foresee."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigram_engine import BigramEngine
from greedy import direct_greedy
from kandiga_run.errors import RunError
from kandiga_run.generation.loop import GenerateOptions, Generation, generate
from kandiga_run.generation.sampling import SamplingOptions
from kandiga_run.generation.stop_strings import StopStrings
from kandiga_run.tokenizer.detokenizer import streaming_detokenizer
from tokenizer_files import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
END = TOKENIZER.token_to_id("<|im_end|>")
# No word comes twice, so the bigram model walks through it in order, to its end token.
TEXT = "The quick fox jumps over a lazy dog, naïve 🙂 and 日本."


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


class ScriptEngine(BigramEngine):
    """Continues its prompt with a fixed script, whatever it is: position decides the token."""

    def __init__(self, script: Sequence[int], prompt_length: int) -> None:
        super().__init__([], TOKENIZER.get_vocab_size())
        self._script, self._prompt_length = list(script), prompt_length

    def forward(self, tokens, state, **options):  # type: ignore[no-untyped-def]
        result = super().forward(tokens, state, **options)
        result[-1, self._script[state.position - self._prompt_length]] = 100.0
        return result


PROMPT = encode("Hello there")


def start(script: Sequence[int], options: GenerateOptions, **arguments: object) -> Generation:
    engine = ScriptEngine(script, len(PROMPT))
    arguments = {"detokenizer": streaming_detokenizer(TOKENIZER), **arguments}
    return generate(engine, PROMPT, options, **arguments)  # type: ignore[arg-type]


OPTIONS = GenerateOptions(stop_token_ids=frozenset({END}))


def test_stops_at_a_stop_token() -> None:
    script = [*encode(TEXT), END, *encode("never shown")]
    generation = start(script, OPTIONS)
    tokens = list(generation)
    assert "".join(token.text for token in tokens) == generation.text == TEXT
    assert [token.id for token in tokens] == generation.token_ids == script[: len(encode(TEXT)) + 1]
    assert generation.finish_reason == "stop"


def test_stops_at_max_tokens() -> None:
    script = encode(TEXT)
    generation = start(script, replace(OPTIONS, max_tokens=3))
    assert len(list(generation)) == 3
    assert generation.finish_reason == "length"
    assert generation.text == TOKENIZER.decode(script[:3])


def test_shows_half_a_character_only_at_the_end() -> None:
    """Cut by max_tokens inside an emoji: the replacement character comes with the last token."""
    script = encode("𝄞")
    assert len(script) == 4
    tokens = list(start(script, replace(OPTIONS, max_tokens=2)))
    assert [token.text for token in tokens] == ["", "\N{REPLACEMENT CHARACTER}"]


def test_context_length_bounds_the_answer() -> None:
    limit = len(PROMPT) + 4
    generation = start(encode(TEXT), replace(OPTIONS, context_length=limit))
    assert len(list(generation)) == 4
    assert generation.finish_reason == "length"


@pytest.mark.parametrize("room", [0, -1])
def test_prompt_longer_than_the_context(room: int) -> None:
    with pytest.raises(RunError, match=f"has {len(PROMPT)} tokens and the context"):
        start([], replace(OPTIONS, context_length=len(PROMPT) + room))


def test_empty_prompt() -> None:
    with pytest.raises(RunError, match="prompt is empty"):
        generate(BigramEngine([], 5), [], OPTIONS)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_prefill_goes_in_chunks(chunk: int) -> None:
    prompt = encode(TEXT)
    engine = BigramEngine(prompt, TOKENIZER.get_vocab_size())
    seen: list[tuple[int, int]] = []
    options = GenerateOptions(prefill_chunk=chunk, max_tokens=1)
    generation = generate(
        engine, prompt, options, on_progress=lambda done, total: seen.append((done, total))
    )
    list(generation)
    total = len(prompt)
    ends = [*range(chunk, total, chunk), total]
    assert seen == [(end, total) for end in ends]
    assert engine.chunks == [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert engine.states[0].tokens == prompt


def test_greedy_equals_a_direct_loop() -> None:
    prompt = encode("The quick fox")
    engine = BigramEngine(encode(TEXT), TOKENIZER.get_vocab_size())
    generation = generate(engine, prompt, GenerateOptions(max_tokens=12, prefill_chunk=2))
    wanted = direct_greedy(engine, prompt, 12, frozenset())
    assert [token.id for token in generation] == wanted


def test_same_seed_same_text() -> None:
    engine = BigramEngine(encode(TEXT), TOKENIZER.get_vocab_size())

    def sample(seed: int) -> list[int]:
        sampling = SamplingOptions(temperature=1.5, seed=seed)
        return [token.id for token in generate(engine, PROMPT, replace(OPTIONS, sampling=sampling))]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_repetition_penalty_sees_prompt_and_history() -> None:
    engine = BigramEngine([7, 8, 7, 8, 7, 8, 7, 9], 20)
    penalized = replace(OPTIONS, max_tokens=1, sampling=SamplingOptions(repetition_penalty=9.0))

    def first(**arguments: object) -> int:
        return next(generate(engine, [7], **arguments)).id  # type: ignore[arg-type]

    assert first(options=replace(OPTIONS, max_tokens=1)) == 8
    assert first(options=penalized) == 8
    assert first(options=penalized, history=[8]) == 9


def test_logprobs() -> None:
    engine = BigramEngine([7, 8, 7, 8, 7, 9], 20)
    token = next(generate(engine, [7], GenerateOptions(max_tokens=1, logprobs=2)))
    row = engine.log_probabilities[7]
    assert token.logprob == pytest.approx(row[8], abs=1e-5)
    assert [index for index, _ in token.top_logprobs] == [8, 9]


class TestStats:
    """Tokens are tokens, and each phase has its own figures."""

    def test_counts(self) -> None:
        script = [*encode("𝄞 done"), END]
        generation = start(script, OPTIONS)
        list(generation)
        stats = generation.stats
        assert stats.prompt_tokens == len(PROMPT)
        assert stats.generated_tokens == len(script)
        assert stats.decode_steps == len(script) - 1
        assert stats.prefill.bytes_read == 100 * len(PROMPT)
        assert stats.bytes_read_per_token == 100
        assert 0 < stats.prefill_seconds <= stats.time_to_first_token_seconds
        assert stats.decode_tokens_per_second == stats.decode_steps / stats.decode_seconds

    def test_engine_counters_add_up(self) -> None:
        engine = BigramEngine(encode(TEXT), TOKENIZER.get_vocab_size())
        for _ in range(2):
            list(generate(engine, PROMPT, replace(OPTIONS, max_tokens=5)))
        assert engine.stats.prompt_tokens == 2 * len(PROMPT)
        assert engine.stats.generated_tokens == 10
        assert engine.stats.prefill_seconds > 0
        assert engine.stats.decode_seconds > 0

    def test_time_of_the_consumer_does_not_count(self) -> None:
        from time import sleep

        generation = start(encode(TEXT), replace(OPTIONS, max_tokens=4))
        for _ in generation:
            sleep(0.1)
        # Three steps follow a pause; the model itself takes microseconds, a busy machine longer.
        assert generation.stats.decode_seconds < 0.25

    def test_one_token_has_no_decode_speed(self) -> None:
        generation = start(encode(TEXT), replace(OPTIONS, max_tokens=1))
        list(generation)
        assert generation.stats.decode_tokens_per_second is None
        assert generation.stats.bytes_read_per_token is None


class TestCancel:
    """Closing ends it at once; what was made stays; the state goes on."""

    def test_close(self) -> None:
        generation = start(encode(TEXT), OPTIONS)
        first = [next(generation).id, next(generation).id]
        generation.close()
        assert list(generation) == []
        assert generation.finish_reason is None
        assert generation.token_ids == first
        assert generation.state.position == len(PROMPT) + 1
        assert generation.stats.decode.bytes_read == 100

    def test_close_before_the_first_token(self) -> None:
        with start(encode(TEXT), OPTIONS) as generation:
            pass
        assert list(generation) == []
        assert generation.state.position == 0

    def test_progress_can_cancel_a_prefill(self) -> None:
        class GiveUp(Exception):
            pass

        def on_progress(done: int, total: int) -> None:
            raise GiveUp

        options = replace(OPTIONS, prefill_chunk=1)
        generation = start(encode(TEXT), options, on_progress=on_progress)
        with pytest.raises(GiveUp):
            next(generation)
        assert generation.state.position == 1

    def test_state_can_be_continued(self) -> None:
        engine = BigramEngine(encode(TEXT), TOKENIZER.get_vocab_size())
        prompt = encode("The quick fox")
        whole = [t.id for t in generate(engine, prompt, GenerateOptions(max_tokens=8))]
        state = engine.new_state(100)
        first = generate(engine, prompt, GenerateOptions(max_tokens=3), state=state)
        head = [token.id for token in first]
        rest = generate(engine, head[-1:], GenerateOptions(max_tokens=5), state=state)
        assert head + [token.id for token in rest] == whole
        assert rest.stats.reused_tokens == len(prompt) + 2


def first_stop(text: str, strings: Sequence[str]) -> str:
    """Return the text before the first stop string, looking at every beginning of the text."""
    for end in range(len(text) + 1):
        ending = [string for string in strings if text[:end].endswith(string)]
        if ending:
            return text[: end - max(len(string) for string in ending)]
    return text


# A small alphabet makes overlaps, repeats and almost-matches likely.
letters = st.text(alphabet="ab\n", max_size=30)
stops = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)


@settings(max_examples=1000, deadline=None)
@given(text=letters, strings=stops, cuts=st.lists(st.integers(0, 30)))
def test_stop_strings_for_every_cut(text: str, strings: list[str], cuts: list[int]) -> None:
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
    watch, shown, is_stopped = StopStrings(strings), "", False
    for piece in pieces:
        more, is_stopped = watch.add(piece)
        shown += more
        assert first_stop(text, strings).startswith(shown), "shown text is never taken back"
        if is_stopped:
            break
    if not is_stopped:
        shown += watch.finish()
    assert shown == first_stop(text, strings)
    assert is_stopped == any(string in text for string in strings)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_stop_strings_over_real_tokens(data: st.DataObject) -> None:
    """Any substring of the answer as stop string, through tokenizer and generation."""
    begin = data.draw(st.integers(0, len(TEXT) - 1))
    end = data.draw(st.integers(begin + 1, len(TEXT)))
    stop = TEXT[begin:end]
    generation = start([*encode(TEXT), END], replace(OPTIONS, stop=(stop,)))
    shown = "".join(token.text for token in generation)
    assert shown == generation.text == TEXT[: TEXT.index(stop)]
    assert generation.finish_reason == "stop"


def test_text_that_could_become_a_stop_string_waits() -> None:
    watch = StopStrings(["\nUser:"])
    assert watch.add("Hello\nUs") == ("Hello", False)
    assert watch.add("ual") == ("\nUsual", False)
    assert watch.add("\nUser") == ("", False)
    assert watch.finish() == "\nUser"


def test_stop_string_completed_by_the_last_bytes() -> None:
    """The text held for an unfinished character can complete a stop string when it is flushed."""
    script = [*encode("a𝄞")[:2], END]
    stop = ("\N{REPLACEMENT CHARACTER}",)
    generation = start(script, replace(OPTIONS, stop=stop))
    assert "".join(token.text for token in generation) == "a"
    assert generation.finish_reason == "stop"


@pytest.mark.parametrize("bad", [{"max_tokens": 0}, {"prefill_chunk": 0}, {"stop": ("a", "")}])
def test_options_out_of_range(bad: dict[str, object]) -> None:
    with pytest.raises(RunError, match=f"^{next(iter(bad))}"):
        GenerateOptions(**bad)  # type: ignore[arg-type]
