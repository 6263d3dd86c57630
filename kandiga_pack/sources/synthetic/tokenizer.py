"""A tokenizer with as many tokens as the model, each of which is some text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count, islice, product
from pathlib import Path
from string import ascii_lowercase

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from kandiga_pack.errors import PackError

END_OF_TEXT, IM_START, IM_END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# How the byte-level alphabet spells a space.
_SPACE = "\u0120"


def write_tokenizer(folder: Path, vocab_size: int, context_length: int | None) -> list[Path]:
    """Write tokenizer.json and tokenizer_config.json; return them.

    The tokens are the 256 bytes, then " a", " b" ... " aa" ..., of which many are English words,
    then three special ones, the last of which ends an answer. Whatever a model with made-up
    weights says can so be printed, and read again as the same tokens.

    Raises:
        PackError: vocab_size is too small for the bytes and special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = vocab_size - len(alphabet) - len(SPECIAL_TOKENS)
    if fillers < 0:
        raise PackError(
            f"config.json: vocab_size is {vocab_size}, and a byte-level tokenizer with a chat "
            f"template needs at least {vocab_size - fillers}"
        )
    tokens = [*alphabet, *islice(_words(), fillers)]
    # Without ignore_merges a word would need merges that lead to it from its letters.
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)}, merges=[], ignore_merges=True
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    path = folder / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    settings = {
        "chat_template": _CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "model_max_length": context_length or 4096,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    settings_path = folder / "tokenizer_config.json"
    settings_path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return [path, settings_path]


def _words() -> Iterator[str]:
    for length in count(1):
        for letters in product(ascii_lowercase, repeat=length):
            yield _SPACE + "".join(letters)
