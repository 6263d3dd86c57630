"""The compressed KV cache: chunks, trimming, sizes, and what each choice of --kv holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cython_kernels import add_query_energies
from kandiga_run.errors import RunError
from kandiga_run.kv.auto import AutoKVCache
from kandiga_run.kv.choices import KV_CHOICES, check_kv
from kandiga_run.kv.formats import KVPlan
from kandiga_run.kv.plain import PlainKVCache
from kandiga_run.kv.turboquant import (
    BLOCK_TOKENS,
    RECENT_TOKENS,
    SINK_TOKENS,
    Coding,
    TurboQuantKVCache,
)

CLEAR_REFS = Path("/proc/self/clear_refs")
HEADS, GROUP, DIM = 2, 2, 64
SCALE = DIM**-0.5
Array = NDArray[Any]


def rows(seed: int, tokens: int, heads: int = HEADS) -> Array:
    return np.random.default_rng(seed).standard_normal((tokens, heads, DIM)).astype(np.float32)


def peak_bytes() -> int:
    """The most that was resident since the peak was cleared."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) * 1024


def run(cache: Any, keys: Array, values: Array, queries: Array, chunks: list[int]) -> Array:
    """What each token attends to, the sequence given in chunks."""
    out, begin = np.empty_like(queries), 0
    for chunk in chunks:
        end = begin + chunk
        cache.append(keys[begin:end], values[begin:end])
        cache.attend(queries[begin:end], SCALE, out[begin:end])
        begin = end
    return out


def sequence(tokens: int) -> tuple[Array, Array, Array]:
    return rows(1, tokens), rows(2, tokens), rows(3, tokens, HEADS * GROUP)


