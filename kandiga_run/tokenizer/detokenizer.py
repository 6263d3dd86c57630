"""Token ids to text as they arrive, in linear time.

Text is given out when it can no longer change: never half a UTF-8 character, never a replacement
character that the next token would have completed. What `add` and `finish` return, joined, equals
`tokenizer.decode` of all the ids.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from functools import cache
from typing import Any

from tokenizers import Tokenizer


class StreamingDetokenizer(ABC):
    """Turns the tokens of one sequence into text."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        """Start an empty sequence; special tokens give no text unless asked for."""
        self._tokenizer = tokenizer
        self._skipped = _special_ids(tokenizer) if skip_special_tokens else frozenset()

    def keep(self, tokens: frozenset[int]) -> None:
        """Give the text of these special tokens, such as those that mark a tool call."""
        self._skipped -= tokens

    def add(self, token: int) -> str:
        """Return the text that became certain with this token id, often one word or nothing.

        An id outside the vocabulary (models pad theirs) gives no text.
        """
        piece = None if token in self._skipped else self._tokenizer.id_to_token(token)
        return "" if piece is None else self._add(token, piece)

    @abstractmethod
    def finish(self) -> str:
        """Return what was held back, once no further token follows."""

    @abstractmethod
    def _add(self, token: int, piece: str) -> str: ...


def streaming_detokenizer(
    tokenizer: Tokenizer, *, skip_special_tokens: bool = True
) -> StreamingDetokenizer:
    """Return the detokenizer that fits the tokenizer's decoder."""
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    if _is_byte_fallback(steps):
        return ByteFallbackDetokenizer(
            tokenizer, steps=steps, skip_special_tokens=skip_special_tokens
        )
    return WindowDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)


class ByteLevelDetokenizer(StreamingDetokenizer):
    """Byte-level BPE (GPT-2, Qwen, Llama 3 ...): every character of a token stands for a byte."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        super().__init__(tokenizer, skip_special_tokens=skip_special_tokens)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def _add(self, token: int, piece: str) -> str:
        return self._utf8.decode(piece_bytes(piece))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class ByteFallbackDetokenizer(StreamingDetokenizer):
    """SentencePiece-like BPE (Mixtral, Gemma ...): a mark for spaces, `<0xE2>` for a byte.

    The library decodes a run of byte tokens as a whole: one bad byte turns all of it into
    replacement characters. A run is therefore held back until a token of another kind ends it.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, steps: list[dict[str, Any]], skip_special_tokens: bool = True
    ) -> None:
        super().__init__(tokenizer, skip_special_tokens=skip_special_tokens)
        self._replacements = [
            (step["pattern"]["String"], step["content"])
            for step in steps
            if step["type"] == "Replace"
        ]
        has_strip = steps[-1]["type"] == "Strip"
        self._stripped: str = steps[-1]["content"] if has_strip else ""
        self._left_to_strip: int = steps[-1]["start"] if has_strip else 0
        self._run = bytearray()

    def _add(self, token: int, piece: str) -> str:
        byte = fallback_byte(piece)
        if byte is not None:
            self._run.append(byte)
            return ""
        for pattern, content in self._replacements:
            piece = piece.replace(pattern, content)
        return self._strip(self._end_run() + piece)

    def finish(self) -> str:
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        run, self._run = self._run, bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(run)

    def _strip(self, text: str) -> str:
        """Drop the space that stands before the first word of a SentencePiece text."""
        while self._left_to_strip and text:
            if not text.startswith(self._stripped):
                self._left_to_strip = 0
                break
            text = text[len(self._stripped) :]
            self._left_to_strip -= 1
        return text


class WindowDetokenizer(StreamingDetokenizer):
    """Any other decoder, through the library itself on a sliding window of tokens.

    The window keeps the tokens of the last text given out, because many decoders write a token
    differently at the start of a text.
    """

    #: Tokens after which an unresolved replacement character is taken to be real: no UTF-8
    #: character is longer than four bytes, and the window must not grow with the text.
    MAX_HELD_TOKENS = 8

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        super().__init__(tokenizer, skip_special_tokens=skip_special_tokens)
        self._context: list[int] = []
        self._held: list[int] = []

    def _add(self, token: int, piece: str) -> str:
        self._held.append(token)
        text = self._held_text()
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self._held) < self.MAX_HELD_TOKENS:
            return ""
        return self._give_out(text)

    def finish(self) -> str:
        return self._give_out(self._held_text())

    def _held_text(self) -> str:
        before = self._decode(self._context)
        return self._decode(self._context + self._held)[len(before) :]

    def _give_out(self, text: str) -> str:
        if text:
            self._context, self._held = self._held, []
        return text

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token for token, piece in added.items() if piece.special)


def _is_byte_fallback(steps: list[dict[str, Any]]) -> bool:
    """Whether the steps are Replace..., ByteFallback, Fuse and perhaps Strip at the start."""
    kinds = [step.get("type") for step in steps]
    if kinds and kinds[-1] == "Strip":
        if steps[-1]["stop"] != 0:
            return False
        kinds.pop()
    is_literal = all("String" in step["pattern"] for step in steps if step.get("type") == "Replace")
    return (
        is_literal
        and [kind for kind in kinds if kind != "Replace"] == ["ByteFallback", "Fuse"]
        and (kinds[-2:] == ["ByteFallback", "Fuse"])
    )


def fallback_byte(piece: str) -> int | None:
    """Return the byte that a piece such as `<0xE2>` stands for."""
    if len(piece) != 6 or not piece.startswith("<0x") or not piece.endswith(">"):
        return None
    try:
        return int(piece[3:5], 16)
    except ValueError:
        return None


@cache
def _byte_of_character() -> dict[str, int]:
    """Return the byte-level alphabet: printable Latin-1 stands for itself, the rest from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


def piece_bytes(piece: str) -> bytes:
    """Return the bytes of a byte-level token; an added token outside the alphabet is itself."""
    alphabet = _byte_of_character()
    try:
        return bytes([alphabet[character] for character in piece])
    except KeyError:
        return piece.encode()
