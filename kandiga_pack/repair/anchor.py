"""kexp.json, the anchor of a repair: is it itself what was written?

It has no checksum of its own. What it says is said again by the files it lists, so a wrong digit
shows as a disagreement, and another copy of the set has the right one.
"""

from __future__ import annotations

from pathlib import Path

from formats import MANIFEST_NAME, KexpError, digests
from formats.manifest import FileRecord, Manifest, parse_manifest
from formats.reader import read_manifest
from formats.shard import Shard
from kandiga_pack.errors import PackError
from kandiga_pack.repair.damage import is_right_file, open_right
from kandiga_pack.repair.origin import Origin


def own_manifest(folder: Path) -> Manifest | None:
    """Return kexp.json of a folder, None if it is damaged."""
    try:
        manifest = read_manifest(folder)
    except KexpError:
        return None
    return manifest if _is_credible(manifest, folder) else None


def _is_credible(manifest: Manifest, folder: Path) -> bool:
    """Whether roots follow from one another, and intact shards have the sizes listed."""
    roots = (bytes.fromhex(record.shard_root) for record in manifest.shards)
    if digests.set_root(roots).hex() != manifest.set_root:
        return False
    for record in manifest.shards:
        try:
            shard = Shard(folder / record.name)
        except KexpError:
            continue
        is_meant = shard.superblock.shard_root.hex() == record.shard_root
        shard.close()
        if is_meant and shard.size_bytes != record.size_bytes:
            return False
    return True


def fetch_manifest(origin: Origin, folder: Path) -> tuple[Manifest, bytes]:
    """Return the source's kexp.json, if at least one shard in the folder is of that set.

    Raises:
        PackError: none is, or the source has none to give.
    """
    path = folder / MANIFEST_NAME
    data = origin.manifest()
    manifest = parse_manifest(data, file=path)
    for record in manifest.shards:
        shard = open_right(folder / record.name, record, manifest)
        if shard is not None:
            shard.close()
            return manifest, data
    raise PackError(f"{path}: is damaged, and no shard here is of the set that {origin.name} is")


def corrected_files(
    origin: Origin, folder: Path, manifest: Manifest, damaged: list[FileRecord]
) -> tuple[Manifest, bytes] | None:
    """Return the source's kexp.json if it shows that our records are wrong and our files right."""
    try:
        data = origin.manifest()
    except PackError:  # a checkpoint has none
        return None
    theirs = parse_manifest(data, file=folder / MANIFEST_NAME)
    records = {record.name: record for record in theirs.files}
    same_weights = (theirs.set_root, theirs.shards) == (manifest.set_root, manifest.shards)
    if same_weights and any(
        record.name in records
        and records[record.name] != record
        and is_right_file(folder / record.name, records[record.name])
        for record in damaged
    ):
        return theirs, data
    return None
