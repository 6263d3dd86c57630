"""Rebuild tokenizer.json and tokenizer_config.json from the vocabulary that a GGUF carries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import Keys, TokenType
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from kandiga_pack.errors import PackError

_SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)
# How the families' own tokenizer.json files split text, by llama.cpp's name for them.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_QWEN2 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class _Splitting:
    """How text is cut before byte-pair merging.

    Attributes:
        patterns: applied one after the other, each to the pieces of the one before.
        nfc: Unicode composition first.
        ignore_merges: a piece that is a token as a whole is taken without merging.
        add_bos: what llama.cpp does where the file does not say.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_SPLITTINGS = {
    "gpt-2": _Splitting((_GPT2,)),
    "smollm": _Splitting((r"\p{N}", _GPT2)),
    "starcoder": _Splitting((r"\p{N}", _GPT2)),
    "qwen2": _Splitting((_QWEN2,), nfc=True),
    "qwen35": _Splitting((_QWEN35,), nfc=True),
    "llama-bpe": _Splitting((_LLAMA3,), ignore_merges=True, add_bos=True),
    # What llama.cpp falls back to for files from before the key existed.
    "default": _Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}


@dataclass(frozen=True)
class Vocabulary:
    """The `tokenizer.ggml.*` keys, checked."""

    file_name: str
    tokens: list[str]
    types: list[int]
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, metadata: Mapping[str, Any], file_name: str) -> Vocabulary:
        tokens = metadata.get(Keys.Tokenizer.LIST)
        if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
            raise PackError(f"{file_name}: no vocabulary in {Keys.Tokenizer.LIST}")
        types = metadata.get(Keys.Tokenizer.TOKEN_TYPE, [int(TokenType.NORMAL)] * len(tokens))
        if not isinstance(types, list) or len(types) != len(tokens):
            raise PackError(
                f"{file_name}: {Keys.Tokenizer.TOKEN_TYPE} is not a type for each of {len(tokens)} "
                "tokens. The file is damaged: get it again"
            )
        return cls(file_name, tokens, types, metadata)

    def special_id(self, key: str) -> int | None:
        """Id kept under `key`, None where there is none."""
        token_id = self.metadata.get(key)
        if token_id is None:
            return None
        if not isinstance(token_id, int) or not 0 <= token_id < len(self.tokens):
            raise PackError(
                f"{self.file_name}: {key} is {token_id!r}, the vocabulary has {len(self.tokens)}"
            )
        return token_id

    def special_token(self, key: str) -> str | None:
        token_id = self.special_id(key)
        return None if token_id is None else self.tokens[token_id]

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end an answer: end of sequence first, then end of turn and of message."""
        keys = (Keys.Tokenizer.EOS_ID, Keys.Tokenizer.EOT_ID, Keys.Tokenizer.EOM_ID)
        ids = [token_id for key in keys if (token_id := self.special_id(key)) is not None]
        return list(dict.fromkeys(ids))

    def learned(self) -> dict[str, int]:
        """Token -> id without the padding rows ([PAD151936]) that no text can give."""
        learned: dict[str, int] = {}
        for token_id, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind != TokenType.UNUSED:
                learned.setdefault(token, token_id)
        return learned

    def added_tokens(self) -> list[AddedToken]:
        """Tokens that are cut out of the text before anything else and always keep one id."""
        return [
            AddedToken(token, special=kind in _SPECIAL, normalized=False)
            for token, kind in zip(self.tokens, self.types, strict=True)
            if kind in (*_SPECIAL, TokenType.USER_DEFINED)
        ]


def write_tokenizer(metadata: Mapping[str, Any], folder: Path, file_name: str) -> list[Path]:
    """Write tokenizer.json and tokenizer_config.json (with the chat template) into `folder`.

    Raises:
        PackError: a tokenizer model or pre-tokenizer that is not supported.
    """
    vocabulary = Vocabulary.of(metadata, file_name)
    tokenizer = build_tokenizer(vocabulary)
    tokenizer_path = folder / "tokenizer.json"
    tokenizer_path.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    config_path = folder / "tokenizer_config.json"
    text = json.dumps(_tokenizer_config(vocabulary), indent=2, sort_keys=True, ensure_ascii=False)
    config_path.write_text(text + "\n", encoding="utf-8")
    return [tokenizer_path, config_path]


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Return the tokenizer that `vocabulary` describes."""
    model = str(vocabulary.metadata.get(Keys.Tokenizer.MODEL))
    builders: dict[str, Callable[[Vocabulary], tuple[Tokenizer, bool]]] = {
        "gpt2": _byte_level,
        "llama": _sentencepiece,
    }
    if model not in builders:
        raise PackError(
            f"{vocabulary.file_name}: tokenizer model {model!r}; supported are "
            f"{', '.join(builders)}. Use the model's MLX checkpoint, which has its own "
            "tokenizer.json"
        )
    tokenizer, add_bos = builders[model](vocabulary)
    tokenizer.add_tokens(vocabulary.added_tokens())
    if vocabulary.metadata.get(Keys.Tokenizer.ADD_BOS, add_bos):
        _prepend_bos(tokenizer, vocabulary)
    return tokenizer


