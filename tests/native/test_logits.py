"""The native engine against plain mlx-lm holding the whole model in memory, in float32."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import NATIVE_FAMILIES, Reference, make_checkpoint, reference_logits
from kandiga_run.engine import Engine, load_engine
from packed import Packed, PackedModels, pack_checkpoint

# Both programs sum in float32, in different orders. On logits up to 5 they differ by 3e-5 at most
# positions and by 2e-4 at a few ill-conditioned ones, where changing one norm weight by 1e-7 moves
# our own logits as much. A wrong rms_norm_eps (1e-6 for 1e-5) already moves them by more than 1e-3.
LOGIT_TOLERANCE = 1e-3

# Keys and values rounded to 11 bits: 7e-4 to 7e-3 measured.
FLOAT16_CACHE_TOLERANCE = 3e-2

PROMPT = np.random.default_rng(7).integers(3, 320, 37).astype(np.int32)
NUM_DECODE = 16


@dataclass(frozen=True)
class Case:
    family: str
    options: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(family: str, **overrides: Any) -> "Case":
        return Case(family, {"overrides": overrides})


def mixed_bits(path: str, _module: Any) -> bool | dict[str, int]:
    """Quantize every kind of tensor differently, and the experts of layer 1 unlike those of 0."""
    for name, bits, group_size in (
        ("layers.1.mlp.switch_mlp.down_proj", 8, 32),
        ("switch_mlp.up_proj", 3, 32),
        ("switch_mlp", 4, 32),
        ("shared_expert_gate", 8, 64),
        ("shared_expert", 5, 32),
        ("mlp.gate", 8, 64),
        ("q_proj", 6, 64),
        ("in_proj_qkv", 6, 32),
        ("lm_head", 2, 64),
        ("embed_tokens", 8, 32),
    ):
        if name in path:
            return {"bits": bits, "group_size": group_size}
    return "o_proj" not in path  # left unquantized


def experts_only(path: str, _module: Any) -> bool:
    """Quantize the experts and nothing else."""
    return "switch_mlp" in path


CASES = {
    **{family: Case(family) for family in NATIVE_FAMILIES},
    **{
        f"{family}, mixed bits": Case(family, {"quant_predicate": mixed_bits})
        for family in ("qwen3_moe", "qwen3_next", "qwen3_5_moe")
    },
    **{
        f"{family}, {dtype}, unquantized": Case(family, {"bits": None, "dtype": dtype})
        for family, dtype in (
            ("mixtral", "bfloat16"),
            ("qwen3_moe", "float16"),
            ("qwen3_next", "float32"),
            ("qwen3_5_moe", "bfloat16"),
        )
    },
    **{f"{family}, bf16 scales": Case(family, {"dtype": "bfloat16"}) for family in NATIVE_FAMILIES},
    **{
        f"mixtral, {bits} bits": Case("mixtral", {"bits": bits, "dtype": "float16"})
        for bits in (2, 3, 5, 6, 8)
    },
    "qwen3_5_moe, only experts quantized": Case("qwen3_5_moe", {"quant_predicate": experts_only}),
    "qwen3_moe, group 128": Case(
        "qwen3_moe",
        {"group_size": 128, "overrides": {"hidden_size": 128, "moe_intermediate_size": 128}},
    ),
    "mixtral, hidden size 96, 7 experts of width 160": Case.of(
        "mixtral",
        hidden_size=96,
        num_attention_heads=3,
        num_key_value_heads=1,
        num_local_experts=7,
        num_experts_per_tok=3,
        intermediate_size=160,
    ),
    "qwen3_5_moe, hidden size 96, 11 experts": Case.of(
        "qwen3_5_moe",
        hidden_size=96,
        num_experts=11,
        num_experts_per_tok=5,
        moe_intermediate_size=96,
        shared_expert_intermediate_size=160,
    ),
    "qwen3_next, 512 experts, top 10": Case.of(
        "qwen3_next", num_experts=512, num_experts_per_tok=10
    ),
    **{
        f"{family}, top {top_k}": Case.of(family, num_experts_per_tok=top_k)
        for family in NATIVE_FAMILIES
        for top_k in (1, 8)
    },
    "qwen3_moe, scores not normalized": Case.of("qwen3_moe", norm_topk_prob=False),
    "qwen3_next, scores not normalized": Case.of("qwen3_next", norm_topk_prob=False),
    "qwen3_moe, a dense layer": Case.of("qwen3_moe", mlp_only_layers=[0], num_hidden_layers=3),
    "qwen3_next, every other layer dense": Case.of(
        "qwen3_next", decoder_sparse_step=2, num_hidden_layers=4
    ),
    "qwen3_next, biases": Case.of("qwen3_next", attention_bias=True),
    "qwen3_5_moe, biases": Case.of("qwen3_5_moe", attention_bias=True),
    **{f"{family}, tied": Case.of(family, tie_word_embeddings=True) for family in NATIVE_FAMILIES},
    "mixtral, traditional rope": Case.of("mixtral", rope_traditional=True),
    "qwen3_next, linear rope": Case.of(
        "qwen3_next", rope_scaling={"type": "linear", "factor": 4.0}
    ),
    "qwen3_5_moe, as many key as value heads": Case.of(
        "qwen3_5_moe", linear_num_key_heads=4, linear_conv_kernel_dim=3
    ),
    "qwen3_5_moe, one attention layer in four": Case.of(
        "qwen3_5_moe", num_hidden_layers=5, full_attention_interval=4
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_mlx_lm(packed: PackedModels, name: str) -> None:
    case = CASES[name]
    model = packed(case.family, **case.options)
    reference = reference_logits(model.checkpoint, PROMPT, num_decode=NUM_DECODE)
    check(model, reference, residency="mapped")


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_chunked_prefill(packed: PackedModels, family: str, chunk: int) -> None:
    model = packed(family)
    reference = reference_logits(model.checkpoint, PROMPT)
    engine = load(model)
    state = engine.new_state(PROMPT.size)
    logits = [
        engine.forward(PROMPT[start : start + chunk], state, logits="all")
        for start in range(0, PROMPT.size, chunk)
    ]
    assert_logits_close(np.concatenate(logits), reference.prefill)
    engine.close()


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_owned_experts(packed: PackedModels, family: str) -> None:
    model = packed(family)
    check(model, reference_logits(model.checkpoint, PROMPT, num_decode=NUM_DECODE), "owned")


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("mixtral", "num_experts_per_tok"),
        ("qwen3_moe", "num_experts_per_tok"),
        ("qwen3_5_moe", "num_experts_per_tok"),
    ],
)
@pytest.mark.parametrize(("choice", "used"), [("fast", 2), (1, 1), (6, 6)])
def test_a_chosen_number_of_experts(
    packed: PackedModels, family: str, key: str, choice: Any, used: int
) -> None:
    """What the user chose equals mlx-lm with the config changed, and the stats say so."""
    model = packed(family, overrides={key: 4})
    reference = reference_logits(model.checkpoint, PROMPT, overrides={key: used})
    engine = load(model, num_experts_per_token=choice)
    logits = engine.forward(PROMPT, engine.new_state(PROMPT.size), logits="all")
    assert_logits_close(logits, reference.prefill)
    assert (engine.stats.top_k, engine.stats.num_experts_per_token) == (4, used)
    assert engine.stats.is_lossy == (used < 4)
    engine.close()


def test_longer_than_a_chunk(packed: PackedModels) -> None:
    """A prompt longer than the engine's buffers is computed in pieces."""
    model = packed("qwen3_next")
    prompt = np.random.default_rng(8).integers(3, 320, 530).astype(np.int32)
    reference = reference_logits(model.checkpoint, prompt)
    engine = load(model)
    logits = engine.forward(prompt, engine.new_state(600), logits="all")
    assert_logits_close(logits, reference.prefill)
    # The head's matrix product sums one row in another order than many.
    assert_logits_close(engine.forward(prompt, engine.new_state(600)), logits[-1:])
    engine.close()


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_a_float16_cache_rounds_and_no_more(packed: PackedModels, family: str) -> None:
    """Half precision keys and values move logits less than bf16 arithmetic does (0.4 to 1.2)."""
    model = packed(family, dtype="bfloat16")
    logits = []
    for kv_dtype in ("f16", "f32"):
        engine = load_engine(model.container, engine="native", kv_dtype=kv_dtype)
        logits.append(engine.forward(PROMPT, engine.new_state(PROMPT.size), logits="all"))
        engine.close()
    difference = np.abs(logits[0] - logits[1]).max()
    assert 0 < difference < FLOAT16_CACHE_TOLERANCE


