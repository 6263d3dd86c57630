"""Beginnings of prompts that have been read before, kept to be read no more.

A tree of pieces: a node holds what a state keeps of its tokens, its parents hold those before. Two
prompts with the same beginning share its nodes. Of a model whose states can be cut by tokens every
node is a place to go on from; recurrent state is kept where a prompt was left, or branched off.

By default only whole chunks of prompts are kept, so a prompt is cut into chunks at the same tokens
whether its beginning was kept or not, and the answer is the same bit for bit. `whole_turns` keeps
the rest of a prompt and the answer too: a next turn has nothing to read but what is new, and
results differ by rounding from those of a prompt read from the start.

Beyond `capacity_bytes`, what was used longest ago goes first. On disk (`disk`) more is kept, also
from run to run.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kandiga_run.kv.snapshot import StatePiece

# 128 bits: of a digest that two different beginnings never share.
_KEY_LENGTH = 32

Tokens = tuple[int, ...]


class PieceStore(Protocol):
    """Keeps pieces elsewhere, by keys that stand for all tokens up to their end: `DiskPieces`."""

    #: stands for no tokens
    first_key: str

    def after(self, parent_key: str) -> Sequence[StoredPiece]:
        """Return what is held of tokens that come next after those of a key."""

    def load(self, stored: StoredPiece, tokens: Tokens, begin: int) -> StatePiece | None:
        """Return a piece, whose tokens are known; None when it cannot be used."""

    def keep(self, parent_key: str, key: str, tokens: Tokens, piece: StatePiece) -> None:
        """Keep a piece; returns at once."""

    def close(self) -> None:
        """Finish writing."""


@dataclass(frozen=True)
class StoredPiece:
    """A piece that is held elsewhere."""

    key: str
    num_tokens: int
    can_be_last: bool


def key_after(parent_key: str, tokens: Tokens) -> str:
    """Return the key of tokens that follow those of another key."""
    text = f"{parent_key} {','.join(map(str, tokens))}"
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


@dataclass
class _Node:
    tokens: Tokens
    piece: StatePiece | None
    parent: _Node | None
    key: str = ""
    #: by number of tokens, then by tokens
    children: dict[int, dict[Tokens, _Node]] = field(default_factory=dict)
    last_used: int = 0

    @property
    def end(self) -> int:
        return self.piece.end if self.piece else 0

    @property
    def can_be_last(self) -> bool:
        return self.piece is not None and self.piece.can_be_last

    def path(self) -> list[_Node]:
        """Return the nodes from the first piece to this one."""
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def add(self, child: _Node) -> None:
        self.children.setdefault(len(child.tokens), {})[child.tokens] = child

    def remove(self, child: _Node) -> None:
        of_length = self.children[len(child.tokens)]
        del of_length[child.tokens]
        if not of_length:
            del self.children[len(child.tokens)]

    def child(self, tokens: Tokens) -> _Node | None:
        return self.children.get(len(tokens), {}).get(tokens)

    def longest_child(self, prompt: Tokens) -> _Node | None:
        """Return the child with the most tokens of which all come next in a prompt."""
        for length in sorted(self.children, reverse=True):
            child = self.child(prompt[self.end : self.end + length])
            if child is not None:
                return child
        return None


@dataclass(frozen=True)
class Match:
    """The kept beginning of a prompt."""

    #: from token 0 on, to where a state can go on; empty: nothing
    pieces: tuple[StatePiece, ...] = ()
    #: So far the prompt was known, though not everywhere can be gone on from.
    known_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Return how many tokens need not be read."""
        return self.pieces[-1].end if self.pieces else 0


