"""The bytes that single tokens stand for."""

from __future__ import annotations

from tokenizers import Tokenizer

from kandiga_run.tokenizer.detokenizer import (
    ByteLevelDetokenizer,
    fallback_byte,
    piece_bytes,
    streaming_detokenizer,
)


class TokenBytes:
    """Bytes by token, possibly half a character.

    A token is taken by itself: what decoders do between tokens, such as dropping the first space
    of a text, does not apply.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder().keys()
        self._is_byte_level = isinstance(streaming_detokenizer(tokenizer), ByteLevelDetokenizer)

    def __getitem__(self, token: int) -> bytes:
        """Return the bytes of a token; an id outside the vocabulary has none."""
        piece = self._tokenizer.id_to_token(token)
        if piece is None or token in self._added:
            return (piece or "").encode()
        if self._is_byte_level:
            return piece_bytes(piece)
        byte = fallback_byte(piece)
        return piece.replace("\u2581", " ").encode() if byte is None else bytes([byte])
