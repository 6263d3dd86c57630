"""What the engine promises besides the right logits: memory, errors, settings, the engine seam."""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import mixtral

from checkpoints import reference_logits
from kandiga_run.container import Model
from kandiga_run.engine import EngineOptions, load_engine
from kandiga_run.errors import RunError
from kandiga_run.memory.use import memory_use
from kandiga_run.mlx_engine.dense import DenseWeights
from kandiga_run.mlx_engine.engine import MlxEngine

from .conftest import PROMPT, PackedFactory
from .test_families import RUNNABLE, assert_close

_MIB = 1 << 20


def test_load_engine_takes_mlx_for_families_the_native_engine_does_not_know(
    packed: PackedFactory,
) -> None:
    model = packed("olmoe")
    engine = load_engine(model.container)
    assert engine.name == "mlx"
    assert engine.vocab_size == model.reference.prefill.shape[1]
    state = engine.new_state(PROMPT.size)
    assert_close(engine.forward(PROMPT, state), model.reference.prefill[-1:])
    assert state.position == PROMPT.size
    assert state.nbytes > 0
    assert state.kv_format == "f32"
    engine.close()
    engine.close()
    with pytest.raises(RunError, match="closed"):
        engine.new_state(1)


def test_experts_never_fill_the_memory(packed: PackedFactory) -> None:
    """40 MB of experts, of which a token uses 5 %."""
    model = packed(
        "mixtral",
        bits=None,
        overrides={"num_local_experts": 40, "intermediate_size": 1280},
    )
    expert_bytes = 2 * 40 * 3 * 64 * 1280 * 4
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    with model.engine(EngineOptions(residency="mapped"), experts_on="mlx") as engine:
        assert engine._model.expert_bytes >= expert_bytes
        state = engine.new_state(8)
        for token in (1, 2, 3):
            engine.forward(np.array([token], np.int32), state)
        assert mx.get_peak_memory() - before < 0.2 * expert_bytes


@pytest.mark.parametrize("family", RUNNABLE)
def test_the_head_computes_one_row_when_one_is_wanted(packed: PackedFactory, family: str) -> None:
    with packed(family).engine() as engine:
        network = engine._network
        assert network is not None
        network.head.only_last = True
        cache = engine.new_state(8).cache
        logits = network.module(mx.array(PROMPT[None, :5]), cache=cache)
        assert logits.shape == (1, 1, engine.vocab_size)


def test_long_prompts_are_computed_in_chunks(
    packed: PackedFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed("qwen3_next")
    monkeypatch.setattr("kandiga_run.mlx_engine.engine.PREFILL_CHUNK", 10)
    with model.engine() as engine:
        last = engine.forward(PROMPT, engine.new_state(64))
        assert_close(last, model.reference.prefill[-1:])
        every = engine.forward(PROMPT, engine.new_state(64), logits="all")
        assert_close(every, model.reference.prefill)
        assert engine.stats.device_waits == 2 * 3 * 2  # calls, chunks, layers


def test_two_states_do_not_disturb_each_other(packed: PackedFactory) -> None:
    model = packed("jamba")
    with model.engine() as engine:
        one, other = engine.new_state(64), engine.new_state(64)
        engine.forward(PROMPT[:9], one)
        engine.forward(PROMPT[::-1].copy(), other)
        assert_close(engine.forward(PROMPT[9:], one), model.reference.prefill[-1:])


def test_a_budget_leaves_the_rest_to_the_experts(packed: PackedFactory) -> None:
    model = packed("gpt_oss")
    use = memory_use()
    own_bytes = use.anonymous_bytes or use.resident_bytes
    budget = own_bytes + 64 * _MIB
    with model.engine(EngineOptions(memory_bytes=budget)) as engine:
        assert engine.stats.residency == "owned"
        prefill = engine.forward(PROMPT, engine.new_state(64), logits="all")
        assert_close(prefill, model.reference.prefill)
    with (
        pytest.raises(RunError, match=r"the smallest that works is \d+MiB"),
        model.engine(EngineOptions(memory_bytes=_MIB)),
    ):
        pass


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([], "at least one"),
        ([320], "token 320 is outside the vocabulary of 320"),
        ([-1], "token -1 is outside"),
        (list(range(9)), "9 more tokens at position 0 exceed the 8 tokens"),
    ],
)
def test_tokens_that_cannot_be_computed(
    packed: PackedFactory, tokens: list[int], reason: str
) -> None:
    with packed("olmoe").engine() as engine:
        state = engine.new_state(8)
        with pytest.raises(RunError, match=reason):
            engine.forward(np.array(tokens, np.int32), state)
        assert state.position == 0


