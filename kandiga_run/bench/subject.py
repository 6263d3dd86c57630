"""The model that is measured: what it is, and the tokens it is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from formats import open_set

# Of a real text: enough for the longest default prefills not to see the same tokens twice.
_TEXT_TOKENS = 8192


@dataclass(frozen=True)
class Subject:
    """A container, as far as figures depend on it."""

    folder: Path
    architecture: str
    num_layers: int
    num_experts: int
    top_k: int
    #: of an expert on disk, the largest if they differ
    block_bytes: int
    expert_bytes: int
    total_bytes: int
    #: written by `kandiga-pack synth`: weights that were never trained
    is_made_up: bool

    @property
    def files(self) -> list[Path]:
        """Return the .kexp files."""
        return sorted(self.folder.glob("*.kexp"))


def subject(path: Path) -> Subject:
    """Return what a container is. Raises `formats.KexpError` when it is damaged or missing."""
    with open_set(path) as container:
        layers = list(container.layers)
        blocks = {layer: container.layout(layer).block_bytes for layer in layers}
        counts = {layer: container.num_experts(layer) for layer in layers}
        return Subject(
            folder=container.path,
            architecture=str(container.config.get("model_type")),
            num_layers=len(layers),
            num_experts=max(counts.values(), default=0),
            top_k=int(container.meta["top_k"]),
            block_bytes=max(blocks.values(), default=0),
            expert_bytes=sum(blocks[layer] * counts[layer] for layer in layers),
            total_bytes=sum(shard.path.stat().st_size for shard in container.shards),
            is_made_up=not container.meta["source"]["files"],
        )


def text_tokens(subject: Subject) -> tuple[int, ...]:
    """Return the tokens of an English text; none for made-up weights or without a tokenizer.

    What experts a trained router chooses depends on the text, so random tokens would not do. The
    text is one that every Python has.
    """
    if subject.is_made_up or not (subject.folder / "tokenizer.json").exists():
        return ()
    from pydoc_data.topics import topics

    from kandiga_run.tokenizer.prompts import Prompts

    text = "\n\n".join(topics.values())
    return tuple(Prompts(subject.folder).encode_raw(text[: _TEXT_TOKENS * 8])[:_TEXT_TOKENS])
