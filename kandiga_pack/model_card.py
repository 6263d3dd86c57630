"""README.md of a published container: what the Hub's search reads, and what a person needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from formats.manifest import Manifest
from kandiga_pack.convert import format_bytes

# What the source's card says and is as true of the container.
_CARRIED_KEYS = ("license", "license_name", "license_link", "language", "pipeline_tag")
_TAGS = ("kexp", "moe", "mlx")


@dataclass(frozen=True)
class SourceCard:
    """What is carried over from the card of the checkpoint, which `convert` put beside the shards.

    data: of its front matter, the keys that still hold; {} when there is none.
    base_model: what it says it was made from.
    """

    data: Mapping[str, Any]
    base_model: str | None = None


def read_source_card(text: str) -> SourceCard:
    """Return what a README.md says of license and language; nothing if it cannot be understood."""
    from huggingface_hub import ModelCard

    try:
        data = vars(ModelCard(text, ignore_metadata_errors=True).data)
    except Exception:  # people write these by hand, and a YAML parser has errors of its own
        return SourceCard({})
    carried = {key: data[key] for key in _CARRIED_KEYS if data.get(key)}
    base = data.get("base_model")
    if isinstance(base, list):
        base = base[0] if base else None
    return SourceCard(carried, base if isinstance(base, str) else None)


def write_card(
    repository: str,
    facts: Mapping[str, Any],
    manifest: Manifest,
    *,
    source: SourceCard,
    base_model: str | None,
) -> str:
    """Return the text of README.md.

    Args:
        repository: where it will stand, `user/name`.
        facts: what `inspect` says of the container.
        source: from `read_source_card`.
        base_model: Hub id of what was packed, None when it is not on the Hub.
    """
    from huggingface_hub.utils import yaml_dump

    body = "\n\n".join(
        [
            f"# {repository.partition('/')[2]}",
            _opening(facts, base_model),
            f"## Run it\n\n{_how_to_run(repository)}",
            f"## Sizes\n\n{_sizes(facts, manifest)}",
            f"## Digests\n\n{_digests(manifest)}",
            f"## Made from\n\n{_origin(facts)}",
        ]
    )
    front = yaml_dump(_front_matter(source, base_model), sort_keys=False)
    return f"---\n{front}---\n\n{body}\n"


def _front_matter(source: SourceCard, base_model: str | None) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": "kandiga"}
    if base_model is not None:
        front |= {"base_model": base_model, "base_model_relation": "quantized"}
    return front | {"pipeline_tag": "text-generation", **source.data, "tags": list(_TAGS)}


def _opening(facts: Mapping[str, Any], base_model: str | None) -> str:
    what = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "A model"
    experts = "/".join(str(count) for count in facts["experts_per_layer"])
    return (
        f"{what}, packed as a `.kexp` container: each expert is one aligned, checksummed block, so "
        "the experts that a token needs are read from disk when it needs them, and the model runs "
        f"in far less memory than it has weights. Architecture `{facts['architecture']}`, "
        f"{experts} experts in each of {len(facts['expert_layers'])} layers, "
        f"{facts['top_k']} a token. {_weights(facts)}"
    )


def _weights(facts: Mapping[str, Any]) -> str:
    if facts["conversion"] is None:
        return "Weights are those of the checkpoint, bit for bit (`kandiga-pack export`)."
    quantization = facts["quantization"]
    bits = f", quantized to {quantization['bits']} bits" if quantization else ""
    return f"Weights are those that `mlx_lm.convert` makes of the checkpoint{bits}."


def _how_to_run(repository: str) -> str:
    return f"""```
pip install kandiga-kexp
kandiga-run run {repository} "Why is the sky blue?"
kandiga-run chat {repository} --memory 4GB
kandiga-pack inspect {repository}
```

The first command downloads the files into the Hub's cache and checks every byte of them."""


def _sizes(facts: Mapping[str, Any], manifest: Manifest) -> str:
    per_token = facts["bytes_per_token"]
    rows = [
        ("on disk", sum(shard.size_bytes for shard in manifest.shards)),
        ("dense weights: in memory all the time", per_token["dense"]),
        ("experts of one token", per_token["experts"]),
        ("least memory: these two; the KV cache comes on top", sum(per_token.values())),
        (
            "all experts: with the dense weights, all memory it can use",
            facts["experts_bytes"],
        ),
    ]
    return _table(("", "size"), ((what, format_bytes(size)) for what, size in rows))


def _digests(manifest: Manifest) -> str:
    rows = (
        (f"`{shard.name}`", str(shard.size_bytes), f"`{shard.shard_root}`")
        for shard in manifest.shards
    )
    table = _table(("file", "bytes", "shard root"), rows)
    return (
        f"Set root `{manifest.set_root}`. It covers every weight; `kandiga-pack verify` computes "
        f"it again from the files.\n\n{table}"
    )


def _origin(facts: Mapping[str, Any]) -> str:
    source = facts["source"]
    lines = []
    if source.get("repository"):
        revision = f" at `{source['revision']}`" if source.get("revision") else ""
        lines.append(f"`{source['repository']}`{revision}.")
    files = source.get("files", {})
    if files:
        rows = ((f"`{name}`", f"`{files[name].get('sha256')}`") for name in sorted(files))
        lines.append(_table(("file", "sha256"), rows))
    return "\n\n".join(lines) or "Not recorded."


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
