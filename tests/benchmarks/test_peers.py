"""The comparison with other programs still runs, as far as it goes without them."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFReader, dequantize

from benchmarks import peer_llamacpp
from benchmarks.peers.gguf_shapes import UnknownShapeError
from benchmarks.peers.programs import LlamaBench, ProgramError, run_once
from benchmarks.peers.synthetic_gguf import write_gguf
from benchmarks.peers.table import Median, markdown_table
from benchmarks.peers.task import Task
from kandiga_pack.sources.converted.quantization import Quantization
from kandiga_pack.sources.synthetic import PRESETS, SyntheticSource
from kandiga_pack.synth import synth

# Small enough to write at once, with every kind of layer.
SIZES = {
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "vocab_size": 512,
}
PRESET_OF = {"qwen3_5_moe": "qwen3.5-35b-a3b", "qwen3_moe": "qwen3-30b-a3b"}


def tiny_config(family: str, folder: Path) -> Path:
    """Write the config.json of four layers of a preset, made narrow; return its folder."""
    config = json.loads(json.dumps(PRESETS[PRESET_OF[family]]))
    text = config.get("text_config", config)
    text |= SIZES
    for key, size in (("shared_expert_intermediate_size", 32), ("intermediate_size", 32)):
        if key in text:
            text[key] = size
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    source = SyntheticSource(str(folder), num_layers=4, quantization=Quantization(4, 32))
    (folder / "config.json").write_text(json.dumps(source.config))
    source.close()
    return folder


@pytest.mark.parametrize("family", PRESET_OF)
def test_gguf_holds_the_same_weights_in_number(tmp_path: Path, family: str) -> None:
    model = tiny_config(family, tmp_path / "model")
    size = write_gguf(model, tmp_path / "model.gguf")
    assert size == (tmp_path / "model.gguf").stat().st_size
    reader = GGUFReader(tmp_path / "model.gguf")
    source = SyntheticSource(str(model), quantization=Quantization(4, 32))
    ours = 0
    for name, info in source.tensors.items():
        matrix = source.matrices.get(name.rpartition(".")[0])
        if not name.endswith((".scales", ".biases")):
            shape = (*info.shape[:-1], matrix.in_features) if matrix else info.shape
            ours += int(np.prod(shape))
    source.close()
    assert sum(int(tensor.n_elements) for tensor in reader.tensors) == ours
    types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert types["blk.0.ffn_up_exps.weight"] is GGMLQuantizationType.Q4_0
    assert types["blk.3.attn_q.weight"] is GGMLQuantizationType.Q4_0
    assert types["blk.3.ffn_gate_inp.weight"] is GGMLQuantizationType.Q8_0
    assert types["output_norm.weight"] is GGMLQuantizationType.F32


def test_gguf_weights_have_the_spread_of_ours(tmp_path: Path) -> None:
    model = tiny_config("qwen3_5_moe", tmp_path / "model")
    write_gguf(model, tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    for name, deviation in (
        ("token_embd.weight", 1.0),
        ("blk.0.ffn_up_exps.weight", 1 / 8),  # 1 / sqrt(hidden_size)
        ("blk.0.ffn_gate_inp.weight", 4 / 8),  # routers are four times as loud
        ("blk.0.ffn_gate_inp_shexp.weight", 1 / 8),
    ):
        weights = dequantize(tensors[name].data, tensors[name].tensor_type)
        # Scales vary by a quarter, which adds 1 %; 64 numbers at least are looked at.
        assert np.std(weights) == pytest.approx(deviation, rel=0.35), name
        assert abs(np.mean(weights)) < 0.35 * deviation, name
    decay = dequantize(tensors["blk.0.ssm_a"].data, tensors["blk.0.ssm_a"].tensor_type)
    assert (decay < 0).all()


def test_what_has_no_gguf_here(tmp_path: Path) -> None:
    config = {"model_type": "mixtral", "quantization": {"bits": 4, "group_size": 64}}
    (tmp_path / "config.json").write_text(json.dumps({**PRESETS["mixtral-8x7b"], **config}))
    with pytest.raises(UnknownShapeError, match="mixtral: no GGUF of this architecture"):
        write_gguf(tmp_path, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


FAKE_LLAMA_BENCH = """#!/bin/sh
case "$*" in *--help*) echo "  -w, --warmup <0|1>"; exit;; esac
echo "a remark"
echo '['
echo '{"build_commit": "abc", "n_prompt": 10, "n_gen": 0, "samples_ns": [1000000000, 500000000]},'
echo '{"build_commit": "abc", "n_prompt": 0, "n_gen": 4, "samples_ns": [2000000000, 1000000000]}'
echo ']'
"""


def fake_llama_bench(folder: Path) -> Path:
    """Write a program that answers like llama-bench; none comes from a package index."""
    path = folder / "fork.cpp" / "build" / "bin" / "llama-bench"
    path.parent.mkdir(parents=True)
    path.write_text(FAKE_LLAMA_BENCH)
    path.chmod(0o755)
    return path


def test_llama_bench_is_called_and_understood(tmp_path: Path) -> None:
    path = fake_llama_bench(tmp_path)
    program = LlamaBench(tmp_path / "a.gguf", f"A=1 {path} -rtr 1")
    assert program.name == "fork.cpp -rtr 1 A=1"
    task = Task(threads=2, prefill=10, decode=4, repetitions=2, warm_up=False)
    assert program.command(task)[:3] == ["env", "A=1", str(path)]
    assert program.command(task)[-4:] == ["-w", "0", "-rtr", "1"]
    run = run_once(program, task)
    assert (run.prefill, run.decode) == ([10.0, 20.0], [2.0, 4.0])
    assert run.about["build_commit"] == "abc"


def test_programs_in_turns(tmp_path: Path) -> None:
    model = tmp_path / "model"
    config = tiny_config("qwen3_5_moe", tmp_path / "config")
    synth(str(config), model, quantization=Quantization(4, 32))
    bench = fake_llama_bench(tmp_path)
    options = ["--gguf", str(tmp_path / "model.gguf"), "--llama-bench", f"{bench} -rtr 1", "--cold"]
    numbers = ["--prefill", "10", "--decode", "4", "--rounds", "1", "--threads", "1"]
    figures = tmp_path / "figures.json"
    arguments = [str(model), *options, *numbers, "--json", str(figures)]
    result = CliRunner().invoke(peer_llamacpp.main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(figures.read_text())
    assert set(found["speeds"]) == {
        "prefill 10, warm",
        "decode 4, warm",
        "prefill 10, cold",
        "decode 4, cold",
    }
    assert found["speeds"]["prefill 10, warm"]["fork.cpp -rtr 1"] == [10.0, 20.0]
    assert found["speeds"]["decode 4, warm"]["fork.cpp -rtr 1"] == [2.0, 4.0]
    assert min(found["speeds"]["decode 4, warm"]["kandiga"]) > 0
    assert found["last_runs"]["kandiga"]["about"]["stats"]["experts_requested"] > 0
    assert "| fork.cpp -rtr 1 |" in result.output


def test_a_missing_program_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="nowhere: no such program; build llama-bench of"):
        LlamaBench(tmp_path / "a.gguf", "/nowhere -rtr 1")


def test_ratios_are_of_our_best() -> None:
    results = {
        "decode": {
            "kandiga": Median.of([10.0]),
            "kandiga int8": Median.of([18.0, 20.0, 22.0]),
            "peer": Median.of([8.0]),
            "gone": None,
        }
    }
    lines = markdown_table(results, ours=["kandiga", "kandiga int8"]).splitlines()
    assert lines[3] == "| kandiga int8 | 20.0 (18.0-22.0) |  |"
    assert lines[4] == "| peer | 8.00 | 2.50 |"
    assert lines[5] == "| gone | - |  |"
