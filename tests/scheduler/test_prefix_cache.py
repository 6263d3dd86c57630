"""The tree of kept pieces, against a list of everything that was ever kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kandiga_run.kv.prompt_cache import StateIdentity
from kandiga_run.kv.snapshot import LayerPiece, StatePiece
from kandiga_run.scheduler.disk_pieces import DiskPieces
from kandiga_run.scheduler.prefix_cache import PrefixCache

CHUNK = 2
IDENTITY = StateIdentity("model", 2, "int16", "auto")
# Few different tokens: prompts share beginnings.
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
Tokens = tuple[int, ...]


def piece_of(tokens: Sequence[int], begin: int, *, can_be_last: bool = True) -> StatePiece:
    """Return a piece that holds its own tokens as keys, and all of them as recurrent state."""
    own = np.array(tokens[begin:], np.float32).reshape(1, -1, 1)
    keys = LayerPiece({"format": "f32"}, {"keys": own, "values": own})
    everything = LayerPiece({"format": "recurrent"}, {"conv": np.array(tokens, np.float32)})
    left_out = LayerPiece({"format": "left out"}, {})
    return StatePiece(begin, len(tokens), (keys, everything if can_be_last else left_out))


def read(cache: PrefixCache, prompt: Tokens, *, hybrid: bool) -> int:
    """Use and keep a prompt as the scheduler does; return how much of it was kept."""
    match = cache.match(prompt)
    check_pieces(match.pieces, prompt)
    assert match.num_tokens < len(prompt)
    for end in range(match.num_tokens + CHUNK, len(prompt) + 1, CHUNK):
        is_wanted = end + CHUNK >= len(prompt) or end == match.known_tokens
        can_be_last = is_wanted or not hybrid
        begin = cache.missing_from(prompt[:end], can_be_last=can_be_last)
        if begin is not None:
            cache.keep(prompt[:end], piece_of(prompt[:end], begin, can_be_last=can_be_last))
    return match.num_tokens


def check_pieces(pieces: Sequence[StatePiece], prompt: Tokens) -> None:
    """What comes out was made of the prompt's own tokens, in order and without a gap."""
    position = 0
    for piece in pieces:
        keys = piece.layers[0].arrays["keys"].ravel().tolist()
        assert piece.begin == position
        assert keys == list(prompt[piece.begin : piece.end])
        position = piece.end
    if pieces:
        assert pieces[-1].can_be_last
        assert pieces[-1].layers[1].arrays["conv"].tolist() == list(prompt[:position])


def common_chunks(first: Tokens, second: Tokens) -> int:
    same = next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), None)  # noqa: B905
    length = min(len(first), len(second)) if same is None else same
    return length // CHUNK * CHUNK


@given(st.lists(prompts, max_size=12))
def test_all_that_was_read_is_found(read_before: list[Tokens]) -> None:
    cache = PrefixCache(1 << 20)
    for index, prompt in enumerate(read_before):
        longest = max((common_chunks(prompt, other) for other in read_before[:index]), default=0)
        expected = min(longest, (len(prompt) - 1) // CHUNK * CHUNK)
        assert read(cache, prompt, hybrid=False) == expected


@given(st.lists(prompts, max_size=12))
def test_a_prompt_read_twice_is_found_with_recurrent_state(read_before: list[Tokens]) -> None:
    cache = PrefixCache(1 << 20)
    for prompt in read_before:
        read(cache, prompt, hybrid=True)
        assert read(cache, prompt, hybrid=True) == (len(prompt) - 1) // CHUNK * CHUNK


@given(st.lists(prompts, max_size=20), st.integers(1, 600), st.booleans())
def test_bytes_stay_within_the_bound(
    read_before: list[Tokens], capacity_bytes: int, hybrid: bool
) -> None:
    cache = PrefixCache(capacity_bytes)
    for prompt in read_before:
        read(cache, prompt, hybrid=hybrid)
        assert 0 <= cache.nbytes <= capacity_bytes
        assert (cache.nbytes == 0) == (cache.entries == 0)
    cache.close()
    assert (cache.nbytes, cache.entries) == (0, 0)


def open_disk(folder: Path, capacity_bytes: int = 1 << 20) -> DiskPieces:
    return DiskPieces(folder, capacity_bytes, IDENTITY, chunk_tokens=CHUNK, pending_bytes=1 << 20)


@given(st.lists(prompts, max_size=6), st.booleans())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_disk_gives_back_what_memory_had(
    tmp_path_factory: pytest.TempPathFactory, read_before: list[Tokens], hybrid: bool
) -> None:
    folder = tmp_path_factory.mktemp("disk")
    first = PrefixCache(1 << 20, disk=open_disk(folder))
    for prompt in read_before:
        read(first, prompt, hybrid=hybrid)
    expected = [first.match(prompt).num_tokens for prompt in read_before]
    first.close()
    second = PrefixCache(1 << 20, disk=open_disk(folder))
    for prompt, num_tokens in zip(read_before, expected, strict=True):
        match = second.match(prompt)
        check_pieces(match.pieces, prompt)
        assert match.num_tokens == num_tokens
    second.close()


def test_what_was_used_last_stays() -> None:
    cache = PrefixCache(3 * piece_of((1, 1), 0).nbytes)
    for first in (1, 2, 3):
        read(cache, (first, first, 0), hybrid=False)
    read(cache, (1, 1, 5), hybrid=False)
    read(cache, (4, 4, 0), hybrid=False)
    assert cache.match((1, 1, 0)).num_tokens == CHUNK
    assert cache.match((2, 2, 0)).num_tokens == 0


def test_a_long_prompt_does_not_recurse() -> None:
    cache = PrefixCache(1 << 30)
    prompt = tuple(range(2 * CHUNK * 2000))
    for end in range(CHUNK, len(prompt), CHUNK):
        own = np.zeros((1, CHUNK, 1), np.float32)
        layer = LayerPiece({"format": "f32"}, {"keys": own, "values": own})
        if end < 200 or end > len(prompt) - 200:  # one piece for the middle: walking costs
            begin = cache.missing_from(prompt[:end], can_be_last=True)
            assert begin is not None
            cache.keep(prompt[:end], StatePiece(begin, end, (layer,)))
    assert cache.match(prompt).num_tokens == len(prompt) - CHUNK


def test_two_models_share_a_folder(tmp_path: Path) -> None:
    first = PrefixCache(1 << 20, disk=open_disk(tmp_path))
    read(first, (1, 2, 3, 4, 5), hybrid=True)
    first.close()
    other_identity = StateIdentity("other", 2, "int16", "auto")
    disk = DiskPieces(tmp_path, 1 << 20, other_identity, chunk_tokens=CHUNK, pending_bytes=1 << 20)
    second = PrefixCache(1 << 20, disk=disk)
    assert second.match((1, 2, 3, 4, 5)).num_tokens == 0
    second.close()
