"""The tokenizer rebuilt from a GGUF splits and decodes as the one whose vocabulary was written.

The originals are put together here as the families' own tokenizer.json files are.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from gguf import TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers import AutoTokenizer

from kandiga_pack.errors import PackError
from kandiga_pack.sources.gguf.tokenizer import Vocabulary, build_tokenizer, write_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<think>", "</think>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}"
CORPUS = [
    Path(__file__).read_text(),
    "naïve café e\u0301 日本語 한국어 हिन्दी 12345 don't WE'LL",
] * 2
SAMPLES = [
    "Hello world",
    "  two  spaces\tand\ttabs \n\n\nlines  \n",
    "it's DON'T we'Re 'll",
    "1234567 3.14 ٣٤٥ x2y",
    "naïve café e\u0301 Å",
    "日本語 한국어 हिन्दी \U0001f389\U0001f468‍\U0001f469‍\U0001f467",
    "a+b=c ^~| $x <html> [PAD7]",
    "<|im_start|>user\nhi<|im_end|><|endoftext|>",
    "x<think>\n\n</think>\n\ny <think>",
    "\x00\x7f\u200b\ufeff",
    "",
]
# Any text with the awkward kinds well represented.
TEXTS = st.text(
    st.one_of(
        st.sampled_from(" \n\r\t'sStTdDmMlL0123456789.,!$+<>|"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN2 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}")
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def split_by(pattern: str) -> pre.PreTokenizer:
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre.Sequence([pre.Split(Regex(pattern), "isolated"), byte_level])


ORIGINALS: dict[str, Callable[[], pre.PreTokenizer]] = {
    "gpt-2": lambda: pre.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": lambda: split_by(QWEN2),
    "qwen35": lambda: split_by(QWEN35),
    "llama-bpe": lambda: split_by(LLAMA3),
}


@pytest.fixture(scope="module", params=ORIGINALS)
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, dict[str, Any]]:
    """A trained tokenizer and the GGUF metadata that llama.cpp's converter would write for it."""
    name = request.param
    original = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    original.pre_tokenizer = ORIGINALS[name]()
    original.decoder = decoders.ByteLevel()
    if name.startswith("qwen"):
        original.normalizer = normalizers.NFC()
    alphabet = sorted(pre.ByteLevel.alphabet())
    original.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False),
    )
    original.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    original.add_tokens([AddedToken(t, special=False, normalized=False) for t in USER_DEFINED])
    return original, metadata_of(original, name)


