"""A GGUF file gives back the tensors it was made from, bit for bit, and mlx-lm runs the result."""

import json
import shutil
import tracemalloc
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file

from checkpoints import reference_logits
from gguf_files import ARCHITECTURES, TinyModel, make_model, write_gguf
from kandiga_pack.sources.gguf import GgufSource

QUANTIZED = {Kind.Q4_0: 4, Kind.Q4_1: 4, Kind.Q5_0: 5, Kind.Q5_1: 5, Kind.Q8_0: 8}
KINDS = [*QUANTIZED, Kind.F16, Kind.F32, Kind.BF16]
FAMILIES = list(ARCHITECTURES)

# mlx multiplies quantized matrices by groups, dense ones in other blocks: float32 sums in another
# order. Logits are about 1; 1e-4 is two hundred float32 roundings.
LOGITS_TOLERANCE = 1e-4
# exp by the converter and log by us each round once in float32, at |A_log| below 4.
A_LOG_TOLERANCE = 1e-6


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_model(request.param, tmp_path_factory.mktemp(request.param) / "mlx")


def dequantized(source: GgufSource, name: str) -> np.ndarray:
    """A weight of the source in float32, unpacked by mlx."""
    weight = source.read(name)
    module = name.removesuffix(".weight")
    if f"{module}.scales" not in source.tensors:
        if source.tensors[name].dtype == "bf16":
            return (weight.astype(np.uint32) << 16).view(np.float32)
        return weight.astype(np.float32)
    settings = source.config["quantization"]
    bits = settings.get(module, settings)["bits"]
    scales, biases = (
        mx.array(source.read(f"{module}.{role}")).astype(mx.float32)
        for role in ("scales", "biases")
    )
    return np.array(mx.dequantize(mx.array(weight), scales, biases, group_size=32, bits=bits))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_value_comes_back(model: TinyModel, kind: Kind, tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "model.gguf", model, kind)
    with GgufSource(tmp_path / "model.gguf") as source:
        weights = [n for n in source.tensors if not n.endswith((".scales", ".biases"))]
        assert sorted(weights) == sorted(expected)
        for name in weights:
            found = dequantized(source, name)
            if name.endswith("A_log"):
                np.testing.assert_allclose(found, expected[name], rtol=0, atol=A_LOG_TOLERANCE)
            else:
                np.testing.assert_array_equal(found, expected[name], err_msg=name)


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q5_0, Kind.F16], ids=lambda kind: kind.name)
def test_slices_are_slices(model: TinyModel, kind: Kind, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", model, kind)
    with GgufSource(tmp_path / "model.gguf") as source:
        for name, info in source.tensors.items():
            whole = source.read(name)
            assert (whole.shape, whole.flags.c_contiguous) == (info.shape, True), name
            assert whole.nbytes == info.length_bytes, name
            for start, count in {(0, 1), (info.shape[0] - 1, 1), (info.shape[0] // 2, None)}:
                part = source.read(name, start, count)
                stop = None if count is None else start + count
                np.testing.assert_array_equal(part, whole[start:stop], err_msg=name)


def test_long_tensors_are_unpacked_in_pieces(
    model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "model.gguf", model, Kind.Q5_1)
    with GgufSource(tmp_path / "model.gguf") as source:
        whole = {name: source.read(name) for name in source.tensors}
        monkeypatch.setattr("kandiga_pack.sources.gguf.source._PIECE_BYTES", 500)
        for name, info in source.tensors.items():
            np.testing.assert_array_equal(source.read(name), whole[name], err_msg=name)
            assert source.read(name, info.shape[0], 0).shape == (0, *info.shape[1:])


def test_nothing_read_is_kept(tmp_path: Path) -> None:
    """Only the last piece is: a converted model passes through, tensor by tensor."""
    tiny = make_model("mixtral", tmp_path / "mlx")
    write_gguf(tmp_path / "model.gguf", tiny, Kind.Q8_0)
    with GgufSource(tmp_path / "model.gguf") as source:
        tracemalloc.start()
        try:
            for name in source.tensors:
                source.read(name)
            kept_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        total_bytes = sum(info.length_bytes for info in source.tensors.values())
        assert kept_bytes < total_bytes / 4


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe"])
def test_gate_and_up_stored_as_one(family: str, tmp_path: Path) -> None:
    model = make_model(family, tmp_path / "mlx")
    write_gguf(tmp_path / "apart.gguf", model, Kind.Q5_1)
    write_gguf(tmp_path / "fused.gguf", model, Kind.Q5_1, fuse_gate_up=True)
    with GgufSource(tmp_path / "apart.gguf") as apart, GgufSource(tmp_path / "fused.gguf") as fused:
        assert apart.tensors == fused.tensors
        for name, info in apart.tensors.items():
            np.testing.assert_array_equal(fused.read(name), apart.read(name), err_msg=name)
            last = info.shape[0] - 1
            np.testing.assert_array_equal(fused.read(name, last, 1), apart.read(name, last, 1))
            assert info.file == "model.safetensors"


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0], ids=lambda kind: kind.name)
def test_mlx_lm_runs_it(model: TinyModel, kind: Kind, tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "model.gguf", model, kind)
    with GgufSource(tmp_path / "model.gguf") as source:
        imported = folder_of(source, tmp_path / "imported")
        plain = tmp_path / "plain"
        plain.mkdir()
        config = {k: v for k, v in source.config.items() if k != "quantization"}
        (plain / "config.json").write_text(json.dumps(config))
    save_file(expected, plain / "model.safetensors", metadata={"format": "mlx"})
    prompt = [5, 17, 200, 3, 90, 41]
    found, wanted = reference_logits(imported, prompt), reference_logits(plain, prompt)
    np.testing.assert_allclose(found.prefill, wanted.prefill, rtol=0, atol=LOGITS_TOLERANCE)
    np.testing.assert_array_equal(found.greedy, wanted.greedy)


def folder_of(source: GgufSource, folder: Path) -> Path:
    """The checkpoint folder a source stands for."""
    folder.mkdir()
    for file in source.files:
        shutil.copy(file, folder)
    arrays = {name: source.read(name) for name in source.tensors}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "mlx"})
    return folder
