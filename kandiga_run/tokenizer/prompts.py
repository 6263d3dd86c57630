"""Text in, token ids out: the tokenizer and chat template that stand beside the container."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from kandiga_run.errors import RunError
from kandiga_run.tokenizer.chat_template import (
    ChatTemplate,
    Message,
    load_chat_template,
    read_json_object,
)
from kandiga_run.tokenizer.detokenizer import StreamingDetokenizer, streaming_detokenizer

#: The special tokens that chat templates know by name.
_NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class Prompts:
    """Renders, encodes and decodes for one checkpoint. Neither imports nor needs transformers."""

    def __init__(self, path: str | Path) -> None:
        """Read the tokenizer files of a container folder, or of the folder of a .kexp file.

        Raises FileNotFoundError for a missing tokenizer.json, RunError for a damaged file.
        """
        path = Path(path)
        self.folder = path.parent if path.is_file() else path
        self.config = self._read_json("config.json")
        self.generation_config = self._read_json("generation_config.json")
        self.tokenizer_config = self._read_json("tokenizer_config.json")
        self.tokenizer = _load_tokenizer(self.folder)
        #: Named special tokens as templates see them: {"bos_token": "<s>", ...}.
        self.special_tokens = self._named_special_tokens()
        self.stop_token_ids = self._stop_token_ids()
        self._template = load_chat_template(self.folder, self.tokenizer_config)
        added = self.tokenizer.get_added_tokens_decoder().values()
        self._added_tokens = tuple(token.content for token in added)

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint can be talked to; base models only continue text."""
        return self._template is not None

    @property
    def context_length(self) -> int | None:
        """Return the number of tokens the model was made for, if its config says so."""
        text_config = self.config.get("text_config") or {}
        for config in (text_config, self.config):
            if isinstance(length := config.get("max_position_embeddings"), int):
                return length
        return None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """Return the prompt text of a conversation, equal to transformers' apply_chat_template.

        `messages` are {"role": ..., "content": ...}; `variables` go to the template, for example
        enable_thinking=False. Raises RunError without a template or when it refuses.
        """
        return self._require_template().render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            variables={**self.special_tokens, **variables},
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a rendered prompt; the template wrote its own special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_raw(self, text: str) -> list[int]:
        """Return the ids of plain text with what the tokenizer puts around it, such as bos.

        tokenizer.json decides alone, as in transformers, which ignores add_bos_token beside it.
        """
        return self.tokenizer.encode(text, add_special_tokens=True).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def detokenizer(
        self, *, skip_special_tokens: bool = True, keep: frozenset[int] = frozenset()
    ) -> StreamingDetokenizer:
        """Return a streaming detokenizer for one answer; `keep` are special tokens it shows."""
        detokenizer = streaming_detokenizer(self.tokenizer, skip_special_tokens=skip_special_tokens)
        detokenizer.keep(keep)
        return detokenizer

    @property
    def template_source(self) -> str:
        """Return the text of the chat templates, by which a model's family can be told."""
        return self._template.source if self._template else ""

    def starts_with_added_token(self, text: str) -> bool:
        """Whether text begins with a token that is never merged with its surroundings."""
        return text.startswith(self._added_tokens)

    def leading_space(self, token: int) -> str:
        """Return the space that decoding strips when this token begins a text, if it does.

        SentencePiece writes the space before a word into the word's token.
        """
        piece = self.tokenizer.id_to_token(token) or ""
        is_stripped = piece.startswith("\u2581") and not self.decode([token]).startswith(" ")
        return " " if is_stripped else ""

    def _require_template(self) -> ChatTemplate:
        if self._template is None:
            raise RunError(
                f"{self.folder}: no chat template (looked for chat_template.jinja, "
                "tokenizer_config.json, chat_template.json); use run --raw to continue plain text"
            )
        return self._template

    def _named_special_tokens(self) -> dict[str, str]:
        source = dict(self.tokenizer_config)
        if "added_tokens_decoder" not in source:
            # Older checkpoints keep the names in a file of their own, which then has precedence.
            source |= self._read_json("special_tokens_map.json")
        named: dict[str, str] = {}
        for name in _NAMED_TOKENS:
            token = source.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                named[name] = token
        return named

    def _stop_token_ids(self) -> frozenset[int]:
        """Return the ids that end an answer, by generation_config, else config, and tokenizer."""
        text_config = self.config.get("text_config") or {}
        sources = (self.generation_config, self.config, text_config)
        configured = (config.get("eos_token_id") for config in sources)
        first: int | list[int] = next((ids for ids in configured if ids is not None), [])
        ids = first if isinstance(first, list) else [first]
        tokenizer_eos = self._named_id("eos_token")
        return frozenset([*ids, *([] if tokenizer_eos is None else [tokenizer_eos])])

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.tokenizer.token_to_id(token)

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return read_json_object(path) if path.is_file() else {}


def _load_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing; the model needs its tokenizer in this form (transformers writes it: "
            "AutoTokenizer.from_pretrained(SOURCE).save_pretrained(FOLDER))"
        )
    data = path.read_bytes()  # here, so that a file that cannot be read is told from a bad one
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing narrower
        raise RunError(f"{path}: not a tokenizer this version reads: {error}") from error
    # Files saved for training may cut or pad every text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