def metadata_of(tokenizer: Tokenizer, pre_name: str) -> dict[str, Any]:
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.__getitem__)
    kinds = dict.fromkeys(SPECIAL, TokenType.CONTROL) | dict.fromkeys(
        USER_DEFINED, TokenType.USER_DEFINED
    )
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    padding = [f"[PAD{len(tokens) + i}]" for i in range(5)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_name,
        "tokenizer.ggml.tokens": tokens + padding,
        "tokenizer.ggml.token_type": [
            *(int(kinds.get(t, TokenType.NORMAL)) for t in tokens),
            *([int(TokenType.UNUSED)] * len(padding)),
        ],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": vocab["<|endoftext|>"],
        "tokenizer.ggml.eos_token_id": vocab["<|im_end|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def rebuilt(metadata: dict[str, Any]) -> Tokenizer:
    return build_tokenizer(Vocabulary.of(metadata, "model.gguf"))


def test_splits_and_decodes_as_the_original(pair: tuple[Tokenizer, dict[str, Any]]) -> None:
    original, metadata = pair
    tokenizer = rebuilt(metadata)

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(TEXTS)
    def same(text: str) -> None:
        ids = tokenizer.encode(text).ids
        assert ids == original.encode(text).ids
        assert tokenizer.decode(ids) == original.decode(ids)

    same()
    for text in SAMPLES:
        ids = tokenizer.encode(text).ids
        assert ids == original.encode(text).ids, text
        for skip in (True, False):
            assert tokenizer.decode(ids, skip_special_tokens=skip) == original.decode(
                ids, skip_special_tokens=skip
            )


def test_transformers_reads_the_files_alike(
    pair: tuple[Tokenizer, dict[str, Any]], tmp_path: Path
) -> None:
    original, metadata = pair
    # The family named in config.json must not make transformers rebuild the splitting.
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    write_tokenizer(metadata, tmp_path, "model.gguf")
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in SAMPLES:
        wanted = original.encode(text).ids
        assert ours.encode(text).ids == wanted
        assert theirs.encode(text) == wanted
    assert (theirs.eos_token, theirs.bos_token) == ("<|im_end|>", "<|endoftext|>")
    messages = [{"role": "user", "content": "hi"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False)
    assert rendered == "<|im_start|>hi<|im_end|>\n"


def test_special_tokens_are_one_id_and_padding_is_none(
    pair: tuple[Tokenizer, dict[str, Any]],
) -> None:
    _, metadata = pair
    tokenizer = rebuilt(metadata)
    tokens = metadata["tokenizer.ggml.tokens"]
    for token in [*SPECIAL, *USER_DEFINED]:
        assert tokenizer.encode(token).ids == [tokens.index(token)]
    assert len(tokenizer.encode(tokens[-1]).ids) > 1
    assert tokenizer.decode([tokens.index("<think>")], skip_special_tokens=True) == "<think>"


def test_the_default_splitting_is_llama_cpps() -> None:
    """Punctuation, words, digits in threes: what it does to files without the key."""
    tokenizer = rebuilt(byte_vocabulary(None))
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str("it's 12345+6 ok")
    assert [piece for piece, _ in pieces] == ["it", "'", "s", "Ġ", "123", "45", "+", "6", "Ġok"]


def byte_vocabulary(pre_name: str | None, **keys: Any) -> dict[str, Any]:
    alphabet = sorted(pre.ByteLevel.alphabet())
    named = {} if pre_name is None else {"tokenizer.ggml.pre": pre_name}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*alphabet, "ab", "<s>"],
        "tokenizer.ggml.token_type": [1] * (len(alphabet) + 1) + [3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": len(alphabet) + 1,
        **named,
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


@pytest.mark.parametrize(
    ("pre_name", "keys", "starts_with_bos"),
    [
        ("gpt-2", {}, False),
        ("llama-bpe", {}, True),
        ("llama-bpe", {"add_bos_token": False}, False),
        ("qwen2", {"add_bos_token": True}, True),
    ],
)
def test_the_first_token(pre_name: str, keys: dict[str, Any], starts_with_bos: bool) -> None:
    metadata = byte_vocabulary(pre_name, **keys)
    bos = metadata["tokenizer.ggml.bos_token_id"]
    ids = rebuilt(metadata).encode("ab").ids
    assert ids == [*([bos] if starts_with_bos else []), bos - 1]
    assert rebuilt(metadata).encode("ab", add_special_tokens=False).ids == [bos - 1]


def test_all_ids_that_end_an_answer() -> None:
    metadata = byte_vocabulary("qwen2", eos_token_id=5, eot_token_id=7, eom_token_id=5)
    assert Vocabulary.of(metadata, "model.gguf").stop_token_ids == [5, 7]


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"pre": "grok-2"}, "pre-tokenizer 'grok-2'; supported are gpt-2, smollm"),
        ({"model": "t5"}, "tokenizer model 't5'; supported are gpt2, llama"),
        ({"tokens": []}, "no vocabulary"),
        ({"token_type": [1]}, "not a type for each of"),
        ({"merges": ["a q"]}, "merge 'a q' is not two tokens that make a third"),
        ({"bos_token_id": 100_000, "add_bos_token": True}, "bos_token_id is 100000"),
    ],
)
def test_what_cannot_be_rebuilt_is_named(keys: dict[str, Any], wanted: str) -> None:
    metadata = byte_vocabulary("qwen2", **keys)
    with pytest.raises(PackError, match=f"^model.gguf: .*{wanted}"):
        rebuilt(metadata)


@pytest.fixture(scope="module")
def sentencepiece_pair() -> tuple[sentencepiece.SentencePieceProcessor, dict[str, Any]]:
    """A SentencePiece BPE model with byte fallback, as Mixtral's, and its GGUF metadata."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(CORPUS).splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(processor.vocab_size())

    def kind(token_id: int) -> int:
        checks = {
            TokenType.UNKNOWN: processor.is_unknown,
            TokenType.CONTROL: processor.is_control,
            TokenType.BYTE: processor.is_byte,
        }
        return int(next((k for k, is_k in checks.items() if is_k(token_id)), TokenType.NORMAL))

    return processor, {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [kind(i) for i in ids],
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    }


def test_sentencepiece(
    sentencepiece_pair: tuple[sentencepiece.SentencePieceProcessor, dict[str, Any]],
) -> None:
    processor, metadata = sentencepiece_pair
    tokenizer = rebuilt(metadata)
    bos = metadata["tokenizer.ggml.bos_token_id"]
    for text in [*SAMPLES[:7], *CORPUS[0].splitlines()[:80]]:
        if not text:
            continue
        ids = tokenizer.encode(text).ids
        assert ids == [bos, *processor.encode(text)], text
        assert tokenizer.decode(ids) == text