def relative_error(seen: Array, wanted: Array) -> float:
    return float(np.linalg.norm(seen - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("chunks", [[600], [1] * 600, [148, 1, 451], [4, 144, 1, 300, 151]])
def test_chunks_do_not_matter(chunks: list[int]) -> None:
    keys, values, queries = sequence(600)
    want = run(TurboQuantKVCache(HEADS, DIM, 600, Coding(4, 3)), keys, values, queries, [600])
    cache = TurboQuantKVCache(HEADS, DIM, 600, Coding(4, 3))
    seen = run(cache, keys, values, queries, chunks)
    # Other tiles of rows, other order of float32 sums; a row's rounding to bytes is its own.
    np.testing.assert_allclose(seen, want, atol=2e-6)
    assert (cache.length, cache.format) == (600, "k4v3")


# Squared error of a key's score and of a value, by bits: Lloyd-Max; 8 bits with the query's own
# rounding; 2 bits and a sign (QJL, orthogonal projection) for "3-qjl".
SQUARED_ERROR = {8: 4.5e-5, 4: 0.0095, 3: 0.0345, 2: 0.1175}
QJL_ERROR = 0.0635


@pytest.mark.parametrize(
    "coding",
    [
        *(Coding(k, v) for k, v in ((8, 8), (8, 4), (4, 4), (4, 3), (3, 3), (4, 2))),
        Coding(3, 3, True),
    ],
    ids=lambda coding: coding.name,
)
def test_close_to_the_plain_cache(coding: Coding) -> None:
    keys, values, queries = sequence(900)
    want = run(PlainKVCache(HEADS, DIM, 900, np.float16), keys, values, queries, [300] * 3)
    seen = run(TurboQuantKVCache(HEADS, DIM, 900, coding), keys, values, queries, [300] * 3)
    # The first 148 tokens see nothing coded.
    np.testing.assert_allclose(seen[:148], want[:148], atol=1e-6)
    of_keys = QJL_ERROR if coding.qjl else SQUARED_ERROR[coding.key_bits]
    error = (of_keys + SQUARED_ERROR[coding.value_bits]) ** 0.5
    assert 0.8 * error < relative_error(seen[148:], want[148:]) < 1.1 * error


def test_more_bits_are_closer() -> None:
    keys, values, queries = sequence(700)
    want = run(PlainKVCache(HEADS, DIM, 700, np.float16), keys, values, queries, [700])
    errors = [
        relative_error(
            run(TurboQuantKVCache(HEADS, DIM, 700, coding), keys, values, queries, [700]), want
        )
        for coding in (Coding(8, 8), Coding(4, 4), Coding(3, 3), Coding(2, 2))
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize("trimmed", [1, 84, 85, 86, 100, 101, 140, 228, 357, 483, 486, 490])
def test_trim(trimmed: int) -> None:
    """Kept tokens stay as they were held, so what follows differs by less than coding does."""
    keys, values, queries = sequence(490)
    cache = TurboQuantKVCache(HEADS, DIM, 2000, Coding(4, 4))
    run(cache, keys, values, queries, [490])
    cache.trim(trimmed)
    kept = 490 - trimmed
    assert cache.length == kept
    plain = PlainKVCache(HEADS, DIM, 2000, np.float16)
    more_keys, more_values, more_queries = rows(4, 300), rows(5, 300), rows(6, 300, HEADS * GROUP)
    if kept:
        run(plain, keys[:kept], values[:kept], queries[:kept], [kept])
    want = run(plain, more_keys, more_values, more_queries, [300])
    seen = run(cache, more_keys, more_values, more_queries, [7, 293])
    assert cache.length == kept + 300
    assert relative_error(seen, want) < (2 * SQUARED_ERROR[4]) ** 0.5


def test_trim_of_tokens_not_yet_stored() -> None:
    keys, values, _ = sequence(500)
    cache = TurboQuantKVCache(HEADS, DIM, 500, Coding(4, 4))
    cache.append(keys, values)
    assert cache.length == 500
    cache.trim(450)
    assert cache.length == 50
    cache.append(keys[50:], values[50:])
    assert cache.length == 500
    with pytest.raises(ValueError, match="cannot trim 501 of 500"):
        cache.trim(501)
    with pytest.raises(ValueError, match="501 tokens in a cache made for 500"):
        cache.append(keys[:1], values[:1])


def test_two_appends_and_one_attend() -> None:
    keys, values, queries = sequence(400)
    want = run(TurboQuantKVCache(HEADS, DIM, 400, Coding(4, 4)), keys, values, queries, [300, 100])
    cache = TurboQuantKVCache(HEADS, DIM, 400, Coding(4, 4))
    cache.append(keys[:300], values[:300])
    cache.append(keys[300:], values[300:])
    out = np.empty_like(queries[300:])
    cache.attend(queries[300:], SCALE, out)
    # Keys are coded for the queries seen by then, which are others here.
    assert relative_error(out, want[300:]) < (2 * SQUARED_ERROR[4]) ** 0.5


def test_auto_is_plain_until_it_is_long() -> None:
    keys, values, queries = sequence(1500)
    chunks = [200] * 7 + [100]
    plain = run(PlainKVCache(HEADS, DIM, 1500, np.float16), keys, values, queries, chunks)
    coded = TurboQuantKVCache(HEADS, DIM, 1500, Coding(4, 3))
    cache = AutoKVCache(HEADS, DIM, 1500, np.float16, Coding(4, 3), plain_tokens=700)
    seen, formats, begin = np.empty_like(queries), [], 0
    for chunk in chunks:
        end = begin + chunk
        seen[begin:end] = run(
            cache, keys[begin:end], values[begin:end], queries[begin:end], [chunk]
        )
        formats.append(cache.format)
        begin = end
    # The chunk that crosses 700 began below it.
    assert formats == ["f16"] * 4 + ["k4v3"] * 4
    np.testing.assert_array_equal(seen[:800], plain[:800])
    run(coded, keys, values, queries, chunks)
    later = run(TurboQuantKVCache(HEADS, DIM, 1500, Coding(4, 3)), keys, values, queries, chunks)
    # The first blocks are coded for 800 queries here, there for those before each.
    error = (SQUARED_ERROR[4] + SQUARED_ERROR[3]) ** 0.5
    assert relative_error(seen[800:], later[800:]) < error
    assert relative_error(seen[800:], plain[800:]) < 1.1 * error
    energies_bytes = 4 * HEADS * DIM
    assert cache.nbytes == coded.nbytes + energies_bytes
    cache.trim(1500)
    assert cache.length == 0


@pytest.mark.parametrize("tokens", [4096, 32768])
def test_compression_counts_everything(tokens: int) -> None:
    """Sinks, tail and tables counted, at the 35B shape: the goals of specs/turboquant.md."""
    goals = {"k4v3": {4096: 3.9, 32768: 4.2}, "kv3": {4096: 4.4, 32768: 4.9}}
    plain = PlainKVCache.bytes_for(2, 256, tokens, np.float16)
    for name, goal in goals.items():
        format_ = KVPlan(name, np.dtype(np.float16)).layer(0, 1)
        cache = format_.new_cache(2, 256, tokens)
        cache.take_plain(*(np.zeros((2, tokens, 256), np.float16) for _ in range(2)))
        assert cache.length == tokens
        assert plain / cache.nbytes >= goal[tokens]
        # The tables that find the blocks are not known before: 12 bytes a block.
        assert cache.nbytes == pytest.approx(format_.bytes_for(2, 256, tokens), rel=1e-3)


def test_keys_are_coded_for_what_queries_look_at() -> None:
    """The same codes with and without energies, when a few channels of queries have most of it."""
    keys, values, queries = sequence(900)
    queries *= np.exp(np.random.default_rng(7).standard_normal(DIM)).astype(np.float32)
    halves = [a.transpose(1, 0, 2).astype(np.float16) for a in (keys, values)]
    plain = PlainKVCache(HEADS, DIM, 900, np.float16)
    plain.append(keys, values)
    energies = np.zeros((HEADS, DIM), np.float32)
    add_query_energies(queries, energies)
    errors = []
    for known in (None, energies):
        cache = TurboQuantKVCache(HEADS, DIM, 900, Coding(3, 8))
        cache.take_plain(*halves, known)
        wanted, seen = np.empty_like(queries[-1:]), np.empty_like(queries[-1:])
        plain.attend(queries[-1:], SCALE, wanted)
        cache.attend(queries[-1:], SCALE, seen)
        errors.append(relative_error(seen, wanted))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="peaks are Linux's")
def test_a_prompt_at_depth_never_decodes_the_cache() -> None:
    """A chunk of a prompt after 32K tokens takes far less memory than those tokens decoded."""
    heads, head_dim, num_tokens, chunk = 2, 256, 32768, 256
    cache = TurboQuantKVCache(heads, head_dim, num_tokens + chunk, Coding(4, 3))
    halves = np.zeros((heads, num_tokens, head_dim), np.float16)
    halves[:] = np.random.default_rng(1).standard_normal((heads, 1, head_dim))
    cache.take_plain(halves, halves)
    more = np.zeros((chunk, heads, head_dim), np.float32)
    queries = np.ones((chunk, 8, head_dim), np.float32)
    out = np.empty_like(queries)
    CLEAR_REFS.write_text("5")  # the peak begins again at what is resident
    before = peak_bytes()
    cache.append(more, more)
    cache.attend(queries, head_dim**-0.5, out)
    decoded_bytes = 2 * halves.nbytes
    # 128 tokens' partial sums for each range of blocks: 13 MB seen, whatever the length.
    assert peak_bytes() - before < 0.5 * decoded_bytes


def test_boundary_layers_are_counted_over_layers_with_keys() -> None:
    plan = KVPlan("kv3", np.dtype(np.float16), protected_layers=2)
    names = [plan.layer(index, 7).new_cache(1, 64, 8).format for index in range(7)]
    assert names == ["kv8", "kv8", "kv3", "kv3", "kv3", "kv8", "kv8"]
    assert KVPlan("kv3", np.dtype(np.float16), qjl=True).layer(3, 9).coding.name == "kv3-qjl"


def test_auto_has_no_overhead_for_short_states() -> None:
    plan = KVPlan("auto", np.dtype(np.float16))
    assert isinstance(plan.layer(0, 4).new_cache(2, 64, 8192), PlainKVCache)
    assert isinstance(plan.layer(0, 4).new_cache(2, 64, 131072), AutoKVCache)
    assert isinstance(plan.layer(0, 4).new_cache(2, 1024, 131072), PlainKVCache)
    with pytest.raises(RunError, match="head_dim 1024 cannot be compressed"):
        KVPlan("kv4", np.dtype(np.float16)).layer(0, 4).new_cache(2, 1024, 131072)


def test_choices_that_do_not_go_together() -> None:
    for choice in KV_CHOICES:
        check_kv(choice, False, 0)
    with pytest.raises(RunError, match="kv is 'kv5', wanted one of auto"):
        check_kv("kv5", False, 0)
    with pytest.raises(RunError, match="belong to a compressed KV cache, and kv is auto"):
        check_kv("auto", True, 0)
    with pytest.raises(RunError, match="and kv is fp16"):
        check_kv("fp16", False, 1)
    with pytest.raises(RunError, match="k8v4 has 8"):
        check_kv("k8v4", True, 0)
    with pytest.raises(RunError, match="kv_protect is -1"):
        check_kv("kv3", False, -1)


def test_block_and_sinks_are_those_of_the_kernels() -> None:
    cache = TurboQuantKVCache(1, 64, 10000, Coding(2, 2))
    energies_bytes = 4 * 64
    assert (
        cache.nbytes == 2 * 2 * 64 * (SINK_TOKENS + BLOCK_TOKENS + RECENT_TOKENS) + energies_bytes
    )
