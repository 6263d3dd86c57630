"""Compressed caches in mlx-lm's models: against the reference, and beside mlx-lm's own caches."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import ArraysCache, KVCache, load_prompt_cache, save_prompt_cache

from cython_kernels.reference import turboquant as tq
from kandiga_run.engine import EngineOptions
from kandiga_run.errors import RunError
from kandiga_run.mlx_engine.kv_attention import attention
from kandiga_run.mlx_engine.kv_cache import CHUNK_BLOCKS, TurboQuantCache
from kandiga_run.mlx_engine.kv_code import Code

from .conftest import PackedFactory
from .test_families import RUNNABLE

TOKENS = np.random.default_rng(3).integers(0, 256, 200).astype(np.int32)
# A coordinate within float32's rounding of a border takes the other code: here and there one.
MAX_FLIPPED_ROWS = 0.02
# Sums of some hundred products in float32; without that, rows that differ would be seen at 1e-2.
ATTENTION_ROUNDINGS = 2e-5
# Their attention keeps a latent (MLA) and computes keys and values from all of it in each step.
REFUSED = {
    *("bailing_hybrid", "bailing_moe_v3", "deepseek_v3", "glm4_moe_lite", "kimi_k25", "kimi_k3"),
    *("kimi_linear", "kimi_vl", "mistral3", "mistral4"),
}


def rows_of(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mean = 2 * rng.standard_normal((*shape[:-2], 1, shape[-1]))
    return (rng.standard_normal(shape) + mean).astype(np.float16)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("head_dim", [20, 64, 80, 128])
@pytest.mark.parametrize("coding", ["keys", "values"])
def test_code_is_the_references(bits: int, head_dim: int, coding: tq.Coding) -> None:
    rows = rows_of(bits, 2, 3, 256, head_dim)
    code = Code(bits, head_dim, coding == "keys")
    packed, scales, means = code.encode(mx.array(rows))
    assert packed.shape == (2, 3, 256, -(-head_dim // 8) * bits)
    found = np.array(code.decode(packed, scales, means))
    wanted = np.empty_like(found)
    for index in np.ndindex(2, 3, 2):
        block = (*index[:2], slice(index[2] * 128, index[2] * 128 + 128))
        wanted[block] = tq.encode(rows[block], bits, coding).rows()
    differs = np.abs(found - wanted).max(axis=-1) > 1e-5
    assert differs.mean() < MAX_FLIPPED_ROWS


def expected_attention(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    cache: TurboQuantCache,
    scale: float,
    least_blocks: int = 0,
) -> np.ndarray:
    """Each query sees sinks and 17 to 144 tokens up to itself as float16, others decoded."""
    length, tokens = keys.shape[2], q.shape[2]
    assert cache.coded is not None
    decoded_keys, decoded_values = keys.astype(np.float64), values.astype(np.float64)
    num_coded = cache.num_blocks * 128
    decoded_keys[:, :, 4 : 4 + num_coded] = np.array(cache.coded[0].decode())
    decoded_values[:, :, 4 : 4 + num_coded] = np.array(cache.coded[1].decode())
    out = np.empty((*q.shape[:3], values.shape[3]))
    group = q.shape[1] // keys.shape[1]
    for row in range(tokens):
        position = length - tokens + row
        own = 4 + max(least_blocks, max(0, position - 20) // 128) * 128
        for head in range(q.shape[1]):
            k = np.concatenate([decoded_keys[0, head // group, :own], keys[0, head // group, own:]])
            v = np.concatenate(
                [decoded_values[0, head // group, :own], values[0, head // group, own:]]
            )
            scores = k[: position + 1] @ q[0, head, row].astype(np.float64) * scale
            weights = np.exp(scores - scores.max())
            out[0, head, row] = weights @ v[: position + 1] / weights.sum()
    return out


def attend(cache: TurboQuantCache, q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> Any:
    """Append keys and values (1, H, T, D), then attend as mlx-lm's models do."""
    fetched = cache.update_and_fetch(mx.array(keys), mx.array(values))
    mask = "causal" if q.shape[2] > 1 else None
    return np.array(attention(mx.array(q), *fetched, cache=cache, scale=0.1, mask=mask))


@pytest.mark.parametrize("steps", [(700,), (512, 188), (1,) * 3 + (130, 260, 306, 1)])
def test_attention_sees_the_same_however_a_prompt_is_cut(steps: tuple[int, ...]) -> None:
    keys, values = rows_of(1, 1, 2, 700, 64), rows_of(2, 1, 2, 700, 32)
    q = rows_of(3, 1, 6, 700, 64).astype(np.float32)
    cache, start, found = TurboQuantCache(4, 3), 0, []
    for step in steps:
        part = slice(start, start + step)
        found.append(attend(cache, q[:, :, part], keys[:, :, part], values[:, :, part]))
        start += step
    assert (cache.offset, cache.num_blocks, cache.keys.shape[2]) == (700, 5, 700 - 5 * 128)
    wanted = expected_attention(q, keys, values, cache, 0.1)
    np.testing.assert_allclose(
        np.concatenate(found, axis=2), wanted, atol=ATTENTION_ROUNDINGS * np.abs(values).max()
    )


