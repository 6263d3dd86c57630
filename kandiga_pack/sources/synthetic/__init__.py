"""Models of a published shape with made-up weights, for measuring.

presets.py    the shapes known by name
shape.py      config -> tensors, as mlx-lm would save them
stream.py     bytes from a name and an offset, as fast as memory
values.py     which numbers a tensor holds, so that activations stay finite
tokenizer.py  a tokenizer with as many tokens as the model
source.py     all of it as a Source
"""

from kandiga_pack.sources.synthetic.presets import PRESETS
from kandiga_pack.sources.synthetic.source import SyntheticSource

__all__ = ["PRESETS", "SyntheticSource"]
