"""Streamed text equals the library's decode of all tokens, and nothing shown ever changes."""

from collections.abc import Sequence
from time import thread_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from kandiga_run.tokenizer.detokenizer import (
    ByteFallbackDetokenizer,
    ByteLevelDetokenizer,
    WindowDetokenizer,
    streaming_detokenizer,
)
from tokenizer_files import CORPUS, byte_fallback_tokenizer, byte_level_tokenizer

TOKENIZERS = {
    "byte-level": byte_level_tokenizer(),
    "byte-fallback": byte_fallback_tokenizer(),
    "byte-fallback, first space kept": byte_fallback_tokenizer(strips_first_space=False),
}
KINDS = {
    "byte-level": ByteLevelDetokenizer,
    "byte-fallback": ByteFallbackDetokenizer,
    "byte-fallback, first space kept": ByteFallbackDetokenizer,
}


def stream(tokenizer: Tokenizer, ids: Sequence[int], *, skip: bool = True) -> list[str]:
    detokenizer = streaming_detokenizer(tokenizer, skip_special_tokens=skip)
    return [*(detokenizer.add(token) for token in ids), detokenizer.finish()]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_kind_follows_the_decoder(name: str) -> None:
    assert type(streaming_detokenizer(TOKENIZERS[name])) is KINDS[name]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_tokens_equal_decode(name: str, skip: bool, data: st.DataObject) -> None:
    """Random ids make broken UTF-8 most of the time; ids past the vocabulary give no text."""
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), max_size=40))
    known = [token for token in ids if tokenizer.id_to_token(token) is not None]
    wanted = tokenizer.decode(known, skip_special_tokens=skip)
    assert "".join(stream(tokenizer, ids, skip=skip)) == wanted


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_text_comes_back_without_replacement_characters(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_are_not_held_back(name: str) -> None:
    """Each ASCII token is shown with the very call that adds it."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("the router", add_special_tokens=False).ids
    pieces = stream(tokenizer, ids)
    assert pieces[-1] == ""
    assert all(pieces[1:-1])


def test_emoji_waits_for_its_last_byte() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("𝄞", add_special_tokens=False).ids
    assert len(ids) == 4, "the emoji must be split into bytes for this test to mean anything"
    assert stream(tokenizer, ids) == ["", "", "", "𝄞", ""]


def test_unfinished_character_is_replaced_at_the_end() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("𝄞", add_special_tokens=False).ids[:2]
    assert stream(tokenizer, ids) == ["", "", "\N{REPLACEMENT CHARACTER}"]


def test_added_token_outside_the_byte_alphabet() -> None:
    """DeepSeek's markers contain characters that stand for no byte."""
    tokenizer = byte_level_tokenizer()
    marker = "<\uff5ctool\u2581call\uff5c>"
    tokenizer.add_tokens([marker])
    ids = tokenizer.encode(f"a{marker}b", add_special_tokens=False).ids
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == f"a{marker}b"


def word_piece_tokenizer() -> Tokenizer:
    words = ["[UNK]", "the", "rout", "##er", "selects", "##é", "expert", "##s"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 7), max_size=20))
def test_other_decoders_go_through_a_window(ids: list[int]) -> None:
    tokenizer = word_piece_tokenizer()
    assert type(streaming_detokenizer(tokenizer)) is WindowDetokenizer
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_window_agrees_on_ordinary_text(name: str) -> None:
    """The fallback is the obvious way, and right wherever characters are not broken."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(CORPUS, add_special_tokens=False).ids
    window = WindowDetokenizer(tokenizer)
    pieces = [*(window.add(token) for token in ids), window.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("name", "piece"), [("byte-level", "Ā"), ("byte-fallback", "<0x80>"), ("window", "Ā")]
)
def test_time_is_linear_even_for_bytes_that_never_resolve(name: str, piece: str) -> None:
    """A model gone wrong repeats half a character; work a token must not grow with the answer."""
    tokenizer = TOKENIZERS.get(name, TOKENIZERS["byte-level"])
    detokenizer = streaming_detokenizer(tokenizer)
    if name == "window":
        detokenizer = WindowDetokenizer(tokenizer)
    token = tokenizer.token_to_id(piece)
    count = 30_000
    started = thread_time()
    text = "".join(detokenizer.add(token) for _ in range(count)) + detokenizer.finish()
    # Linear takes a fraction of a second here; quadratic would decode 450 million tokens.
    assert thread_time() - started < 10
    assert len(text) == count
