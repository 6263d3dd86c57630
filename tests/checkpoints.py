"""Tiny random checkpoints: mlx-lm's own model classes, saved as ordinary MLX checkpoint folders.

    from checkpoints import make_checkpoint, reference_logits

    folder = make_checkpoint(tmp_path / "model", "qwen3_moe", overrides={"num_experts": 7})
    reference = reference_logits(folder, [1, 2, 3, 4, 5])

The same arguments give the same bytes. dtype="float32" leaves the quantization scales in float32
too, so mlx computes everything in float32 and logits can be compared tightly.
"""

import contextlib
import copy
import io
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes, load_model, quantize_model, save_config, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from checkpoint_families import FAMILIES, NATIVE_FAMILIES, VOCAB_SIZE

__all__ = [
    "FAMILIES",
    "NATIVE_FAMILIES",
    "VOCAB_SIZE",
    "Reference",
    "family_config",
    "make_checkpoint",
    "make_tokenizer",
    "reference_logits",
]

mx.set_default_device(mx.cpu)

# Routers are louder than other weights so that the chosen experts differ clearly from those left
# out: a near-tie within float32 rounding would let two correct programs pick different experts.
ROUTER_GAIN = 4.0
# Noise on what the class initializes to a constant (norms at 1, biases at 0): a forgotten norm
# weight or bias must show in the logits.
VECTOR_NOISE = 0.2

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

QuantPredicate = Callable[[str, nn.Module], bool | dict[str, Any]]


def family_config(family: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the tiny config.json of a family.

    An override goes into text_config where the family keeps that key there.
    """
    config = {"model_type": family, **copy.deepcopy(FAMILIES[family])}
    _apply_overrides(config, overrides or {})
    return config


def make_checkpoint(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    dtype: str = "float32",
    bits: int | None = 4,
    group_size: int = 32,
    mode: str = "affine",
    global_scale: bool = False,
    overrides: Mapping[str, Any] | None = None,
    quant_predicate: QuantPredicate | None = None,
    extra_tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write model.safetensors, config.json and tokenizer files into `folder` and return it.

    Args:
        family: a key of FAMILIES.
        dtype: "float32", "bfloat16" or "float16": the weights, or the scales of quantized ones.
            What a family keeps in float32 (its cast_predicate) stays so, as in published files.
        bits: None leaves everything unquantized.
        mode: quantization mode of mlx: "affine", "mxfp4", "mxfp8" or "nvfp4".
        global_scale: give experts nvfp4's one scale a tensor, besides those of the groups.
        overrides: replaces keys of config.json.
        quant_predicate: (path, module) -> bool or {"bits", "group_size"}; default: the family's.
        extra_tensors: tensors that no module owns (vision tower, MTP head), added to the
            safetensors file as they are.
    """
    config = family_config(family, overrides)
    mx.random.seed(seed)  # some classes draw constants (A_log) at construction
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(copy.deepcopy(config)))
    _randomize(model, seed)
    _cast(model, getattr(mx, dtype))
    if bits is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # quantize_model prints its bits per weight
            model, config = quantize_model(
                model,
                config,
                group_size,
                bits,
                mode=mode,
                global_scale=global_scale,
                quant_predicate=_fitting_predicate(model, quant_predicate, group_size),
            )
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model)
    _add_tensors(folder / "model.safetensors", extra_tensors or {})
    tokenizer = make_tokenizer(folder)
    config["eos_token_id"] = tokenizer.token_to_id(IM_END)
    save_config(config, folder / "config.json")
    return folder


@dataclass(frozen=True)
class Reference:
    """What plain mlx-lm answers with the whole model in memory, on the CPU.

    prefill (T, vocab) float32: logits of every prompt token, one forward call.
    greedy (N,) int32: tokens chosen greedily after the prompt.
    decode (N, vocab) float32: the logits each was chosen from; decode[0] is prefill[-1].
    """

    prefill: np.ndarray
    greedy: np.ndarray
    decode: np.ndarray


