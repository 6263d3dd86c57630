"""A set that is on the Hub, brought here and checked before anybody uses it.

huggingface_hub downloads, resumes and keeps the cache; over plain HTTP it compares sizes only. What
makes a download trustworthy is the set's own digests, compared here.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from formats.errors import KexpError
from formats.hub import HubFiles, HubId, hub_errors, parse_hub_id, progress_bars
from formats.manifest import MANIFEST_NAME, Manifest
from formats.reader import open_set, read_manifest
from formats.remote_index import fetch_index, not_a_set
from formats.verify import verify_full

# Beside whose verified blobs it stands, so that clearing the cache forgets both.
_VERIFIED_NAME = "kexp-verified.json"

Say = Callable[[str], None]


def local_set(text: str | os.PathLike[str], *, say: Say | None = None) -> Path:
    """Return the folder (or .kexp file) that `text` names on this machine, or fetch the set.

    A path that exists is taken as it is, so a folder goes before a Hub id of the same spelling.
    What is neither a path nor an id is returned too: opening it gives the error.

    Args:
        text: path, `user/name` or `user/name@revision`.
        say: told what takes long; its presence also allows huggingface_hub its progress bars.
    Raises:
        HubError: the Hub has no such thing, does not show it, or cannot be reached.
        KexpError: what was fetched is not what was published.
    """
    hub_id = published_id(text)
    if hub_id is None:
        return Path(text)
    with downloads_stay(text):
        return fetch_set(hub_id, say=say)


@contextlib.contextmanager
def downloads_stay(text: str | os.PathLike[str]) -> Iterator[None]:
    """Have an interruption say that what came of an id stays on the disk; of a path, nothing."""
    try:
        yield
    except KeyboardInterrupt as error:
        if published_id(text) is not None and not getattr(error, "__notes__", None):
            from huggingface_hub.constants import HF_HUB_CACHE

            error.add_note(
                f"what was downloaded stays in {HF_HUB_CACHE}, and the same command goes on"
            )
        raise


def published_id(text: str | os.PathLike[str]) -> HubId | None:
    """Return the Hub id that `text` is, None when it is a path."""
    return None if os.path.lexists(text) else parse_hub_id(os.fspath(text))


def fetch_set(hub_id: HubId, *, say: Say | None = None) -> Path:
    """Return a folder in the Hub's cache that holds the whole set, downloading what it lacks.

    The index of all shards is checked before the first gigabyte comes, and after it every byte, as
    `verify_full` does. What was checked is remembered by size, time and inode of the files. A file
    that is wrong is removed from the cache, so that the next run fetches it again.

    Raises: as `local_set`.
    """
    with hub_errors(hub_id), progress_bars(shown=say is not None):
        # Not hf_hub_download: without a network it tries for half a minute.
        folder = _download(hub_id, [MANIFEST_NAME])
        if not (folder / MANIFEST_NAME).is_file():
            raise not_a_set(hub_id)
        manifest = read_manifest(folder)
        names = [each.name for each in manifest.shards] + [each.name for each in manifest.files]
        if not all((folder / name).is_file() for name in names):
            pinned = HubId(hub_id.repository, folder.name)
            with tempfile.TemporaryDirectory(prefix="kandiga-index-") as temporary:
                fetch_index(HubFiles(pinned), Path(temporary))
                open_set(temporary).close()
            _download(pinned, names)
    _verify_once(folder, manifest, names, say)
    return folder


def _download(hub_id: HubId, names: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(hub_id.repository, revision=hub_id.revision, allow_patterns=list(names))
    )


def _verify_once(folder: Path, manifest: Manifest, names: Sequence[str], say: Say | None) -> None:
    """Check every byte unless these very files were checked before; KexpError."""
    # <cache>/models--user--name/snapshots/<commit>
    record = folder.parent.parent / _VERIFIED_NAME
    marks = {name: _mark(folder / name) for name in (MANIFEST_NAME, *names)}
    known = _read_marks(record)
    if known.get(manifest.set_root) == marks:
        return
    if say is not None:
        size = sum(shard.size_bytes for shard in manifest.shards)
        say(f"checking what was downloaded, {size / 1e9:.2f} GB")
    findings = verify_full(folder).findings
    if findings:
        for finding in findings:
            _discard(folder, finding.file)
        raise _with_advice(findings[0])
    with contextlib.suppress(OSError):  # a cache that may not be written to is checked every time
        temporary = record.with_name(f"{record.name}.{os.getpid()}")
        temporary.write_text(json.dumps({**known, manifest.set_root: marks}))
        temporary.rename(record)


def _mark(path: Path) -> list[int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return [status.st_size, status.st_mtime_ns, status.st_ino]
    return None


def _read_marks(record: Path) -> dict[str, Any]:
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _discard(folder: Path, name: str | None) -> None:
    """Remove a damaged file and the blob it links to; nothing outside of a cache's blobs."""
    if name is None or not (folder / name).is_symlink():
        return
    blob = (folder / name).resolve()
    (folder / name).unlink()
    if blob.parent == folder.parent.parent / "blobs":
        blob.unlink(missing_ok=True)


def _with_advice(error: KexpError) -> KexpError:
    return KexpError(
        error.code,
        f"{error.message}; the damaged download was removed, run the command again to fetch it",
        file=error.file,
        offset_bytes=error.offset_bytes,
        layer=error.layer,
        expert=error.expert,
    )
