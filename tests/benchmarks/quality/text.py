"""A real English text that every machine has: Python's own language reference."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kandiga_run.tokenizer.prompts import Prompts

#: What is written into results: the text differs between Python versions.
NAME = "pydoc_data.topics"


def english_text() -> str:
    """Return the topics in alphabetical order, about 460 000 characters."""
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def text_tokens(model: Path, count: int) -> NDArray[np.int32]:
    """Return the first `count` tokens of the text, in the tokens of a model.

    Args:
        model: folder with a tokenizer.json.

    Raises ValueError when the text is shorter.
    """
    ids = Prompts(model).tokenizer.encode(english_text(), add_special_tokens=False).ids
    if len(ids) < count:
        raise ValueError(f"{NAME} has {len(ids)} tokens of {model}, {count} are wanted")
    return np.array(ids[:count], dtype=np.int32)