def reference_logits(
    folder: Path,
    tokens: Sequence[int],
    *,
    num_decode: int = 4,
    float32: bool = True,
    overrides: Mapping[str, Any] | None = None,
) -> Reference:
    """Run plain mlx-lm over `tokens`, then decode `num_decode` tokens greedily.

    Args:
        float32: raise every weight and scale to float32 first, exactly, so that all arithmetic is
            float32 whatever the checkpoint's dtype. False computes as mlx-lm does by default.
        overrides: config keys to change at load, for example {"num_experts_per_tok": 1}.
    """
    config = json.loads((folder / "config.json").read_text())
    _apply_overrides(config, overrides or {})
    model, _ = load_model(folder, model_config=config)
    if float32:
        model.update(tree_map(_to_float32, model.parameters()))
    cache = make_prompt_cache(model)
    prefill = _forward(model, np.asarray(tokens, np.int32), cache)
    decode, greedy = [prefill[-1]], [int(prefill[-1].argmax())]
    while len(greedy) < num_decode:
        decode.append(_forward(model, np.asarray(greedy[-1:], np.int32), cache)[-1])
        greedy.append(int(decode[-1].argmax()))
    return Reference(prefill, np.asarray(greedy, np.int32), np.stack(decode))


def make_tokenizer(folder: Path) -> Tokenizer:
    """Write tokenizer.json (byte-level BPE) and tokenizer_config.json (ChatML template)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        show_progress=False,
    )
    tokenizer.train_from_iterator([__doc__ or "", CHAT_TEMPLATE], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return tokenizer


def _apply_overrides(config: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    inner = config.get("text_config", {})
    for key, value in overrides.items():
        (inner if key in inner else config)[key] = copy.deepcopy(value)


def _randomize(model: nn.Module, seed: int) -> None:
    """Replace every parameter by noise that depends on the seed and its name only."""
    values = []
    for name, value in tree_flatten(model.parameters()):
        noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(
            value.shape, dtype=np.float32
        )
        if value.ndim <= 1 or name.endswith(".bias"):
            values.append((name, value.astype(mx.float32) + mx.array(VECTOR_NOISE * noise)))
        else:
            gain = ROUTER_GAIN if _is_router(name) else 1.0
            values.append((name, mx.array(gain / math.sqrt(value.shape[-1]) * noise)))
    model.update(tree_unflatten(values))


def _is_router(name: str) -> bool:
    return "router" in name or name.endswith((".gate.weight", ".gate.wg.weight"))


def _cast(model: nn.Module, dtype: mx.Dtype) -> None:
    may_cast = getattr(model, "cast_predicate", lambda _name: True)
    cast = [
        (name, value.astype(dtype) if may_cast(name) else value)
        for name, value in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(cast))


def _fitting_predicate(
    model: nn.Module, predicate: QuantPredicate | None, group_size: int
) -> QuantPredicate | None:
    """Wrap a predicate so that groups wider than the tiny rows shrink to the default group_size.

    Families ask for 8-bit routers at group 64, which a hidden size of 96 cannot hold.
    """
    predicate = predicate or getattr(model, "quant_predicate", None)
    if predicate is None:
        return None

    def fitting(path: str, module: nn.Module) -> bool | dict[str, Any]:
        params = predicate(path, module)
        if isinstance(params, dict) and module.weight.shape[-1] % params["group_size"]:
            return {**params, "group_size": group_size}
        return params

    return fitting


def _add_tensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    if tensors:
        merged = {**mx.load(str(file)), **{name: mx.array(data) for name, data in tensors.items()}}
        mx.eval(merged)
        mx.save_safetensors(str(file), merged, metadata={"format": "mlx"})


def _to_float32(value: mx.array) -> mx.array:
    return value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value


def _forward(model: nn.Module, tokens: np.ndarray, cache: list[Any]) -> np.ndarray:
    logits = model(mx.array(tokens)[None], cache=cache)[0].astype(mx.float32)
    return np.array(logits)
