"""Made-up models: of the published shapes, the same everywhere, and fit to be run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import FAMILIES, NATIVE_FAMILIES, family_config
from formats import open_set
from kandiga_pack import families
from kandiga_pack.cli import run
from kandiga_pack.conversion import Conversion
from kandiga_pack.exit_codes import ExitCode
from kandiga_pack.journal import Journal
from kandiga_pack.sources.converted import Quantization
from kandiga_pack.sources.synthetic import PRESETS, SyntheticSource, stream
from kandiga_pack.sources.synthetic.tokenizer import IM_END
from kandiga_pack.sources.synthetic.values import Floats, pool_of
from kandiga_pack.stacks import find_stacks
from kandiga_run.engine import load_engine
from kandiga_run.tokenizer.prompts import Prompts

AFFINE_4 = Quantization(4, 64)
TINY = Quantization(4, 32)

# Preset -> layers, experts a layer, bytes of an expert at 4 bits in groups of 64 with bf16 scales:
# 3 * hidden * moe_intermediate * (4 + 2 * 16 / 64) / 8.
PUBLISHED = {
    "qwen3.5-35b-a3b": (40, 256, 1_769_472),
    "qwen3.5-122b-a10b": (48, 256, 5_308_416),
    "qwen3.5-397b-a17b": (60, 512, 7_077_888),
    "qwen3-30b-a3b": (48, 128, 2_654_208),
    "mixtral-8x7b": (32, 8, 99_090_432),
}
# Parameters by the models' names, and how far a name may be rounded.
PARAMETERS = {
    "qwen3.5-35b-a3b": 35e9,
    "qwen3.5-122b-a10b": 122e9,
    "qwen3.5-397b-a17b": 397e9,
    "qwen3-30b-a3b": 30.5e9,
    "mixtral-8x7b": 46.7e9,
}
ROUNDING = 0.02


def tiny_config(folder: Path, family: str, **overrides: Any) -> Path:
    path = folder / f"{family}.json"
    path.write_text(json.dumps(family_config(family, overrides)))
    return path


def test_the_table_names_every_preset() -> None:
    assert PUBLISHED.keys() == PRESETS.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("preset", PUBLISHED)
def test_shape_of_a_preset(preset: str) -> None:
    num_layers, num_experts, expert_bytes = PUBLISHED[preset]
    source = SyntheticSource(preset, quantization=AFFINE_4)
    stacks = find_stacks(source.tensors, source.config, where=preset)
    assert [stack.layer for stack in stacks] == list(range(num_layers))
    assert {stack.num_experts for stack in stacks} == {num_experts}
    assert {stack.layout.payload_bytes for stack in stacks} == {expert_bytes}
    source.close()
    whole = SyntheticSource(preset, quantization=None)
    count = sum(int(np.prod(info.shape)) for info in whole.tensors.values())
    assert count == pytest.approx(PARAMETERS[preset], rel=ROUNDING)
    whole.close()


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_preset_cut_short(preset: str) -> None:
    num_layers = 4 if "3.5" in preset else 1
    source = SyntheticSource(preset, num_layers=num_layers, quantization=AFFINE_4)
    plan = Conversion(source, None, 8 << 30)
    assert plan.source.config["quantization"]["bits"] == 4
    stacks = find_stacks(source.tensors, source.config, where=preset)
    assert len(stacks) == num_layers
    assert stacks[0].layout.payload_bytes == PUBLISHED[preset][2]
    assert any(".self_attn." in name for name in source.tensors)
    assert any(".linear_attn." in name for name in source.tensors) == ("3.5" in preset)
    router = next(info for name, info in source.tensors.items() if name.endswith(".gate.weight"))
    bits = router.shape[-1] * 32 // families.hidden_sizes(source.config)["hidden_size"]
    assert bits == (4 if "mixtral" in preset else 8)  # as mlx-lm's predicates have it
    source.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_of_mlx_lm(family: str, tmp_path: Path) -> None:
    source = SyntheticSource(str(tiny_config(tmp_path, family)), quantization=TINY)
    assert Conversion(source, None, 8 << 30).needed_bytes(Journal(tmp_path / "journal")) > 0
    for name, info in source.tensors.items():
        if info.dtype == "f32":
            assert np.isfinite(source.read(name)).all()
        elif info.dtype == "bf16":
            assert np.isfinite((source.read(name).astype(np.uint32) << 16).view(np.float32)).all()
    source.close()


def test_slices_agree_with_the_whole(tmp_path: Path) -> None:
    # 3 bits, and a width of 96: rows that are no multiple of eight bytes
    config = tiny_config(tmp_path, "mixtral", hidden_size=96, intermediate_size=160)
    source = SyntheticSource(str(config), quantization=Quantization(3, 32), seed=7)
    assert any(info.row_bytes % 8 for info in source.tensors.values())
    for name, info in source.tensors.items():
        whole = source.read(name)
        assert whole.shape == info.shape
        for row in range(min(info.shape[0], 5)):
            buffer = bytearray(info.row_bytes)
            source.read_row(name, row, memoryview(buffer))
            assert bytes(buffer) == whole[row].tobytes(), name
        assert np.array_equal(source.read(name, 1, 2), whole[1:3])
        with pytest.raises(IndexError):
            source.read(name, 0, info.shape[0] + 1)
    source.close()


def test_pieces_across_chunks() -> None:
    pool, key = stream.random_pool(3), stream.stream_key(3, "a")
    whole = bytearray(3 * stream.CHUNK_BYTES)
    stream.fill(memoryview(whole), pool, key, 0, disguise=True)
    for start, count in ((0, 1), (stream.CHUNK_BYTES - 3, 7), (stream.CHUNK_BYTES + 5, 300_001)):
        piece = bytearray(count)
        stream.fill(memoryview(piece), pool, key, start, disguise=True)
        assert piece == whole[start : start + count]
    # Every byte value about equally often, and no chunk that is another one's.
    counts = np.bincount(np.frombuffer(whole, np.uint8), minlength=256)
    assert counts.min() > 0.9 * counts.mean()
    assert counts.max() < 1.1 * counts.mean()
    assert whole[: 1 << 12] != whole[stream.CHUNK_BYTES : stream.CHUNK_BYTES + (1 << 12)]


def test_the_same_bytes_on_every_machine() -> None:
    """Written down: another numpy or processor must not change what others have measured with."""
    piece = bytearray(16)
    stream.fill(
        memoryview(piece), stream.random_pool(0), stream.stream_key(0, "x"), 1 << 20, disguise=True
    )
    assert piece.hex() == "58dfebb496965af47f650c9b5664a9a8"
    for values, first in (
        (Floats("bf16", 0.75, 1.25, -7.5), "0dc1b8c006c1b5c008c1fdc0c9c0d1c0"),
        (Floats("f32", -1.0, 2.0), "765165bfd12177bf51fa553ffefa8cbe"),
    ):
        assert pool_of(values, 0)[:2].tobytes().hex() == first


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
@pytest.mark.parametrize("bits", ["4", "16"])
def test_runs_natively(family: str, bits: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, family)
    packed = tmp_path / "packed"
    group = ["--group-size", "32"] if bits == "4" else []
    assert run(["synth", str(config), str(packed), "--quiet", "--bits", bits, *group]) == 0
    assert run(["verify", str(packed), "--quiet"]) == ExitCode.OK
    assert run(["validate", str(packed), "--quiet"]) == ExitCode.OK
    prompts = Prompts(packed)
    tokens = np.array(prompts.encode("The cat sat on a mat."), np.int32)
    engine = load_engine(packed, engine="native")
    logits = engine.forward(tokens, engine.new_state(64), logits="all")
    assert logits.shape == (len(tokens), engine.vocab_size)
    assert np.isfinite(logits).all()
    # Different tokens, different answers; and neither silence nor noise.
    assert len(set(logits.argmax(axis=1).tolist())) > len(set(tokens.tolist())) // 3
    assert 0.3 < logits.std() < 3
    assert engine.stats.experts_requested > 0
    engine.close()


def test_different_tokens_go_to_different_experts(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        "qwen3_moe",
        hidden_size=256,
        num_experts=64,
        num_experts_per_tok=4,
        num_hidden_layers=4,
    )
    packed = tmp_path / "packed"
    assert run(["synth", str(config), str(packed), "--quiet"]) == ExitCode.OK
    engine = load_engine(packed, engine="native")
    engine.forward(np.arange(64, dtype=np.int32), engine.new_state(64))
    # A chunk of 64 tokens wants each expert of a layer once: nearly all 64 of four layers.
    assert engine.stats.experts_requested > 0.8 * 64 * 4
    engine.close()


def test_numbers_are_sane(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "qwen3_5_moe", hidden_size=256)
    source = SyntheticSource(str(config), quantization=None)
    for name, info in source.tensors.items():
        raw = source.read(name)
        values = (raw.astype(np.uint32) << 16).view(np.float32) if info.dtype == "bf16" else raw
        assert np.isfinite(values).all(), name
        if name.endswith("q_proj.weight"):
            assert values.std() == pytest.approx(1 / 16, rel=0.05)
            assert abs(values.mean()) < 0.01
        if "norm" in name:
            assert values.mean() == pytest.approx(1, abs=0.1)
        if name.endswith("A_log"):
            assert info.dtype == "f32"  # mlx-lm's cast predicate keeps it
    source.close()


def test_two_runs_are_byte_identical(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "qwen3_next")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        arguments = [str(config), str(tmp_path / name), "--group-size", "32", "--seed", str(seed)]
        assert run(["synth", *arguments, "--quiet"]) == ExitCode.OK
    contents = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in "abc"
    }
    assert contents["a"] == contents["b"]
    assert contents["a"].keys() == contents["c"].keys()
    assert contents["a"]["model.kexp"] != contents["c"]["model.kexp"]
    with open_set(tmp_path / "a") as opened:
        blocks = {bytes(opened.block(layer, e)) for layer in opened.layers for e in range(8)}
        assert len(blocks) == 8 * len(opened.layers)


@pytest.mark.parametrize("vocab_size", [259, 320, 32000])
def test_tokenizer(vocab_size: int, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "mixtral", vocab_size=vocab_size)
    source = SyntheticSource(str(config), quantization=TINY)
    prompts = Prompts(source.files[0].parent)
    assert prompts.tokenizer.get_vocab_size() == vocab_size
    assert prompts.stop_token_ids == {vocab_size - 1}
    assert prompts.tokenizer.token_to_id(IM_END) == vocab_size - 1
    text = prompts.render([{"role": "user", "content": "Zwölf Boxkämpfer: 12 < 13, the cat\n"}])
    assert prompts.decode(prompts.encode(text), skip_special_tokens=False) == text
    for token in range(256, vocab_size - 3, 97):
        assert prompts.encode(prompts.decode([token])) == [token]
    source.close()


def test_cut_short_lists_too(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "qwen3_5_moe", num_hidden_layers=4)
    content = json.loads(config.read_text())
    kinds = ["linear_attention", "full_attention"] * 2
    content["text_config"]["layer_types"] = kinds
    config.write_text(json.dumps(content))
    source = SyntheticSource(str(config), num_layers=2, quantization=TINY)
    assert source.config["text_config"]["layer_types"] == kinds[:2]
    assert source.config["text_config"]["num_hidden_layers"] == 2
    source.close()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["qwen4-9t"], ExitCode.USAGE, ["qwen4-9t", "qwen3.5-35b-a3b"]),
        (["nowhere/config.json"], ExitCode.UNREADABLE, ["nowhere/config.json"]),
        (["mixtral-8x7b", "--layers", "33"], ExitCode.USAGE, ["--layers 33", "32 layers"]),
        (["mixtral-8x7b", "--bits", "16", "--group-size", "64"], ExitCode.USAGE, ["--group-size"]),
        (["mixtral-8x7b", "--bits", "7"], ExitCode.USAGE, ["--bits"]),
    ],
)
def test_usage(
    arguments: list[str],
    code: ExitCode,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["synth", arguments[0], str(tmp_path / "out"), *arguments[1:]]) == code
    stderr = capsys.readouterr().err
    assert all(word in stderr for word in words), stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["not valid JSON"]),
        ("{}", ["no model_type"]),
        ('{"model_type": "nonesuch"}', ["mlx-lm makes no model", "nonesuch"]),
        (json.dumps(family_config("mixtral", {"vocab_size": 258})), ["vocab_size is 258", "259"]),
    ],
)
def test_bad_config(
    content: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(content)
    assert run(["synth", str(config), str(tmp_path / "out")]) == ExitCode.FAILED
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert all(word in stderr for word in words), stderr
    assert list(tmp_path.iterdir()) == [config]


def test_interrupted_goes_on(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, "mixtral", hidden_size=1024, intermediate_size=2048, num_local_experts=16
    )
    command = [sys.executable, "-m", "kandiga_pack", "synth", str(config), str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob("out.partial/set/model*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()
    assert run([*command[3:], "--quiet"]) == ExitCode.OK
    assert run(["verify", str(tmp_path / "out"), "--quiet"]) == ExitCode.OK
