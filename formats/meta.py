"""The metadata document (section META): what it must say, and that it agrees with the index."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from formats import canonical_json
from formats.constants import MAX_EXPERTS_PER_LAYER, MAX_LAYERS
from formats.errors import KexpError, in_file, short
from formats.manifest import HEX_DIGEST
from formats.plan import LayerPlan

_KEY = re.compile(r"[a-z0-9_.-]+\Z")

_REQUIRED: dict[str, tuple[type, ...]] = {
    "architecture": (str,),
    "activation": (str,),
    "dense_header": (dict,),
    "hidden_size": (int,),
    "layers": (list,),
    "quantization": (dict, type(None)),
    "source": (dict,),
    "top_k": (int,),
}
_OPTIONAL: dict[str, tuple[type, ...]] = {"counts": (dict,), "tensors": (dict,)}


@dataclass(frozen=True)
class DenseHeaderPin:
    """Length and SHA-256 of the dense section's header, which is thus checked at open."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, header: bytes) -> DenseHeaderPin:
        return cls(len(header), hashlib.sha256(header).hexdigest())


def pack_meta(meta: Mapping[str, Any], layers: Sequence[LayerPlan], dense_header: bytes) -> bytes:
    """Return the bytes of META, with the two facts only the writer knows filled in.

    Those are "layout" of each entry in "layers", and "dense_header".

    Raises:
        KexpError: E_META if the document lacks something or contradicts the plan; E_JSON_VALUE.
    """
    listed = meta.get("layers")
    if not isinstance(listed, list) or len(listed) != len(layers):
        raise KexpError("E_META", f"metadata: layers wanted as a list of {len(layers)}")
    filled = []
    for entry, plan in zip(listed, layers, strict=True):
        if not isinstance(entry, dict) or entry.get("layout", plan.layout) != plan.layout:
            raise KexpError("E_META", f"metadata: wanted layout {plan.layout}", layer=plan.layer)
        filled.append({**entry, "layout": plan.layout})
    pin = DenseHeaderPin.of(dense_header)
    document = {
        **meta,
        "layers": filled,
        "dense_header": {"sha256": pin.sha256, "size": pin.size_bytes},
    }
    data = canonical_json.encode(document, what="metadata")
    found = parse_meta(data, file=None)
    if layer_plans(found) != tuple(layers):
        raise KexpError("E_META", "metadata: layers are not those of the plan")
    return data


def parse_meta(raw: bytes, *, file: PurePath | None) -> dict[str, Any]:
    """Return the checked document; KexpError E_META or E_JSON_*."""

    def wrong(message: str) -> KexpError:
        return KexpError("E_META", f"metadata: {message}", file=file)

    document = canonical_json.decode(raw, what="metadata", file=file)
    if not isinstance(document, dict):
        raise wrong("wanted a JSON object")
    for key, value in document.items():
        if not _KEY.match(key):
            raise wrong(f"key {key!r} is not made of a-z 0-9 _ . -")
        types = _REQUIRED.get(key) or _OPTIONAL.get(key)
        if types and type(value) not in types:
            raise wrong(f"{key} is {type(value).__name__}, wanted {types[0].__name__}")
    missing = _REQUIRED.keys() - document.keys()
    if missing:
        raise wrong(f"lacks {', '.join(sorted(missing))}")
    if document["hidden_size"] < 1:
        raise wrong(f"hidden_size is {document['hidden_size']}")
    with in_file(file):
        _check_layers(document)
        _dense_header_pin(document)
        _check_source(document["source"])
        _check_tensors(document.get("tensors", {}))
    return document


def _check_layers(document: dict[str, Any]) -> None:
    wanted = {"layer": int, "layout": int, "num_experts": int, "prefix": str}
    previous = -1
    for entry in document["layers"]:
        if not isinstance(entry, dict) or any(
            type(entry.get(key)) is not kind for key, kind in wanted.items()
        ):
            raise KexpError("E_META", f"metadata: a layer wanted with {', '.join(wanted)}")
        layer, num_experts = entry["layer"], entry["num_experts"]
        if not previous < layer < MAX_LAYERS:
            raise KexpError(
                "E_META", f"metadata: layers ascend below {MAX_LAYERS}; {layer} follows {previous}"
            )
        if not 1 <= num_experts <= MAX_EXPERTS_PER_LAYER:
            raise KexpError("E_META", f"metadata: {num_experts} experts", layer=layer)
        if not 1 <= document["top_k"] <= num_experts:
            raise KexpError(
                "E_META",
                f"metadata: top_k {document['top_k']} of {num_experts} experts",
                layer=layer,
            )
        previous = layer
    if previous < 0:
        raise KexpError("E_META", "metadata: no layers")


def layer_plans(document: Mapping[str, Any]) -> tuple[LayerPlan, ...]:
    """Return the layers that a checked document lists."""
    return tuple(
        LayerPlan(entry["layer"], entry["num_experts"], entry["layout"])
        for entry in document["layers"]
    )


def _dense_header_pin(document: Mapping[str, Any]) -> DenseHeaderPin:
    pin = document["dense_header"]
    size, sha256 = pin.get("size"), pin.get("sha256")
    if pin.keys() != {"size", "sha256"} or not _is_size(size) or not _is_digest(sha256):
        raise KexpError("E_META", "metadata: dense_header wanted with sha256, size")
    return DenseHeaderPin(size, sha256)


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and HEX_DIGEST.match(value) is not None


def _check_source(source: dict[str, Any]) -> None:
    for key in ("repository", "revision"):
        if not isinstance(source.get(key), str | None):
            raise KexpError("E_META", f"metadata: {key} of the source wanted as a string or null")
    files = source.get("files", {})
    if not isinstance(files, dict):
        raise KexpError("E_META", "metadata: files of the source wanted as an object")
    for name, record in files.items():
        if (
            not isinstance(record, dict)
            or not _is_size(record.get("size"))
            or ("sha256" in record and not _is_digest(record["sha256"]))
        ):
            raise KexpError("E_META", f"metadata: source file {name!r} wanted with size, sha256")


def _check_tensors(tensors: dict[str, Any]) -> None:
    for file, names in tensors.items():
        if not isinstance(names, list) or any(type(name) is not str for name in names):
            raise KexpError("E_META", f"metadata: tensors of {file!r} wanted as a list of names")


def check_dense_header(document: Mapping[str, Any], header: bytes, *, file: PurePath) -> None:
    """Raise KexpError E_DENSE_SHA256 unless `header` is the one that META pins."""
    pin = _dense_header_pin(document)
    actual = DenseHeaderPin.of(header)
    if actual != pin:
        raise KexpError(
            "E_DENSE_SHA256",
            f"dense header of {actual.size_bytes} bytes with sha256 {short(actual.sha256)}, "
            f"metadata says {pin.size_bytes} bytes with {short(pin.sha256)}",
            file=file,
        )
