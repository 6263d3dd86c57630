"""What a GGUF holds that cannot be imported: one line that names it and says what to do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter

from gguf_files import TinyModel, make_model, write_gguf
from kandiga_pack.errors import PackError
from kandiga_pack.sources.gguf import GgufSource


def mixtral(tmp_path: Path, **overrides: Any) -> TinyModel:
    return make_model("mixtral", tmp_path / "mlx", overrides)


def refusal(path: Path) -> str:
    with pytest.raises(PackError) as caught:
        GgufSource(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


def test_a_type_that_would_lose(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"

    def add(writer: GGUFWriter) -> None:
        writer.add_tensor(
            "blk.0.ffn_down_exps.bias", np.zeros((8, 144), np.uint8), raw_dtype=Kind.Q4_K
        )

    write_gguf(path, mixtral(tmp_path), Kind.Q8_0, edit=add)
    message = refusal(path)
    assert "tensor blk.0.ffn_down_exps.bias is Q4_K" in message
    assert "supported are Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, F32, F16, BF16" in message
    assert "Use a GGUF in one of these types" in message


def test_an_architecture_that_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "gemma3")
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = refusal(path)
    assert "architecture 'gemma3'" in message
    assert "llama, qwen3moe, qwen3next, qwen35moe" in message


def test_a_missing_tensor(tmp_path: Path) -> None:
    model = mixtral(tmp_path)
    del model.tensors["model.layers.1.self_attn.v_proj.weight"]
    write_gguf(tmp_path / "model.gguf", model, Kind.Q4_0)
    assert "tensor blk.1.attn_v.weight is missing" in refusal(tmp_path / "model.gguf")


def test_a_tensor_that_the_architecture_does_not_have(tmp_path: Path) -> None:
    def add(writer: GGUFWriter) -> None:
        writer.add_tensor("blk.0.attn_sinks.weight", np.zeros(4, np.float32))

    write_gguf(tmp_path / "model.gguf", mixtral(tmp_path), Kind.Q4_0, edit=add)
    message = refusal(tmp_path / "model.gguf")
    assert (
        "1 tensors that this architecture does not have, first blk.0.attn_sinks.weight" in message
    )


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("num_local_experts", 7, r"blk.0.ffn_gate_inp.weight (8, 64) cannot become"),
        ("num_attention_heads", 8, r"blk.0.attn_k.weight (32, 64) cannot become"),
        ("hidden_size", 32, r"token_embd.weight (320, 64) cannot become"),
    ],
)
def test_metadata_that_disagrees_with_the_tensors(
    key: str, value: int, wanted: str, tmp_path: Path
) -> None:
    model = mixtral(tmp_path)
    model.config[key] = value
    write_gguf(tmp_path / "model.gguf", model, Kind.F32)
    assert wanted in refusal(tmp_path / "model.gguf")


def test_columns_that_cannot_be_reordered(tmp_path: Path) -> None:
    """Value heads of 16 columns share blocks of 32; in F16 every column can move."""
    model = make_model("qwen3_5_moe", tmp_path / "mlx", {"linear_value_head_dim": 16})
    path = tmp_path / "model.gguf"
    write_gguf(path, model, Kind.Q8_0)
    message = refusal(path)
    assert "blk.0.ssm_out.weight (Q8_0): its heads are not multiples of 32 columns" in message
    write_gguf(path, model, Kind.Q8_0, kinds={"blk.0.ssm_out.weight": Kind.F16})
    with GgufSource(path) as source:
        found = source.read("language_model.model.layers.0.linear_attn.out_proj.weight")
        wanted = model.tensors["language_model.model.layers.0.linear_attn.out_proj.weight"]
        np.testing.assert_array_equal(found, wanted.astype(np.float16))


def test_parts_of_one_matrix_in_two_types(tmp_path: Path) -> None:
    model = make_model("qwen3_next", tmp_path / "mlx")
    path = tmp_path / "model.gguf"
    write_gguf(path, model, Kind.Q8_0, kinds={"blk.0.attn_gate.weight": Kind.Q4_0})
    message = refusal(path)
    assert "blk.0.attn_qkv.weight is Q8_0" in message
    assert "blk.0.attn_gate.weight is Q4_0" in message


def test_a_quantized_vector(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, mixtral(tmp_path), Kind.F16, kinds={"blk.0.attn_norm.weight": Kind.Q8_0})
    assert "blk.0.attn_norm.weight is Q8_0, but mlx-lm keeps" in refusal(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.expert_weights_scale", 2.5),
        ("llama.attn_logit_softcapping", 50.0),
        ("llama.rope.scaling.type", "yarn"),
    ],
)
def test_a_setting_that_the_family_would_ignore(key: str, value: Any, tmp_path: Path) -> None:
    def add(writer: GGUFWriter) -> None:
        if isinstance(value, str):
            writer.add_string(key, value)
            writer.add_float32("llama.rope.scaling.factor", 4.0)
            writer.add_uint32("llama.rope.scaling.original_context_length", 128)
        else:
            writer.add_float32(key, value)

    write_gguf(tmp_path / "model.gguf", mixtral(tmp_path), Kind.F16, edit=add)
    assert key in refusal(tmp_path / "model.gguf")


def test_prediction_blocks_are_left_out_and_said_so(tmp_path: Path) -> None:
    def add(writer: GGUFWriter) -> None:
        writer.add_nextn_predict_layers(1)
        writer.add_tensor("blk.2.nextn.eh_proj.weight", np.zeros((64, 128), np.float32))

    model = make_model("qwen3_5_moe", tmp_path / "mlx")
    model.config["num_hidden_layers"] = 3
    write_gguf(tmp_path / "model.gguf", model, Kind.Q8_0, edit=add)
    with GgufSource(tmp_path / "model.gguf") as source:
        assert source.config["text_config"]["num_hidden_layers"] == 2
        assert len(source.notes) == 1
        assert "block 2 (1 tensors) is for multi-token prediction" in source.notes[0]


def test_closing_removes_the_folder(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", mixtral(tmp_path), Kind.F16)
    source = GgufSource(tmp_path / "model.gguf")
    files = source.files
    assert {file.name for file in files} == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    source.close()
    source.close()
    assert not any(file.exists() for file in files)


def test_reading_rows_that_do_not_exist(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", mixtral(tmp_path), Kind.F16)
    with GgufSource(tmp_path / "model.gguf") as source:
        with pytest.raises(IndexError, match="rows 1 to 400 of 320"):
            source.read("lm_head.weight", 1, 399)
        with pytest.raises(KeyError):
            source.read("lm_head.scales")
