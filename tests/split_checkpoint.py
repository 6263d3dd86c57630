"""A checkpoint in several files, of bytes nobody computes with: for packing, not for running."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

PREFIX = "model.layers.{}.block_sparse_moe"


def make_split_checkpoint(
    folder: Path,
    *,
    num_layers: int = 6,
    num_experts: int = 4,
    hidden_size: int = 128,
    layers_per_file: float = 1.5,
    seed: int = 0,
) -> Path:
    """Write a Mixtral-shaped checkpoint in f16 whose layers go over the ends of its files.

    An expert has 6 * hidden_size**2 bytes. Each file has dense tensors too, one of them of an odd
    length.
    """
    folder.mkdir(parents=True)
    config = {
        "model_type": "mixtral",
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size,
        "num_local_experts": num_experts,
        "num_experts_per_tok": 2,
        "num_hidden_layers": num_layers,
        "vocab_size": 256,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    rng = np.random.default_rng(seed)

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 1 << 15, shape, np.uint16).view(np.float16)

    stack = (num_experts, hidden_size, hidden_size)
    tensors = {"model.embed_tokens.weight": noise(256, hidden_size)}
    for layer in range(num_layers):
        prefix = PREFIX.format(layer)
        tensors[f"{prefix}.gate.weight"] = noise(num_experts, hidden_size)
        tensors[f"model.layers.{layer}.odd.bias"] = noise(3)
        for name in ("gate", "up", "down"):
            tensors[f"{prefix}.switch_mlp.{name}_proj.weight"] = noise(*stack)
    tensors["lm_head.weight"] = noise(256, hidden_size)
    _save(folder, tensors, layers_per_file)
    return folder


def _save(folder: Path, tensors: dict[str, np.ndarray], layers_per_file: float) -> None:
    names = list(tensors)
    per_file = round(layers_per_file * 5)  # a layer has five tensors
    groups = [names[at : at + per_file] for at in range(0, len(names), per_file)]
    weight_map = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: tensors[name] for name in group}, folder / file, {"format": "mlx"})
        weight_map |= dict.fromkeys(group, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=4))


def weight_files(folder: Path) -> Sequence[Path]:
    """Return the safetensors files of a folder, in order."""
    return sorted(folder.glob("*.safetensors"))
