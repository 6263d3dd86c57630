"""Turn what the user named with --from into an Origin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from formats import MANIFEST_NAME
from formats.hub import HubError, HubFiles, HubId, parse_hub_id
from formats.reader import read_manifest
from formats.remote_index import is_missing_entry
from kandiga_pack.errors import AlreadyQuantizedError, UnreadableError
from kandiga_pack.repair.from_checkpoint import CheckpointOrigin
from kandiga_pack.repair.from_copy import CopyOrigin, LocalFiles
from kandiga_pack.repair.origin import Origin
from kandiga_pack.sources.converted import Quantization
from kandiga_pack.sources.open import open_source
from kandiga_pack.sources.remote import RemoteCheckpoint


def open_origin(text: str, meta: Mapping[str, Any] | None, revision: str | None) -> Origin:
    """Open what the user named with --from.

    Args:
        text: a container's or checkpoint's folder, a GGUF file, or the Hub id of either.
        meta: the damaged container's metadata, None when it is lost.
        revision: of a Hub id; by default the commit that `meta` records for it.
    """
    path = Path(text)
    if path.is_file() and path.suffix == ".kexp":
        path = path.parent
    if (path / MANIFEST_NAME).is_file():
        read_manifest(path)
        return CopyOrigin(text, LocalFiles(path))
    hub_id = None if path.exists() else parse_hub_id(text)
    if hub_id is None:
        return _open_local(text, meta)
    return _open_remote(_pinned(hub_id, meta, revision), meta)


def _open_local(text: str, meta: Mapping[str, Any] | None) -> Origin:
    quantization = Quantization.from_settings(meta.get("conversion") if meta else None)
    try:
        source = open_source(text, quantization=quantization)
    except AlreadyQuantizedError:
        source = open_source(text)
    return CheckpointOrigin(source, meta)


def _pinned(hub_id: HubId, meta: Mapping[str, Any] | None, revision: str | None) -> HubId:
    if revision is not None or hub_id.revision is not None:
        return HubId(hub_id.repository, revision or hub_id.revision)
    source = meta["source"] if meta else {}
    if source.get("repository") == hub_id.repository:
        return HubId(hub_id.repository, source.get("revision"))
    return hub_id


def _open_remote(hub_id: HubId, meta: Mapping[str, Any] | None) -> Origin:
    hub = HubFiles(hub_id)
    try:
        hub.read(MANIFEST_NAME, 0, 1)
        return CopyOrigin(str(hub_id), hub)
    except HubError as error:
        if not is_missing_entry(error):
            raise
    if meta is not None and meta.get("conversion") is not None:
        raise UnreadableError(
            f"{hub_id}: was converted while it was packed, which needs the whole checkpoint here; "
            f"run `hf download {hub_id.repository}` and give --from the folder, or give another "
            "copy of the container"
        )
    return CheckpointOrigin(RemoteCheckpoint(hub, _files_of_tensors(meta)), meta, hub)


def _files_of_tensors(meta: Mapping[str, Any] | None) -> dict[str, str] | None:
    if meta is None or not isinstance(meta.get("tensors"), dict):
        return None
    return {name: file for file, names in meta["tensors"].items() for name in names}