def test_metal_only_family_loads_and_says_why_it_does_not_run(packed: PackedFactory) -> None:
    model = packed("muse_spark", reference=False)
    with model.engine() as engine:
        assert engine.experts_on == {"mlx": 2}
        assert engine._network is not None
        experts = engine._network.module.model.language_model.layers[0].mlp.experts
        assert experts.post_expert_norm.weight.shape == (32,)
        if not mx.metal.is_available():
            with pytest.raises(RunError, match=r"muse_spark.*Metal"):
                engine.forward(PROMPT, engine.new_state(64))


def test_a_family_of_fixed_top_k_names_itself(packed: PackedFactory) -> None:
    options = EngineOptions(num_experts_per_token=2)
    with (
        pytest.raises(RunError, match=r"llama4.* with 2 experts a token: .*Only 1 expert"),
        packed("llama4").engine(options),
    ):
        pass


def test_one_expert_a_token_where_mlx_would_crash(packed: PackedFactory) -> None:
    with packed("bailing_moe").engine(EngineOptions(num_experts_per_token=1)) as engine:
        assert np.isfinite(engine.forward(PROMPT, engine.new_state(64))).all()


def test_a_top_k_that_the_family_ignores_is_noticed(
    packed: PackedFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published number must not run silently under another name."""
    monkeypatch.setattr("kandiga_run.mlx_engine.build.top_k_override", lambda *_: {})
    with (
        packed("olmoe").engine(EngineOptions(num_experts_per_token=1)) as engine,
        pytest.raises(RunError, match="uses 2 experts a token where 1 were asked for"),
    ):
        engine.forward(PROMPT, engine.new_state(64))


def test_a_tensor_that_mlx_lm_does_not_know(packed: PackedFactory) -> None:
    """Strict, as plain mlx-lm is with this checkpoint."""
    tower = {"model.tower.weight": np.ones((4, 4), np.float32)}
    model = packed("olmoe", extra_tensors=tower, reference=False)
    with pytest.raises(RunError, match=r"mlx-lm cannot build.*model\.tower\.weight") as caught:
        MlxEngine(Model.open(model.container), EngineOptions())
    assert "\n" not in str(caught.value)


def test_experts_that_mlx_lm_rearranges_are_refused(
    packed: PackedFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored blocks are what the file holds; a family that changes them at load needs others."""

    def doubling(_model: object, weights: dict[str, Any]) -> dict[str, Any]:
        return {
            name: 2 * value if name.endswith("down_proj.scales") else value
            for name, value in weights.items()
        }

    monkeypatch.setattr(mixtral.Model, "sanitize", doubling)
    with (
        pytest.raises(RunError, match=r"switch_mlp\.down_proj\.scales: mlx-lm rearranges"),
        packed("mixtral").engine(),
    ):
        pass


def test_what_mlx_lm_drops_is_not_even_read(
    packed: PackedFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = {"vision_tower.patch.weight": np.ones((4, 4), np.float32)}
    model = packed("qwen3_5_moe", extra_tensors=tower)
    names = []
    read = DenseWeights.read
    monkeypatch.setattr(DenseWeights, "read", lambda *args: names.append(args[1]) or read(*args))
    with model.engine() as engine:
        assert_close(engine.forward(PROMPT, engine.new_state(64)), model.reference.prefill[-1:])
        assert set(names) == engine._model.dense.keys() - {"vision_tower.patch.weight"}


def test_a_family_that_computes_with_dense_tensors_while_loading(
    packed: PackedFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifting(_model: object, weights: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value + 1 if name.endswith("norm.weight") else value
            for name, value in weights.items()
        }

    model = packed("mixtral")
    monkeypatch.setattr(mixtral.Model, "sanitize", shifting)
    wanted = reference_logits(model.folder, PROMPT).prefill
    assert np.abs(wanted - model.reference.prefill).max() > 0.1
    with model.engine() as engine:
        assert_close(engine.forward(PROMPT, engine.new_state(64), logits="all"), wanted)


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_next", "jamba"])
def test_going_back_to_a_mark(packed: PackedFactory, family: str) -> None:
    """What follows a mark is what followed it the first time, recurrent layers included."""
    with packed(family).engine() as engine:
        state = engine.new_state(64)
        engine.forward(PROMPT[:6], state)
        assert state.can_mark
        mark = state.mark()
        first = engine.forward(PROMPT[6:], state).copy()
        state.rewind(mark)
        engine.forward(PROMPT[8:], state)
        state.rewind(mark)
        assert state.position == 6
        assert np.array_equal(engine.forward(PROMPT[6:], state), first)
        assert (mark.nbytes > 0) == (family != "gpt_oss")
        with pytest.raises(ValueError, match="not a mark of the past"):
            state.rewind(replace(mark, position=state.position + 1))