def _byte_level(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """GPT-2's byte-level BPE, in the variants of `_SPLITTINGS`."""
    name = str(vocabulary.metadata.get(Keys.Tokenizer.PRE, "default"))
    if name not in _SPLITTINGS:
        raise PackError(
            f"{vocabulary.file_name}: pre-tokenizer {name!r}; supported are "
            f"{', '.join(_SPLITTINGS)}. Use the model's MLX checkpoint, which has its own "
            "tokenizer.json"
        )
    splitting = _SPLITTINGS[name]
    learned = vocabulary.learned()
    tokenizer = Tokenizer(
        models.BPE(learned, _merges(vocabulary, learned), ignore_merges=splitting.ignore_merges)
    )
    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in splitting.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, splitting.add_bos


def _merges(vocabulary: Vocabulary, learned: Mapping[str, int]) -> list[tuple[str, str]]:
    pairs = []
    merges = vocabulary.metadata.get(Keys.Tokenizer.MERGES)
    if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
        raise PackError(f"{vocabulary.file_name}: no merges in {Keys.Tokenizer.MERGES}")
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not (space and left in learned and right in learned and left + right in learned):
            raise PackError(
                f"{vocabulary.file_name}: merge {merge!r} is not two tokens that make a third. "
                "The file is damaged: get it again"
            )
        pairs.append((left, right))
    return pairs


def _sentencepiece(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """SentencePiece BPE with byte fallback (Mixtral), as merges ranked by the pieces' scores."""
    learned = vocabulary.learned()
    model = models.BPE(
        learned,
        _merges_from_scores(vocabulary, learned),
        unk_token=vocabulary.special_token(Keys.Tokenizer.UNK_ID) or vocabulary.tokens[0],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    has_prefix = bool(vocabulary.metadata.get(Keys.Tokenizer.ADD_PREFIX, True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if has_prefix else replace
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] * has_prefix)])
    return tokenizer, True


def _merges_from_scores(
    vocabulary: Vocabulary, learned: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Every way to make a piece out of two pieces, best score first.

    SentencePiece merges the pair whose result scores highest; BPE merges the pair of lowest rank.
    """
    scores = vocabulary.metadata.get(Keys.Tokenizer.SCORES)
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise PackError(f"{vocabulary.file_name}: no {Keys.Tokenizer.SCORES} for every token")
    ranked = []
    for piece, token_id in learned.items():
        if vocabulary.types[token_id] != TokenType.NORMAL:
            continue
        for cut in range(1, len(piece)):
            left, right = learned.get(piece[:cut]), learned.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[token_id], left, right))
    return [
        (vocabulary.tokens[left], vocabulary.tokens[right]) for _, left, right in sorted(ranked)
    ]


def _prepend_bos(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    bos = vocabulary.special_token(Keys.Tokenizer.BOS_ID)
    bos_id = vocabulary.special_id(Keys.Tokenizer.BOS_ID)
    if bos is None:
        raise PackError(f"{vocabulary.file_name}: a first token is asked for, but none is named")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, bos_id)]
    )


def _tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    config: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
        # The generic class: it takes tokenizer.json as it is. A family's own class would rebuild
        # the pre-tokenizer after that family's rules.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    named = {
        "bos_token": Keys.Tokenizer.BOS_ID,
        "eos_token": Keys.Tokenizer.EOS_ID,
        "pad_token": Keys.Tokenizer.PAD_ID,
        "unk_token": Keys.Tokenizer.UNK_ID,
    }
    for name, key in named.items():
        if (token := vocabulary.special_token(key)) is not None:
            config[name] = token
    template = vocabulary.metadata.get(Keys.Tokenizer.CHAT_TEMPLATE)
    if template is not None:
        config["chat_template"] = template
    return config
