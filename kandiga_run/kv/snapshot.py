"""Copies of what a state holds of some tokens, from which it is put together again.

Keys and values that are not coded can be cut by tokens: pieces of a sequence, side by side, make
the whole. A recurrent layer's state, and coded keys and values, are what they are after all tokens:
of those only the last piece counts, and a piece may leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kandiga_run.kv.prompt_cache import SavedLayer
from kandiga_run.kv.recurrent import RecurrentState

_CUT_BY_TOKENS = ("f16", "f32")
#: The format of a layer that a piece leaves out.
LEFT_OUT = "left out"


@dataclass(frozen=True)
class LayerPiece:
    """What one layer holds; as `SavedLayer.save` gives it, so that it can be written to a file."""

    about: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    @property
    def is_cut(self) -> bool:
        """Whether it holds the piece's own tokens only, and needs those before."""
        return self.about.get("format") in _CUT_BY_TOKENS

    @property
    def is_left_out(self) -> bool:
        """Whether nothing is held."""
        return self.about.get("format") == LEFT_OUT

    def save(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return how it is held, and its arrays."""
        return dict(self.about), dict(self.arrays)

    def load(self, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Refuse: a piece stays what it is."""
        raise TypeError("a piece is made, not filled")


@dataclass(frozen=True)
class StatePiece:
    """What a state holds of the tokens from `begin` to `end`."""

    begin: int
    end: int
    layers: tuple[LayerPiece, ...]

    @property
    def nbytes(self) -> int:
        """Return the size of all arrays."""
        return sum(array.nbytes for layer in self.layers for array in layer.arrays.values())

    @property
    def can_be_last(self) -> bool:
        """Whether a state can go on from its end."""
        return not any(layer.is_left_out for layer in self.layers)


def take_piece(
    layers: Sequence[SavedLayer], begin: int, end: int, *, can_be_last: bool
) -> StatePiece:
    """Copy what the layers of a state, which has seen `end` tokens, hold from `begin` on."""
    return StatePiece(
        begin, end, tuple(_layer_piece(layer, begin, end, can_be_last) for layer in layers)
    )


def _layer_piece(layer: SavedLayer, begin: int, end: int, can_be_last: bool) -> LayerPiece:
    # Not saved first: that would pack all blocks of a coded cache for nothing.
    if not can_be_last and isinstance(layer, RecurrentState):
        return LayerPiece({"format": LEFT_OUT}, {})
    about, arrays = layer.save()
    if about["format"] in _CUT_BY_TOKENS:
        arrays = {name: array[:, begin:end] for name, array in arrays.items()}
    elif not can_be_last:
        return LayerPiece({"format": LEFT_OUT}, {})
    return LayerPiece(about, {name: np.array(array) for name, array in arrays.items()})


def put_together(pieces: Sequence[StatePiece], layers: Sequence[SavedLayer]) -> int:
    """Fill the layers of an empty state; return how many tokens it has seen then.

    The pieces follow each other from token 0 on. ValueError when they do not fit the layers.
    """
    position = 0
    for piece in pieces:
        if piece.begin != position or len(piece.layers) != len(layers):
            raise ValueError(f"a piece from token {piece.begin} on after {position} tokens")
        position = piece.end
    for index, layer in enumerate(layers):
        own = [piece.layers[index] for piece in pieces]
        try:
            layer.load(own[-1].about, _arrays(own))
        except (KeyError, TypeError) as error:
            raise ValueError(f"layer {index} does not fit: {error}") from error
    return position


def _arrays(pieces: Sequence[LayerPiece]) -> dict[str, NDArray[Any]]:
    last = pieces[-1]
    if not last.is_cut or len(pieces) == 1:
        return dict(last.arrays)
    return {
        name: np.concatenate([piece.arrays[name] for piece in pieces], axis=1)
        for name in last.arrays
    }
