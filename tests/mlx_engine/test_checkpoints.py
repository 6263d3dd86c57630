"""The checkpoint factory itself: deterministic, and loadable by plain mlx-lm at every odd size."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import make_checkpoint, reference_logits

PROMPT = [5, 80, 200, 31, 7, 7, 150]


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = (
        make_checkpoint(tmp_path / name, "qwen3_next", seed=seed)
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    files = sorted(path.name for path in first.iterdir())
    assert files == sorted(path.name for path in again.iterdir())
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in files)
    weights = "model.safetensors"
    assert (first / weights).read_bytes() != (other / weights).read_bytes()


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_experts": 7, "num_experts_per_tok": 1},
        {"num_experts": 7, "num_experts_per_tok": 7},
        {"num_experts": 512, "num_experts_per_tok": 10},
        {"hidden_size": 96},
    ],
    ids=["one-of-seven", "all-of-seven", "512-experts", "hidden-96"],
)
def test_odd_sizes_load_in_plain_mlx_lm(tmp_path: Path, overrides: dict[str, int]) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen3_moe", overrides=overrides)
    reference = reference_logits(folder, PROMPT)
    assert np.isfinite(reference.prefill).all()
    assert (
        reference.prefill.std() > 0.3
    )  # a flat answer would compare equal to any other flat answer


def test_extra_tensors_keep_dtype_and_value(tmp_path: Path) -> None:
    tower = np.arange(6, dtype=np.float16).reshape(2, 3)
    folder = make_checkpoint(
        tmp_path / "model", "qwen3_5_moe", extra_tensors={"vision_tower.patch.weight": tower}
    )
    saved = mx.load(str(folder / "model.safetensors"))["vision_tower.patch.weight"]
    assert saved.dtype == mx.float16
    np.testing.assert_array_equal(np.array(saved), tower)