def test_masks_and_attention_sinks_of_the_model() -> None:
    """A mask as an array, boolean or added, hides what the word "causal" does; a sink is a score
    without a value.
    """
    keys, values = rows_of(1, 1, 1, 300, 32), rows_of(2, 1, 1, 300, 32)
    q = mx.array(rows_of(3, 1, 2, 300, 32).astype(np.float32))
    causal = mx.array(np.tril(np.ones((300, 300), bool)))
    added = mx.where(causal, 0.0, -mx.inf)
    results = []
    for mask in ("causal", causal, added, causal[None, None], added[None, None]):
        cache = TurboQuantCache(4, 4)
        fetched = cache.update_and_fetch(mx.array(keys), mx.array(values))
        results.append(np.array(attention(q, *fetched, cache, 0.1, mask)))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    cache = TurboQuantCache(4, 4)
    fetched = cache.update_and_fetch(mx.array(keys), mx.array(values))
    with_sink = np.array(attention(q, *fetched, cache, 0.1, "causal", mx.array([1e4, -1e4])))
    assert not with_sink[:, 0].any()
    np.testing.assert_allclose(with_sink[:, 1], results[0][:, 1], atol=1e-6)


def test_trim_goes_back_into_a_coded_block() -> None:
    keys, values = rows_of(1, 1, 2, 600, 64), rows_of(2, 1, 2, 600, 64)
    q = rows_of(3, 1, 2, 600, 64).astype(np.float32)
    cache = TurboQuantCache(4, 4)
    attend(cache, q[:, :, :500], keys[:, :, :500], values[:, :, :500])
    assert cache.trim(50) == 50
    assert (cache.offset, cache.num_blocks, cache.keys.shape[2]) == (450, 3, 450 - 384)
    assert cache.coded is not None
    before = cache.coded[0]
    assert cache.trim(200) == 200
    assert (cache.offset, cache.num_blocks, cache.keys.shape[2]) == (250, 1, 250 - 128)
    opened = np.array(before.blocks(1, 2).decode())[:, :, : 250 - 132]
    np.testing.assert_array_equal(np.array(cache.keys)[:, :, 4:], opened.astype(np.float16))
    attend(cache, q[:, :, 250:], keys[:, :, 250:], values[:, :, 250:])
    assert cache.offset == 600
    assert cache.trim(598) == 598
    assert (cache.offset, cache.num_blocks, cache.keys.shape[2]) == (2, 0, 2)
    np.testing.assert_array_equal(np.array(cache.keys), keys[:, :, :2])
    assert cache.trim(5) == 2


def test_trim_to_just_after_a_coded_block() -> None:
    """It stays coded, though a sequence of that length would not have coded it yet."""
    keys, values = rows_of(1, 1, 2, 412, 64), rows_of(2, 1, 2, 412, 64)
    q = rows_of(3, 1, 2, 412, 64).astype(np.float32)
    cache = TurboQuantCache(4, 4)
    attend(cache, q[:, :, :410], keys[:, :, :410], values[:, :, :410])
    cache.trim(15)
    assert (cache.offset, cache.num_blocks) == (395, 3)
    more = slice(395, 412)
    found = attend(cache, q[:, :, more], keys[:, :, more], values[:, :, more])
    wanted = expected_attention(q[:, :, more], keys, values, cache, 0.1, least_blocks=3)
    np.testing.assert_allclose(found, wanted, atol=ATTENTION_ROUNDINGS * np.abs(values).max())


def test_saved_and_loaded_by_mlx_lm(tmp_path: Path) -> None:
    keys, values = rows_of(1, 1, 2, 300, 80), rows_of(2, 1, 2, 300, 80)
    q = rows_of(3, 1, 2, 300, 80).astype(np.float32)
    caches = [TurboQuantCache(3, 3), TurboQuantCache(4, 2), TurboQuantCache(8, 8)]
    attend(caches[0], q[:, :, :299], keys[:, :, :299], values[:, :, :299])
    attend(caches[1], q[:, :, :99], keys[:, :, :99], values[:, :, :99])
    file = str(tmp_path / "cache.safetensors")
    save_prompt_cache(file, caches, {"model": "tiny"})
    loaded, metadata = load_prompt_cache(file, return_metadata=True)
    assert metadata == {"model": "tiny"}
    for cache, copy in zip(caches, loaded, strict=True):
        assert (copy.offset, copy.nbytes, copy.format) == (cache.offset, cache.nbytes, cache.format)
    last = slice(299, 300)
    results = [
        attend(cache, q[:, :, last], keys[:, :, last], values[:, :, last])
        for cache in (caches[0], loaded[0])
    ]
    np.testing.assert_array_equal(*results)
    with pytest.raises(RunError, match="version 9"):
        caches[0].state = [mx.array([9, 4, 4, 0, 0, 0]), None, None]


