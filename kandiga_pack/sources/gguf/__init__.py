"""GGUF files as MLX checkpoints, without loss.

`reader` finds the tensors, `config` turns the metadata into config.json, `families` (with `layout`
and `orders`) says which tensors make which MLX parameter, `recipes` reads those in the right order
of rows, `repack` turns blocks into MLX's affine groups, `tokenizer` rebuilds the tokenizer files,
and `source` puts it together as a `kandiga_pack.sources.base.Source`.
"""

from kandiga_pack.sources.gguf.source import GgufSource, is_gguf

__all__ = ["GgufSource", "is_gguf"]