class PrefixCache:
    """The tree. Used by one thread; figures may be read by others."""

    def __init__(
        self, capacity_bytes: int, *, whole_turns: bool = False, disk: PieceStore | None = None
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.whole_turns = whole_turns
        self.nbytes = 0
        self.entries = 0
        self.hits = 0
        self.misses = 0
        self._disk = disk
        self._root = self._new_root()
        self._clock = itertools.count(1)

    def match(self, prompt: Sequence[int]) -> Match:
        """Return the longest kept beginning of a prompt that leaves a token to be read."""
        tokens = tuple(prompt)
        path = self._walk(tokens, len(tokens) - 1)
        known = path[-1].end if path else 0
        while path and not path[-1].can_be_last:
            path.pop()
        self.hits += bool(path)
        self.misses += not path
        return Match(tuple(node.piece for node in path if node.piece), known)

    def missing_from(self, tokens: Sequence[int], *, can_be_last: bool) -> int | None:
        """Return where a piece must begin that is to end with these tokens, given from 0 on.

        None when there is one already, as is asked for.
        """
        path = self._walk(tuple(tokens), len(tokens), with_disk=False)
        last = path[-1].piece if path else None
        if last is None or last.end < len(tokens):
            return last.end if last else 0
        return None if last.can_be_last or not can_be_last else last.begin

    def keep(self, tokens: Sequence[int], piece: StatePiece) -> None:
        """Keep a piece, given all tokens up to its end.

        Left out when those before it are kept no more, or when it is too large for all of memory.
        """
        tokens = tuple(tokens)
        path = self._walk(tokens, piece.begin, with_disk=False)
        parent = path[-1] if path else self._root
        if parent.end != piece.begin or piece.nbytes > self.capacity_bytes:
            return
        own = tokens[piece.begin : piece.end]
        self._put(parent, own, piece)
        if self._disk is not None:
            self._disk.keep(parent.key, key_after(parent.key, own), own, piece)

    def forget(self, match: Match, prompt: Sequence[int]) -> None:
        """Drop the last piece of a match, and all that follows it: it turned out to be unusable."""
        path = self._walk(tuple(prompt), match.num_tokens, with_disk=False)
        if path and path[-1].end == match.num_tokens:
            for node in reversed(self._nodes(path[-1])):
                self._drop(node)

    def close(self) -> None:
        """Drop everything in memory; finish writing what goes to disk."""
        self._root = self._new_root()
        self.nbytes = self.entries = 0
        if self._disk is not None:
            self._disk.close()

    def _new_root(self) -> _Node:
        return _Node((), None, None, self._disk.first_key if self._disk else "")

    def _walk(self, tokens: Tokens, limit: int, *, with_disk: bool = True) -> list[_Node]:
        """Return the nodes that a prompt goes through, none past token `limit`."""
        node, tokens = self._root, tokens[:limit]
        while node.end < limit:
            child = node.longest_child(tokens)
            if with_disk and (child is None or not child.can_be_last):
                child = self._load_child(node, tokens) or child
            if child is None:
                break
            child.last_used = next(self._clock)
            node = child
        return node.path()

    def _load_child(self, node: _Node, prompt: Tokens) -> _Node | None:
        """Bring in what the disk has of the next tokens, when it is more than is here."""
        if self._disk is None:
            return None
        stored = sorted(self._disk.after(node.key), key=lambda one: one.num_tokens, reverse=True)
        for one in stored:
            tokens = prompt[node.end : node.end + one.num_tokens]
            if key_after(node.key, tokens) != one.key:
                continue
            known = node.child(tokens)
            if known is not None and (known.can_be_last or not one.can_be_last):
                continue
            piece = self._disk.load(one, tokens, node.end)
            if piece is not None and piece.nbytes <= self.capacity_bytes:
                return self._put(node, tokens, piece)
        return None

    def _put(self, parent: _Node, tokens: Tokens, piece: StatePiece) -> _Node | None:
        """Add a piece, or more of one; None when there is no room beside what it stands on."""
        node = parent.child(tokens)
        if node is None:
            node = _Node(tokens, piece, parent, key_after(parent.key, tokens))
            parent.add(node)
            self.entries += 1
            self.nbytes += piece.nbytes
        elif node.piece and piece.can_be_last and not node.can_be_last:
            self.nbytes += piece.nbytes - node.piece.nbytes
            node.piece = piece
        for used in node.path():
            used.last_used = next(self._clock)
        return node if self._make_room(node) else None

    def _make_room(self, newest: _Node) -> bool:
        """Drop leaves until the rest fits; return whether the newest is among the rest."""
        while self.nbytes > self.capacity_bytes:
            leaves = [node for node in self._nodes() if not node.children and node is not newest]
            if not leaves:
                self._drop(newest)
                return False
            self._drop(min(leaves, key=lambda node: node.last_used))
        return True

    def _nodes(self, top: _Node | None = None) -> list[_Node]:
        """Return all nodes under the root, or one and all under it; parents before children."""
        waiting = [self._root if top is None else top]
        found = []
        while waiting:
            node = waiting.pop()
            found.append(node)
            waiting += [child for some in node.children.values() for child in some.values()]
        return found if top else found[1:]

    def _drop(self, node: _Node) -> None:
        """Take out a node that has no children."""
        if node.parent is not None and node.piece is not None:
            node.parent.remove(node)
            self.entries -= 1
            self.nbytes -= node.piece.nbytes