def test_size_is_that_of_the_arrays_held() -> None:
    rows = rows_of(1, 1, 2, 132 + 128 * 31, 256)
    q = rows[:, :, :1].astype(np.float32)
    cache = TurboQuantCache(4, 3)
    for start in range(0, rows.shape[2], 512):
        cache.update_and_fetch(*(mx.array(rows[:, :, start : start + 512]),) * 2)
        cache.drop_coded(cache.code_full_blocks())
    assert q.any()
    plain_bytes = 2 * rows.nbytes
    # 3.5 bits and a scale a row and a mean a block, beside 132 tokens of float16.
    assert 3.9 < plain_bytes / cache.nbytes < 4.1


def test_attention_never_holds_the_cache_decoded() -> None:
    """Its memory is that of a few blocks: it does not grow with the cache."""
    peaks = []
    q = mx.array(rows_of(3, 1, 4, 1, 64).astype(np.float32))
    for chunks in (2, 8):
        length = 4 + 128 * CHUNK_BLOCKS * chunks + 1
        rows = mx.array(rows_of(1, 1, 2, length, 64))
        cache = TurboQuantCache(4, 4)
        cache.update_and_fetch(rows, rows)
        cache.drop_coded(cache.code_full_blocks())
        del rows
        mx.eval(cache.state)
        fetched = cache.update_and_fetch(*(mx.zeros((1, 2, 1, 64), mx.float16),) * 2)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(attention(q, *fetched, cache=cache, scale=0.1, mask=None))
        peaks.append(mx.get_peak_memory() - before)
        decoded_bytes = 2 * 2 * length * 64 * 4
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < decoded_bytes


@pytest.mark.parametrize("family", RUNNABLE)
def test_every_family_computes_with_it_or_says_that_it_cannot(
    packed: PackedFactory, family: str
) -> None:
    model = packed(family)
    with model.engine() as engine:
        plain = engine.new_state(400)
        wanted = engine.forward(TOKENS, plain, logits="all")
        kinds = [type(entry) for entry in plain.cache]
    # With 8 bits in every layer the tiny routers, which a fourth bit upsets, mostly choose alike.
    with model.engine(EngineOptions(kv="k8v4", kv_protect=99)) as engine:
        state = engine.new_state(400)
        if family in REFUSED:
            with pytest.raises(RunError, match="use --kv fp16"):
                engine.forward(TOKENS, state)
            return
        found = engine.forward(TOKENS, state, logits="all")
        compressed = [isinstance(entry, TurboQuantCache) for entry in state.cache]
        assert compressed == [kind is KVCache for kind in kinds]
        assert state.recurrent_nbytes == sum(
            entry.nbytes for entry in state.cache if isinstance(entry, ArraysCache)
        )
        error = np.abs(found - wanted)[132:].mean()
        if any(compressed):
            assert engine.stats.is_lossy
            assert "kv8" in state.kv_format
            assert 0 < error < 0.1
        else:
            assert error == 0


def test_boundary_layers_and_auto(packed: PackedFactory) -> None:
    model = packed("qwen3_moe")
    with model.engine(EngineOptions(kv="kv3", kv_protect=1)) as engine:
        state = engine.new_state(8)
        engine.forward(TOKENS[:3], state)
        formats = [entry.format for entry in state.cache]
        assert formats == ["kv8", *["kv3"] * (len(formats) - 2), "kv8"]
    with model.engine(EngineOptions()) as engine:
        assert all(type(entry) is KVCache for entry in engine.new_state(8).cache)
        assert engine.stats.kv == "fp16"
    with pytest.raises(RunError, match="--kv-qjl: the mlx engine has no QJL"):
        model.engine(EngineOptions(kv="kv3", kv_qjl=True)).__enter__()


def test_mlx_lm_generates_with_it(packed: PackedFactory) -> None:
    """`mlx_lm.generate` takes the caches as they are, and goes on where the engine stopped."""
    with packed("qwen3_moe").engine(EngineOptions(kv="k8v4")) as engine:
        network = engine._network
        assert network is not None
        states = [engine.new_state(400) for _ in range(2)]
        logits = [engine.forward(TOKENS[:190], state) for state in states]
        np.testing.assert_array_equal(*logits)
        token = int(logits[0][0].argmax())
        wanted = []
        for _ in range(3):
            row = engine.forward(np.array([token], np.int32), states[0])[0]
            token = int(row.argmax())
            wanted.append(token)
        first = mx.array([int(logits[1][0].argmax())])
        step = generate_step(first, network.module, prompt_cache=states[1].cache, max_tokens=3)
        assert [int(token) for token, _ in step] == wanted
        assert states[1].cache[0].offset >= 192
