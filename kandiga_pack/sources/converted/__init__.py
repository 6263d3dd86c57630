"""Any checkpoint mlx-lm can load, presented as `mlx_lm.convert` would have written it, in slices.

mlx-lm does all of the work that differs between families: its model class builds the parameters,
its `sanitize` renames, splits and transposes the published tensors, its quantizer decides what is
quantized and how. All of that is lazy in MLX, so it costs no memory until a tensor is evaluated.

`lazy_model` follows mlx_lm.convert up to the point where it writes. `dense` evaluates one dense
tensor at a time, the largest by rows. Expert stacks are never evaluated, because MLX would make the
whole stack to give one expert: `experts` runs the `sanitizer` on a few experts at a time, a model
object told that it has only so many. `published` finds their tensors in the download, `arrays`
crosses over between numpy and mlx, and `source` is the Source made of all this.
"""

from kandiga_pack.sources.converted.published import has_published_experts
from kandiga_pack.sources.converted.quantization import Quantization
from kandiga_pack.sources.converted.source import ConvertedSource

__all__ = ["ConvertedSource", "Quantization", "has_published_experts"]
