"""What the vector kernels refuse, and that the message names argument, value seen and expected."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cython_kernels as ck


def f32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def f16(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float16)


def i32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int32)


def read_only(*shape: int) -> np.ndarray:
    array = f32(*shape)
    array.flags.writeable = False
    return array


def attend(**changes: Any) -> None:
    arguments: dict[str, Any] = {
        "q": f32(2, 4, 8),
        "keys": f16(2, 9, 8),
        "values": f16(2, 9, 8),
        "kv_len": 9,
        "scale": 1.0,
        "out": f32(2, 4, 8),
    }
    ck.attention(**(arguments | changes))


def delta(**changes: Any) -> None:
    arguments: dict[str, Any] = {
        "q": f32(3, 2, 8),
        "k": f32(3, 2, 8),
        "v": f32(3, 4, 5),
        "g": f32(3, 4),
        "beta": f32(3, 4),
        "state": f32(4, 5, 8),
        "out": f32(3, 4, 5),
    }
    ck.gated_delta(**(arguments | changes))


def conv(**changes: Any) -> None:
    arguments: dict[str, Any] = {
        "x": f32(3, 8),
        "weight": f32(4, 8),
        "state": f32(3, 8),
        "out": f32(3, 8),
    }
    ck.causal_conv(**(arguments | changes))


def route(**changes: Any) -> None:
    arguments: dict[str, Any] = {
        "logits": f32(3, 8),
        "top_k": 2,
        "mode": "topk_then_softmax",
        "indices": i32(3, 2),
        "scores": f32(3, 2),
    }
    ck.top_k_routing(**(arguments | changes))


def norm(**changes: Any) -> None:
    arguments: dict[str, Any] = {"x": f32(3, 8), "weight": f32(8), "eps": 1e-6, "out": f32(3, 8)}
    ck.rms_norm(**(arguments | changes))


REFUSED: list[tuple[Callable[..., None], dict[str, Any], str]] = [
    (norm, {"x": np.zeros((3, 8))}, r"^x: float64 \(3, 8\), expected float32$"),
    (norm, {"x": [1.0]}, r"^x: list, expected a float32 array"),
    (norm, {"x": f32(3, 16)[:, ::2]}, r"^x: last axis has a stride of 8 bytes, expected 4"),
    (norm, {"x": f32(1, 1, 3, 8)}, r"^x: float32 \(1, 1, 3, 8\), expected 1 to 3 dimensions$"),
    (norm, {"x": f32()}, r"^x: float32 \(\), expected 1 to 3 dimensions$"),
    (norm, {"weight": f32(7)}, r"^weight: shape \(7,\), expected \(8,\)$"),
    (norm, {"weight": f16(8)}, r"^weight: float16 \(8,\), expected float32$"),
    (norm, {"out": f32(3, 9)}, r"^out: shape \(3, 9\), expected \(3, 8\) as x$"),
    (norm, {"out": f32(1, 3, 8)}, r"^out: shape \(1, 3, 8\), expected \(3, 8\) as x$"),
    (norm, {"out": read_only(3, 8)}, r"^out: float32 \(3, 8\), expected a writable float32 array"),
    (
        norm,
        {"out": np.lib.stride_tricks.as_strided(f32(8), (3, 8), (0, 4))},
        r"^out: axis 0 has a stride of 0 bytes, expected a multiple of 4 that is not 0$",
    ),
    (
        norm,
        {"x": np.lib.stride_tricks.as_strided(f32(40), (3, 8), (34, 4))},
        r"^x: axis 0 has a stride of 34 bytes, expected a multiple of 4$",
    ),
    (attend, {"q": f32(2, 32)}, r"^q: float32 \(2, 32\), expected 3 dimensions$"),
    (attend, {"keys": f32(2, 9, 8).astype("u2")}, r"^keys: uint16 .*, expected float16 or float32"),
    (attend, {"values": f32(2, 9, 8)}, r"^values: float32 .*, expected float16 \(2, 9, 8\) as"),
    (attend, {"values": f16(2, 7, 8)}, r"^values: float16 \(2, 7, 8\), expected float16 \(2, 9, 8"),
    (attend, {"kv_len": 10}, r"^kv_len: 10, expected 2 \(tokens of q\) to 9 \(cache capacity\)$"),
    (attend, {"kv_len": 1}, r"^kv_len: 1, expected 2"),
    (attend, {"kv_len": -1}, r"^kv_len: -1, expected 2"),
    (
        attend,
        {"q": f32(2, 5, 8), "out": f32(2, 5, 8)},
        r"^keys: 2 heads, expected a divisor of the 5 heads of q$",
    ),
    (
        attend,
        {"q": f32(2, 4, 6), "out": f32(2, 4, 6)},
        r"^keys: head_dim 8, expected 6",
    ),
    (delta, {"v": f32(3, 3, 5)}, r"^v: 3 heads, expected a multiple of the 2 heads of q$"),
    (delta, {"v": f32(2, 4, 5)}, r"^v: 2 tokens, expected 3 as q$"),
    (delta, {"k": f32(3, 2, 9)}, r"^k: shape \(3, 2, 9\), expected \(3, 2, 8\) as q$"),
    (delta, {"g": f32(3, 2)}, r"^g: shape \(3, 2\), expected \(3, 4\)"),
    (delta, {"state": f32(4, 8, 5)}, r"^state: shape \(4, 8, 5\), expected \(4, 5, 8\)$"),
    (delta, {"state": f32(4, 5, 9)[..., :8]}, r"^state: .*, expected a writable C-contiguous"),
    (conv, {"weight": f32(8, 4)}, r"^weight: float32 \(8, 4\), expected \(taps, 8\)"),
    (conv, {"state": f32(4, 8)}, r"^state: shape \(4, 8\), expected \(3, 8\)$"),
    (conv, {"x": (x := f32(3, 8)), "out": x}, r"^out: the memory of x, expected another array"),
    (route, {"top_k": 0}, r"^top_k: 0, expected 1 to 8 \(experts in logits\)$"),
    (route, {"top_k": 9}, r"^top_k: 9, expected 1 to 8"),
    (route, {"mode": "best"}, r"^mode: 'best', expected one of softmax_then_topk, "),
    (route, {"indices": i32(3, 2).astype("i8")}, r"^indices: int64 \(3, 2\), expected int32$"),
    (route, {"scores": f32(3, 3)}, r"^scores: shape \(3, 3\), expected \(3, 2\)$"),
]


@pytest.mark.parametrize(
    ("call", "changes", "message"),
    REFUSED,
    ids=[f"{c.__name__}-{i}" for i, (c, _, _) in enumerate(REFUSED)],
)
def test_refused(call: Callable[..., None], changes: dict[str, Any], message: str) -> None:
    call()  # fine as it is
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_rope_refuses() -> None:
    x = f32(1, 2, 8)
    with pytest.raises(ValueError, match=r"^inv_freq: 5 pairs, expected at most 4"):
        ck.rope(x, f32(5), 0)
    with pytest.raises(ValueError, match=r"^offset: -1, expected 0 or more"):
        ck.rope(x, f32(4), -1)
    with pytest.raises(ValueError, match=r"^inv_freq: 1025 pairs, expected at most 1024"):
        ck.rope(f32(1, 1, 4096), f32(1025), 0)


def test_append_refuses() -> None:
    new, cache = f32(3, 2, 8), f16(2, 9, 8)
    ck.kv_append(new, new, cache, cache.copy(), 6)
    with pytest.raises(ValueError, match=r"^offset: 7 with 3 tokens, expected an end within .* 9$"):
        ck.kv_append(new, new, cache, cache, 7)
    with pytest.raises(ValueError, match=r"^offset: -1 "):
        ck.kv_append(new, new, cache, cache, -1)
    with pytest.raises(ValueError, match=r"^keys: shape \(4, 9, 8\), expected \(2, 9, 8\)"):
        ck.kv_append(new, new, f16(4, 9, 8), f16(4, 9, 8), 0)
    with pytest.raises(ValueError, match=r"^values_new: shape \(2, 2, 8\), expected \(3, 2, 8\)"):
        ck.kv_append(new, new[:2], cache, cache, 0)


def test_split_refuses() -> None:
    x = f32(3, 2, 8)
    with pytest.raises(ValueError, match=r"^outs: widths add up to 7, expected 8"):
        ck.split_interleaved(x, [f32(3, 2, 4), f32(3, 2, 3)])
    with pytest.raises(ValueError, match=r"^outs\[1\]: shape \(3, 1, 4\), expected \(3, 2, 4\)"):
        ck.split_interleaved(x, [f32(3, 2, 4), f32(3, 1, 4)])
    with pytest.raises(ValueError, match=r"^outs: 0 arrays, expected 1 to 8$"):
        ck.split_interleaved(x, [])


def test_gates_refuse() -> None:
    a = f32(3, 4)
    ck.gated_delta_gates(a, a, f32(4), f32(4), a.copy(), a.copy())
    with pytest.raises(ValueError, match=r"^dt_bias: shape \(3,\), expected \(4,\)$"):
        ck.gated_delta_gates(a, a, f32(4), f32(3), a.copy(), a.copy())
    with pytest.raises(ValueError, match=r"^gate: shape \(3, 2\), expected \(3, 1\)"):
        ck.sigmoid_scale_add(a, f32(3, 2), a.copy())
