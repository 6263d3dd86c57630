"""Make a mixture of experts out of a dense llama checkpoint, without training (upcycling).

Komatsuzaki et al. 2022 (arXiv 2212.05055): every expert starts as a copy of the dense MLP and the
router is random. The gates of the chosen experts sum to 1, so whatever the router chooses, the
mixture computes what the dense model computes, up to float rounding. That makes the result a
checkpoint with a known answer, which is why the demo uses one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from kandiga_pack.sources.base import Source

# Small enough that a shard can be held while it is written.
SHARD_BYTES = 128 << 20
# Router weights are uniform in +-1/8: logits of normed activations get a spread of about 1, so
# the two gates differ and the choice changes from token to token.
ROUTER_SCALE = 1 / 8

_MLP = re.compile(r"^(model\.layers\.\d+)\.mlp\.((?:gate|up|down)_proj\.\w+)$")
_MOE_PREFIX = "block_sparse_moe"


@dataclass(frozen=True)
class Upcycling:
    """Parameters of the mixture; the same ones give the same files."""

    num_experts: int = 8
    top_k: int = 2
    seed: int = 0


@dataclass(frozen=True)
class _Planned:
    """A tensor of the mixture and how to get it."""

    name: str
    length_bytes: int
    read: Callable[[], np.ndarray]


def upcycle(
    dense: Source,
    folder: Path,
    options: Upcycling,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the mixture of `dense` (a llama checkpoint) into `folder`, an ordinary MLX checkpoint.

    Args:
        on_bytes: called with the bytes of every shard that has been written.
    """
    if dense.config["model_type"] != "llama":
        raise ValueError(
            f"{dense.name}: a llama checkpoint is wanted, not {dense.config['model_type']}"
        )
    for file in dense.files:
        if file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    _write_json(folder / "config.json", _mixtral_config(dense.config, options))
    shards = _shards(list(_plan(dense, options)))
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        arrays = {tensor.name: tensor.read() for tensor in shard}
        # Not save_file, which makes files that only their owner may read.
        (folder / name).write_bytes(save(arrays, metadata={"format": "mlx"}))
        on_bytes(sum(tensor.length_bytes for tensor in shard))
    index = {
        "metadata": {"total_size": sum(t.length_bytes for shard in shards for t in shard)},
        "weight_map": {
            t.name: name for name, shard in zip(names, shards, strict=True) for t in shard
        },
    }
    _write_json(folder / "model.safetensors.index.json", index)


def upcycled_bytes(dense: Source, options: Upcycling) -> int:
    """Bytes of all tensors that `upcycle` writes."""
    return sum(tensor.length_bytes for tensor in _plan(dense, options))


def router_weights(layer: int, num_experts: int, hidden_size: int, seed: int) -> np.ndarray:
    """Return (num_experts, hidden_size) float32 from a hash, not from a generator: numpy promises
    no bit-equal streams between versions."""
    digest = hashlib.shake_256(f"kandiga demo router {seed} {layer}".encode())
    integers = np.frombuffer(digest.digest(2 * num_experts * hidden_size), "<i2")
    weights = integers.astype(np.float32) / 32768 * np.float32(ROUTER_SCALE)
    return weights.reshape(num_experts, hidden_size)


def _plan(dense: Source, options: Upcycling) -> Iterator[_Planned]:
    hidden_size = dense.config["hidden_size"]
    routed: set[str] = set()
    for info in dense.tensors.values():
        match = _MLP.match(info.name)
        if match is None:
            yield _Planned(info.name, info.length_bytes, partial(dense.read, info.name))
            continue
        layer_prefix, rest = match.groups()
        if layer_prefix not in routed:
            routed.add(layer_prefix)
            yield _router(layer_prefix, hidden_size, options)
        yield _Planned(
            f"{layer_prefix}.{_MOE_PREFIX}.switch_mlp.{rest}",
            info.length_bytes * options.num_experts,
            partial(_copies, dense, info.name, options.num_experts),
        )


def _router(layer_prefix: str, hidden_size: int, options: Upcycling) -> _Planned:
    layer = int(layer_prefix.rpartition(".")[2])
    return _Planned(
        f"{layer_prefix}.{_MOE_PREFIX}.gate.weight",
        4 * options.num_experts * hidden_size,
        partial(router_weights, layer, options.num_experts, hidden_size, options.seed),
    )


def _copies(dense: Source, name: str, num_experts: int) -> np.ndarray:
    return np.repeat(dense.read(name)[None], num_experts, axis=0)


def _shards(tensors: list[_Planned]) -> list[list[_Planned]]:
    shards: list[list[_Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.length_bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.length_bytes
    return shards


def _mixtral_config(dense: dict[str, Any], options: Upcycling) -> dict[str, Any]:
    config = {key: value for key, value in dense.items() if key != "head_dim"}
    quantization = {_moe_module(key): value for key, value in dense.get("quantization", {}).items()}
    return {
        **config,
        **({"quantization": quantization} if quantization else {}),
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_experts_per_tok": options.top_k,
        "num_local_experts": options.num_experts,
    }


def _moe_module(name: str) -> str:
    """A quantization override is keyed by module: rename those of the MLP as their tensors are."""
    return re.sub(r"\.mlp\.(?=(gate|up|down)_proj$)", f".{_MOE_PREFIX}.switch_mlp.", name)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
