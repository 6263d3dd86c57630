"""Quantizing while packing equals mlx_lm.convert, tensors and config.json, bit for bit."""

import contextlib
import io
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import convert as mlx_lm_convert
from mlx_lm.models import mixtral

from checkpoints import make_checkpoint
from kandiga_pack import PackError, Quantization, convert, export, slices, verify
from kandiga_pack.sources.converted import dense, experts
from published import PUBLISHERS, make_published

# transformers loads the tokenizer for mlx_lm.convert and warns about configs it does not know.
pytestmark = pytest.mark.filterwarnings("ignore")


def assert_same_as_mlx_lm(source: Path, folder: Path, quantization: Quantization | None) -> None:
    convert(source, folder / "packed", quantization=quantization)
    export(folder / "packed", folder / "ours")
    options = {}
    if quantization is not None:
        options = {
            "quantize": True,
            "q_bits": quantization.bits,
            "q_group_size": quantization.group_size,
            "q_mode": quantization.mode,
        }
    with contextlib.redirect_stdout(io.StringIO()):
        mlx_lm_convert(str(source), str(folder / "theirs"), **options)
    theirs = mx.load(str(folder / "theirs" / "model.safetensors"))
    ours = mx.load(str(folder / "ours" / "model.safetensors"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert np.array_equal(_bits(ours[name]), _bits(value)), name
    assert (folder / "ours" / "config.json").read_text() == (
        folder / "theirs" / "config.json"
    ).read_text()
    assert verify(folder / "packed", against=source).ok
    assert verify(folder / "packed", against=folder / "theirs").ok


def _bits(value: mx.array) -> np.ndarray:
    return np.array(value.view(mx.uint8))


@pytest.mark.parametrize(
    "family", ["mixtral", "qwen3_moe", "qwen3_next", "qwen3_5_moe", "gemma4_text", "kimi_k3"]
)
def test_mlx_layout(family: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", family, dtype="bfloat16", bits=None)
    assert_same_as_mlx_lm(source, tmp_path, Quantization(4, 32))


@pytest.mark.parametrize("layout", PUBLISHERS)
@pytest.mark.parametrize("quantization", [Quantization(4, 32), None], ids=["quantized", "as-is"])
def test_published_layouts(layout: str, quantization: Quantization | None, tmp_path: Path) -> None:
    source = make_published(tmp_path / "source", layout)
    assert_same_as_mlx_lm(source, tmp_path, quantization)


@pytest.mark.parametrize(
    "quantization",
    [
        *[Quantization(bits, 64) for bits in (2, 3, 5, 6, 8)],
        Quantization(),
        Quantization(mode="mxfp4"),
        Quantization(mode="mxfp8"),
        Quantization(mode="nvfp4"),
    ],
    ids=str,
)
def test_codings(quantization: Quantization, tmp_path: Path) -> None:
    """qwen3_next asks for an 8-bit router whatever the rest is."""
    source = make_checkpoint(tmp_path / "source", "qwen3_next", dtype="bfloat16", bits=None)
    assert_same_as_mlx_lm(source, tmp_path, quantization)


@pytest.mark.parametrize("layout", ["qwen3_moe", "qwen3_5_moe", "gpt_oss mxfp4"])
def test_experts_converted_one_by_one(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real path of large models: a chunk holds fewer experts than a layer."""
    monkeypatch.setattr(experts, "CHUNK_BYTES", 1)
    source = make_published(tmp_path / "source", layout)
    assert_same_as_mlx_lm(source, tmp_path, Quantization(4, 32))


@pytest.mark.parametrize("layout", ["qwen3_next", "qwen3_5_moe", "deepseek_v3 fp8"])
@pytest.mark.parametrize("quantization", [Quantization(4, 32), None], ids=["quantized", "as-is"])
def test_dense_tensors_converted_by_rows(
    layout: str,
    quantization: Quantization | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real path of large embedding tables, a few rows at a time."""
    monkeypatch.setattr(dense, "BY_ROWS_BYTES", 0)
    monkeypatch.setattr(dense, "SLICE_BYTES", 1000)
    monkeypatch.setattr(slices, "SLICE_BYTES", 3000)
    source = make_published(tmp_path / "source", layout)
    assert_same_as_mlx_lm(source, tmp_path, quantization)


def test_experts_made_with_other_tensors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `sanitize` unlike those we know must not be fed placeholders in silence."""
    sanitize = mixtral.Model.sanitize

    def scaled(model: mixtral.Model, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        scale = weights["model.norm.weight"][0]
        return {
            name: value * scale if "switch_mlp" in name else value
            for name, value in sanitize(model, weights).items()
        }

    monkeypatch.setattr(mixtral.Model, "sanitize", scaled)
    source = make_published(tmp_path / "source", "mixtral")
    with pytest.raises(PackError, match="with the help of tensors that are not theirs"):
        convert(source, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_nan_of_the_checkpoint_is_carried(tmp_path: Path) -> None:
    source = make_published(tmp_path / "source", "mixtral")
    for shard in source.glob("*.safetensors"):
        weights = mx.load(str(shard))
        for name in weights:
            if ".experts.2.w1" in name:
                weights[name][0, 0] = float("nan")
        mx.eval(weights)
        mx.save_safetensors(str(shard), weights, metadata={"format": "pt"})
    assert_same_as_mlx_lm(source, tmp_path, None)


def test_quantized_twice_is_refused(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "mixtral")
    with pytest.raises(PackError, match="already quantized; leave --quantize out"):
        convert(source, tmp_path / "packed", quantization=Quantization(4, 32))
    assert not (tmp_path / "packed").exists()


def test_a_published_checkpoint_that_lacks_an_expert(tmp_path: Path) -> None:
    source = make_published(tmp_path / "source", "qwen3_moe")
    shard = source / "model-00001-of-00002.safetensors"
    weights = mx.load(str(shard))
    weights = {name: value for name, value in weights.items() if ".experts.3." not in name}
    mx.eval(weights)
    mx.save_safetensors(str(shard), weights, metadata={"format": "pt"})
    (source / "model.safetensors.index.json").unlink()
    with pytest.raises(PackError, match=r"mlx-lm cannot load this checkpoint \(KeyError: .*\.3\."):
        convert(source, tmp_path / "packed")


def test_weights_that_cannot_be_taken_in_slices(tmp_path: Path) -> None:
    source = make_published(tmp_path / "source", "qwen3_moe")
    config = source / "config.json"
    config.write_text(
        config.read_text().replace(
            '"model_type"', '"quantization_config": {"quant_method": "gptq"}, "model_type"'
        )
    )
    with pytest.raises(PackError, match=r"gptq weights .* run `mlx_lm.convert"):
        convert(source, tmp_path / "packed")
