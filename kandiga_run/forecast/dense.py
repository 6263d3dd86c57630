"""Which weights beside the routed experts a token reads."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kandiga_run.config import Config
from kandiga_run.forecast.shape import DenseBytes

# Packed and not computed: other models inside the checkpoint.
OTHER_MODELS = re.compile(r"(?:^|[._])(?:mtp|nextn|eagle|vision|visual|audio)(?:[._]|$)")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|tok_embeddings|word_embeddings)\.\w+$")


def dense_bytes(sizes: Mapping[str, int], config: Config) -> DenseBytes:
    """Return how the dense tensors {name: bytes} are used, given the language model's config."""
    unused = sum(size for name, size in sizes.items() if OTHER_MODELS.search(name))
    embedding = sum(
        size
        for name, size in sizes.items()
        if _EMBEDDING.search(name) and not OTHER_MODELS.search(name)
    )
    # A head that is the embedding multiplies all of its rows.
    is_tied = config.get("tie_word_embeddings") is True and not any(
        "lm_head." in name for name in sizes
    )
    by_row = 0 if is_tied else embedding
    return DenseBytes(sum(sizes.values()) - by_row - unused, by_row, unused)
