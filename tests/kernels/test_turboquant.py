"""The compressed KV cache on every instruction set this machine runs, against numpy float64."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import cython_kernels as ck
from cython_kernels import _kernels
from cython_kernels.reference import turboquant as tq
from kandiga_run.memory.use import memory_use
from kernels.cases import Case, check, guarded, misaligned, run_here
from kernels.turboquant_cases import all_cases, halves

ISAS = ck.available_isas()
Array = NDArray[Any]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.id)
def test_turboquant(case: Case, isa: str, use_isa: None) -> None:
    check(case, run_here(case, guarded))
    check(case, run_here(case, misaligned))


def coded(head_dim: int, num_blocks: int, heads: int = 2, **bits: Any) -> ck.TurboQuantBlocks:
    blocks = ck.TurboQuantBlocks(heads, head_dim, **({"key_bits": 4, "value_bits": 3} | bits))
    for index in range(num_blocks):
        blocks.encode(
            halves(index, heads, 128, head_dim), halves(-index - 1 & 99, heads, 128, head_dim), 0
        )
    return blocks


def attend(blocks: ck.TurboQuantBlocks, head_dim: int, tokens: int = 1, tail: int = 9) -> Array:
    q = halves(7, tokens, 6, head_dim).astype(np.float32)
    out = np.empty_like(q)
    keys, values = halves(8, 2, 20, head_dim), halves(9, 2, 20, head_dim)
    ck.turboquant_attention(blocks, q, keys, values, tail, head_dim**-0.5, out)
    return out


def test_codebooks_of_the_kernels_are_the_computed_ones() -> None:
    """turboquant_tables.h holds what the reference computes: each code of each width decodes so."""
    for bits in (2, 3, 4):
        rows = np.random.default_rng(bits).standard_normal((1, 128, 256)).astype(np.float16)
        want = tq.encode(rows[0], bits, "values")
        assert set(np.unique(want.codes)) == set(range(2**bits))
        blocks = ck.TurboQuantBlocks(1, 256, 8, bits)
        blocks.encode(rows, rows, 0)
        keys, values = np.empty((2, 128, 256), np.float32)
        blocks.decode(0, 0, keys, values)
        rotated = tq.rotate(values, want.signs)
        flips = np.abs(rotated - want.rotated()) > 1e-4 * np.abs(rows).max()
        # A coordinate within float32's rounding of a border is all that may differ.
        assert flips.mean() < 1e-4


@pytest.mark.parametrize("isa", ISAS)
def test_result_does_not_depend_on_the_number_of_threads(isa: str, use_isa: None) -> None:
    before = ck.num_threads()
    blocks = coded(64, 12)
    results = []
    for num_threads in (1, 2, 5):
        ck.set_num_threads(num_threads)
        results.append([attend(blocks, 64).tobytes(), attend(blocks, 64, 5).tobytes()])
    ck.set_num_threads(before)
    assert results[0] == results[1] == results[2]


@pytest.mark.skipif("amx" not in ISAS, reason="no AMX here")
@pytest.mark.parametrize("head_dim", [20, 64, 80, 256, 512])
@pytest.mark.parametrize("bits", [(3, 3, True), (4, 3, False), (8, 2, False)])
def test_tiles_give_what_vectors_give(
    head_dim: int, bits: tuple[int, int, bool], request: pytest.FixtureRequest
) -> None:
    """Sums are whole numbers in both, so each bit of the results agrees."""
    key_bits, value_bits, qjl = bits
    blocks = coded(head_dim, 3, key_bits=key_bits, value_bits=value_bits, qjl=qjl)
    blocks.trim(37)
    before = ck.isa()
    request.addfinalizer(lambda: _kernels._force_isa(before))
    results = {}
    for isa in ("avx512vnni", "amx"):
        _kernels._force_isa(isa)
        # 3, 9 and 27 query rows of a KV head: part of a tile, and two of them.
        results[isa] = [attend(blocks, head_dim, tokens) for tokens in (1, 3, 9)]
    for vectors, tiles in zip(results["avx512vnni"], results["amx"], strict=True):
        np.testing.assert_array_equal(tiles, vectors)


def test_long_caches_share_memory_and_give_it_back() -> None:
    """Blocks of several caches lie in the same huge pages, mixed; those of one that ends return."""
    rows = halves(1, 2, 128, 256)
    caches = [ck.TurboQuantBlocks(2, 256, 4, 3) for _ in range(3)]
    before = memory_use().anonymous_bytes or 0
    for _ in range(300):
        for cache in caches:
            cache.encode(rows, rows, 0)
    wanted, found = np.empty((2, caches[0].block_bytes), np.uint8)
    caches[0].save(0, wanted)
    held = (memory_use().anonymous_bytes or 0) - before
    one_cache_bytes = 300 * caches[0].block_bytes
    # A few huge pages of 2 MB beyond the blocks.
    assert held < 3 * one_cache_bytes + (8 << 20)
    caches[1].trim(150 * 128)
    del caches[0]
    left = (memory_use().anonymous_bytes or 0) - before
    assert left < 1.5 * one_cache_bytes + (8 << 20)
    # Memory that has come back is taken again, and no block lies over another.
    caches.append(ck.TurboQuantBlocks(2, 256, 4, 3))
    others = halves(2, 2, 128, 256)
    for _ in range(200):
        caches[-1].encode(others, others, 0)
    for index in (0, 31, 32, 100, 299):
        caches[1].save(index, found)
        np.testing.assert_array_equal(found, wanted)
    caches[-1].save(0, wanted)
    for index in (31, 32, 199):
        caches[-1].save(index, found)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("isa", ISAS)
def test_blocks_saved_and_loaded_and_trimmed(isa: str, use_isa: None) -> None:
    blocks = coded(80, 3)
    copy = ck.TurboQuantBlocks(2, 80, 4, 3)
    block = np.empty(blocks.block_bytes, np.uint8)
    for index, count in enumerate(blocks.counts_of_blocks()):
        blocks.save(index, block)
        copy.load(block, count)
    np.testing.assert_array_equal(attend(copy, 80), attend(blocks, 80))
    blocks.trim(0)
    blocks.trim(130)
    assert (len(blocks), blocks.num_tokens, blocks.counts_of_blocks()) == (2, 254, [128, 126])
    changed = attend(blocks, 80)
    assert not np.array_equal(changed, attend(copy, 80))
    copy.trim(128)
    copy.trim(2)
    np.testing.assert_array_equal(attend(copy, 80), changed)
    blocks.trim(254)
    assert len(blocks) == 0
    plain = np.empty((1, 6, 80), np.float32)
    q, keys, values = (
        halves(7, 1, 6, 80).astype(np.float32),
        halves(8, 2, 20, 80),
        halves(9, 2, 20, 80),
    )
    ck.attention(q, keys, values, 9, 80**-0.5, plain)
    np.testing.assert_array_equal(attend(blocks, 80), plain)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("which", ["keys", "values"])
def test_nan_reaches_the_output(which: str, isa: str, use_isa: None) -> None:
    arrays = {"keys": halves(1, 1, 128, 64), "values": halves(2, 1, 128, 64)}
    arrays[which][0, 77, 5] = np.nan
    blocks = ck.TurboQuantBlocks(1, 64, 3, 3)
    blocks.encode(arrays["keys"], arrays["values"], 0)
    q = np.ones((1, 2, 64), np.float32)
    out = np.zeros_like(q)
    ck.turboquant_attention(blocks, q, halves(3, 1, 4, 64), halves(4, 1, 4, 64), 4, 0.1, out)
    assert np.isnan(out).any()


@pytest.mark.parametrize("isa", ISAS)
def test_one_key_far_above_all_others(isa: str, use_isa: None) -> None:
    """Weights that underflow are zeros, and a block without weight adds nothing."""
    keys, values = np.zeros((1, 128, 64), np.float16), halves(2, 1, 128, 64)
    blocks = ck.TurboQuantBlocks(1, 64, 4, 4)
    blocks.encode(keys, values, 0)
    q = np.ones((1, 1, 64), np.float32)
    tail = np.full((1, 1, 64), 10, np.float16)
    out = np.zeros_like(q)
    ck.turboquant_attention(blocks, q, tail, tail, 1, 1.0, out)
    np.testing.assert_array_equal(out, 10)


def test_sizes_are_those_of_the_layout() -> None:
    """Bits an element, all told: 3 bits, a scale a row and, for keys, a mean a block."""
    blocks = ck.TurboQuantBlocks(1, 128, 3, 3)
    assert blocks.block_bytes * 8 / (128 * 128) == pytest.approx(3.25 + 3.125, abs=0.04)
    assert ck.TurboQuantBlocks(2, 256, 4, 3).block_bytes == 2 * (512 + 2 * 256 + 128 * (128 + 96))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 64, 4, 3), "num_kv_heads: 0"),
        ((1, 513, 4, 3), "head_dim: 513, expected 1 to 512"),
        ((1, 64, 5, 3), "key_bits: 5, expected 2, 3, 4 or 8"),
        ((1, 64, 4, 1), "value_bits: 1"),
    ],
)
def test_wrong_layouts(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ck.TurboQuantBlocks(*arguments)
    with pytest.raises(ValueError, match="expected 3 or 4 with qjl"):
        ck.TurboQuantBlocks(1, 64, 8, 3, qjl=True)


def test_energies_are_sums_of_squares_by_kv_head() -> None:
    q = halves(1, 3, 6, 20).astype(np.float32)
    energies = np.ones((2, 20), np.float32)
    ck.add_query_energies(q, energies)
    wanted = 1 + (q.astype(np.float64) ** 2).sum(axis=0).reshape(2, 3, 20).sum(axis=1)
    np.testing.assert_allclose(energies, wanted, rtol=1e-6)


def test_wrong_arguments() -> None:
    blocks = coded(64, 1)
    rows = halves(1, 2, 130, 64)
    with pytest.raises(ValueError, match="start: 3, expected 0 to 2"):
        blocks.encode(rows, rows, 3)
    with pytest.raises(ValueError, match="keys: float16"):
        blocks.encode(rows[:1], rows[:1], 0)
    with pytest.raises(ValueError, match="keys: float32"):
        blocks.encode(rows.astype(np.float32), rows.astype(np.float32), 0)
    with pytest.raises(ValueError, match="energies: shape"):
        blocks.encode(rows, rows, 0, np.zeros((2, 63), np.float32))
    for shape in ((3, 64), (2, 63), (0, 64)):
        with pytest.raises(ValueError, match="expected rows of 64 for a divisor of 4 heads"):
            ck.add_query_energies(np.zeros((1, 4, 64), np.float32), np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="num_tokens: 129, expected 0 to 128"):
        blocks.trim(129)
    with pytest.raises(ValueError, match="index: 1, expected 0 to 0"):
        blocks.save(1, np.empty(blocks.block_bytes, np.uint8))
    with pytest.raises(ValueError, match="num_tokens: 0, expected 1 to 128"):
        blocks.load(np.zeros(blocks.block_bytes, np.uint8), 0)
    with pytest.raises(ValueError, match="block: shape"):
        blocks.load(np.zeros(7, np.uint8), 128)
    q = np.zeros((1, 5, 64), np.float32)
    with pytest.raises(ValueError, match="keys: 2 heads, expected a divisor"):
        ck.turboquant_attention(blocks, q, rows, rows, 4, 1.0, np.empty_like(q))