# The same model as other programs write it. mlx-lm's own loader is still the oracle: it rewrites
# what it reads.


def test_flat_config(tmp_path: Path) -> None:
    """Qwen3.5 without text_config."""
    folder = make_checkpoint(tmp_path / "flat", "qwen3_5_moe")
    change_config(folder, lambda config: {**config, **config.pop("text_config"), **TYPE})
    check(pack_checkpoint(folder), reference_logits(folder, PROMPT, num_decode=NUM_DECODE))


TYPE = {"model_type": "qwen3_5_moe"}


def test_vision_and_mtp_tensors_are_left_alone(packed: PackedModels) -> None:
    noise = np.ones((8, 8), np.float32)
    extra = {"vision_tower.blocks.0.w.weight": noise, "language_model.mtp.fc.weight": noise}
    model = packed("qwen3_5_moe", extra_tensors=extra)
    check(model, reference_logits(model.checkpoint, PROMPT, num_decode=NUM_DECODE))


def test_tensor_names_as_transformers_writes_them(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "names", "qwen3_5_moe", bits=None)
    reference = reference_logits(folder, PROMPT, num_decode=NUM_DECODE)

    def rename(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
        return {
            name.replace("language_model.model.", "model.language_model.").replace(
                "language_model.lm_head", "lm_head"
            ): value
            for name, value in tensors.items()
        }

    change_tensors(folder, rename)
    check(pack_checkpoint(folder), reference)


def test_norms_relative_to_one(tmp_path: Path) -> None:
    """Checkpoints that mlx-lm has not rewritten keep norm weights around zero."""
    folder = make_checkpoint(tmp_path / "raw", "qwen3_5_moe", bits=None)
    before = reference_logits(folder, PROMPT, num_decode=NUM_DECODE)
    plus_one = ("layernorm.weight", "model.norm.weight", "q_norm.weight", "k_norm.weight")

    def undo(name: str, value: mx.array) -> mx.array:
        if name.endswith("conv1d.weight"):
            return value.moveaxis(1, 2)
        return value - 1.0 if name.endswith(plus_one) else value

    change_tensors(folder, lambda tensors: {name: undo(name, v) for name, v in tensors.items()})
    reference = reference_logits(folder, PROMPT, num_decode=NUM_DECODE)
    assert_logits_close(reference.prefill, before.prefill)
    check(pack_checkpoint(folder), reference)


def check(model: Packed, reference: Reference, residency: str = "mapped") -> None:
    """Compare prefill, decode after prefill, and the greedy tokens."""
    engine = load(model, residency=residency)
    state = engine.new_state(PROMPT.size + NUM_DECODE)
    prefill = engine.forward(PROMPT, state, logits="all")
    assert_logits_close(prefill, reference.prefill)
    chosen = reference.greedy.reshape(-1, 1)[:-1]
    decode = [prefill[-1], *(engine.forward(token, state)[0] for token in chosen)]
    assert_logits_close(np.stack(decode), reference.decode)
    assert [int(logits.argmax()) for logits in decode] == reference.greedy.tolist()
    assert state.position == PROMPT.size + NUM_DECODE - 1
    engine.close()


def load(model: Packed, **options: Any) -> Engine:
    options = {"kv_dtype": "f32", "arithmetic": "exact"} | options
    return load_engine(model.container, engine="native", **options)


def assert_logits_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=LOGIT_TOLERANCE)


def change_config(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def change_tensors(
    folder: Path, change: Callable[[dict[str, mx.array]], dict[str, mx.array]]
) -> None:
    path = folder / "model.safetensors"
    tensors = change(mx.load(str(path)))
    mx.eval(tensors)
    mx.save_safetensors(str(path) + ".new", tensors, metadata={"format": "mlx"})
    shutil.move(f"{path}.new.safetensors", path)
    (folder / "model.safetensors.index.json").unlink()  # it lists the former names
