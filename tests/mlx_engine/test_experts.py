"""Both ways of computing experts, for every form the weights of an expert may have."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import reference_logits
from kandiga_run.engine import EngineOptions
from kandiga_run.errors import RunError

from .conftest import PROMPT, PackedFactory
from .test_families import assert_close, decode

AFFINE = {
    f"{bits}-bit-group-{group_size}": {
        "bits": bits,
        "group_size": group_size,
        "overrides": {"hidden_size": 3 * group_size, "moe_intermediate_size": group_size},
    }
    for bits, group_size in [(2, 32), (3, 32), (4, 64), (5, 32), (6, 64), (8, 32), (4, 128)]
}
SIZES = {
    "hidden-96": {"overrides": {"hidden_size": 96}},
    "one-of-seven": {"overrides": {"num_experts": 7, "num_experts_per_tok": 1}},
    "all-of-seven": {"overrides": {"num_experts": 7, "num_experts_per_tok": 7}},
    "512-experts": {"overrides": {"num_experts": 512, "num_experts_per_tok": 10}},
}
PLAIN = {
    "float32": {"bits": None},
    "bfloat16": {"bits": None, "dtype": "bfloat16"},
    "float16": {"bits": None, "dtype": "float16"},
    "bfloat16-scales": {"dtype": "bfloat16"},
    "float16-scales": {"dtype": "float16"},
}
MODES = {
    "mxfp4": {"mode": "mxfp4"},
    "mxfp8": {"mode": "mxfp8", "bits": 8},
    "nvfp4": {"mode": "nvfp4", "group_size": 16},
}
ON_KERNELS = AFFINE | SIZES | PLAIN


def mixed_bits(path: str, _module: object) -> dict[str, int] | bool:
    """8-bit down projections and 3-bit layer 0 beside 4-bit experts; the router is left alone."""
    if path.endswith("gate"):
        return False
    bits = 8 if "down_proj" in path else 3 if "layers.0" in path else 4
    return {"bits": bits, "group_size": 32}


@pytest.mark.parametrize("arguments", ON_KERNELS.values(), ids=ON_KERNELS)
def test_kernels(packed: PackedFactory, arguments: dict[str, Any]) -> None:
    model = packed("qwen3_moe", **arguments)
    with model.engine(experts_on="kernels") as engine:
        assert set(engine.experts_on) == {"kernels"}
        state = engine.new_state(64)
        assert_close(engine.forward(PROMPT, state, logits="all"), model.reference.prefill)
        rows = decode(engine, state, int(model.reference.greedy[0]), 3)
        assert_close(np.stack(rows), model.reference.decode[1:])


# SIZES too: mlx-lm sorts the tokens by expert where it has 64 choices or more.
@pytest.mark.parametrize("arguments", (SIZES | PLAIN | MODES).values(), ids=SIZES | PLAIN | MODES)
def test_mlx_modules(packed: PackedFactory, arguments: dict[str, Any]) -> None:
    model = packed("qwen3_moe", **arguments)
    with model.engine(experts_on="mlx") as engine:
        prefill = engine.forward(PROMPT, engine.new_state(64), logits="all")
    np.testing.assert_array_equal(prefill, model.reference.prefill)


def test_nvfp4_with_one_scale_a_tensor(
    packed: PackedFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mlx applies that scale on a GPU only, so a stand-in applies it here, to both sides."""
    gather_qmm = mx.gather_qmm

    def scaled(*args: Any, global_scale: Any = None, **options: Any) -> Any:
        y = gather_qmm(*args, **options)
        if global_scale is None:
            return y
        return y * global_scale[options["rhs_indices"]][..., None, None]

    monkeypatch.setattr(mx, "gather_qmm", scaled)
    model = packed("qwen3_moe", mode="nvfp4", group_size=16, global_scale=True)
    with model.engine(experts_on="mlx") as engine:
        prefill = engine.forward(PROMPT, engine.new_state(64), logits="all")
    np.testing.assert_array_equal(prefill, model.reference.prefill)

    monkeypatch.undo()
    with model.engine() as engine, pytest.raises(RunError, match="Global scale is only supported"):
        engine.forward(PROMPT, engine.new_state(64))


def test_bits_of_its_own_for_each_tensor(packed: PackedFactory) -> None:
    model = packed("qwen3_next", quant_predicate=mixed_bits)
    for experts_on in ("kernels", "mlx"):
        with model.engine(experts_on=experts_on) as engine:
            prefill = engine.forward(PROMPT, engine.new_state(64), logits="all")
        assert_close(prefill, model.reference.prefill)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "nemotron_h", "phixtral"])
@pytest.mark.parametrize("wave_experts", [1, 3])
def test_waves_change_nothing(packed: PackedFactory, family: str, wave_experts: int) -> None:
    """More experts than fit the staging buffer are computed a few at a time, to the same bits."""
    model = packed(family)
    with model.engine() as engine:
        expert_bytes = engine._model.container.layout(1).payload_bytes
    with model.engine(experts_on="mlx", wave_bytes=wave_experts * expert_bytes) as engine:
        prefill = engine.forward(PROMPT, engine.new_state(64), logits="all")
        assert engine.stats.device_waits >= 2 * engine.experts_on["mlx"]
    np.testing.assert_array_equal(prefill, model.reference.prefill)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "gemma4_text"])
def test_sixteen_bit_arithmetic_is_that_of_plain_mlx_lm(packed: PackedFactory, family: str) -> None:
    """What a machine with a GPU computes by default, forced here."""
    model = packed(family, dtype="bfloat16")
    wanted = reference_logits(model.folder, PROMPT, float32=False)
    with model.engine(experts_on="mlx", float32=False) as engine:
        state = engine.new_state(64)
        prefill = engine.forward(PROMPT, state, logits="all")
        rows = decode(engine, state, int(wanted.greedy[0]), 3)
    np.testing.assert_array_equal(prefill, wanted.prefill)
    np.testing.assert_array_equal(np.stack(rows), wanted.decode[1:])


def test_one_wait_for_the_device_in_each_moe_layer(packed: PackedFactory) -> None:
    with packed("llama4").engine() as engine:
        state = engine.new_state(64)
        num_layers = engine.experts_on["kernels"]
        assert num_layers == 4
        for calls, chunk in enumerate((PROMPT, PROMPT[:1], PROMPT[:1]), start=1):
            engine.forward(chunk, state)
            assert engine.stats.device_waits == calls * num_layers
        assert engine.stats.device_wait_seconds > 0


@pytest.mark.parametrize(
    ("family", "arguments", "reason"),
    [
        ("gpt_oss", {}, "SwitchGLU with SwiGLU"),
        ("nemotron_h", {}, "SwitchMLP with ReLU2"),
        ("qwen3_moe", {"mode": "mxfp4"}, "mxfp4"),
    ],
)
def test_kernels_refuse_what_they_do_not_compute(
    packed: PackedFactory, family: str, arguments: dict[str, Any], reason: str
) -> None:
    model = packed(family, **arguments)
    with pytest.raises(RunError, match=reason), model.engine(experts_on="kernels"):
        pass
    with model.engine(EngineOptions(), experts_on="auto") as engine:
        assert set(engine.experts_on) == {"mlx"}
