"""Put a container on the Hugging Face Hub.

Shards are uploaded one after another and appear together in one commit at the end, so nobody sees
half a set. That is why this is preupload and create_commit, and not upload_folder, which commits
what it has every few minutes. What an interrupted run has uploaded is not sent again: the Hub knows
whole files by their SHA-256, and pieces of them where the client speaks Xet.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from formats import MANIFEST_NAME, open_set
from formats.hub import HubError, HubFiles, HubId, hub_errors, parse_hub_id, progress_bars
from formats.manifest import UNPINNED_FILES, Manifest
from kandiga_pack.errors import PackError, UnreadableError, UsageError, what_stays
from kandiga_pack.inspect import inspect
from kandiga_pack.model_card import SourceCard, read_source_card, write_card
from kandiga_pack.progress import NoProgress, Progress
from kandiga_pack.verify import verify

_CARD_NAME = "README.md"
_SHARD_NAME = re.compile(r"model.*\.kexp")
_MAX_CARD_BYTES = 4 << 20


@dataclass(frozen=True)
class PublishSummary:
    """What was published, or would be.

    files: name -> size in bytes. commit, url: None in a dry run. card: the text of README.md.
    card_was_kept: the repository had a card that tells of this very set, edited perhaps.
    removed: shards of another conversion that stood there.
    notes: lines the user should read.
    """

    repository: str
    files: Mapping[str, int]
    card: str
    commit: str | None = None
    url: str | None = None
    card_was_kept: bool = False
    removed: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {**self.__dict__, "total_bytes": self.total_bytes}


def publish(
    path: str | Path,
    repository: str,
    *,
    private: bool = False,
    base_model: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> PublishSummary:
    """Verify a container, write its model card, and upload both.

    Run again after an interruption, it goes on where it stopped; run again after success, it
    changes nothing.

    Args:
        path: folder of the set, on this machine.
        repository: `user/name`; made when it does not exist.
        private: make it private; refused when it exists and is public.
        base_model: Hub id for the card, when the container does not record one.
        dry_run: verify and write the card, but make no request.

    Raises:
        UsageError: `repository` is not `user/name`.
        PackError: the container is damaged; the repository is public.
        UnreadableError: no token.
        formats.hub.HubError: the Hub refuses, or cannot be reached.
    """
    hub_id = parse_hub_id(repository)
    if hub_id is None or hub_id.revision is not None:
        raise UsageError(f"{repository!r} is not the name of a repository, wanted user/name")
    path, progress = Path(path), progress or NoProgress()
    _check(path, progress)
    with open_set(path) as opened:
        folder, manifest = opened.path, opened.manifest
    facts = inspect(folder)
    source = _source_card(folder)
    base_model = base_model or facts["source"].get("repository") or source.base_model
    card = write_card(repository, facts, manifest, source=source, base_model=base_model)
    files = _files_to_send(folder, manifest)
    sizes = {file.name: file.stat().st_size for file in files} | {_CARD_NAME: len(card.encode())}
    notes = _notes(source, base_model)
    if dry_run:
        return PublishSummary(repository, sizes, card, notes=notes)
    upload = _Upload(hub_id, private)
    kept = upload.has_card_of(manifest.set_root)
    # huggingface_hub's own bars count the bytes inside a shard, which we could not.
    what_is_left = "nobody sees what is uploaded before all of it is: run the same command to go on"
    with what_stays(what_is_left), progress_bars(shown=not isinstance(progress, NoProgress)):
        for file in files:
            upload.send(file)
        if not kept:
            upload.add_card(card)
        stale = upload.stale_shards({record.name for record in manifest.shards})
        commit, url = upload.commit(stale)
    return PublishSummary(repository, sizes, card, commit, url, kept, stale, notes)


def _check(path: Path, progress: Progress) -> None:
    report = verify(path, progress=progress)
    if not report.ok:
        more = f", and {len(report.findings) - 1} more" if len(report.findings) > 1 else ""
        raise PackError(
            f"{report.findings[0]}{more}; not published: mend it with `kandiga-pack repair {path} "
            "--from SOURCE`"
        )


def _source_card(folder: Path) -> SourceCard:
    card = folder / _CARD_NAME
    if not card.is_file() or card.stat().st_size > _MAX_CARD_BYTES:
        return SourceCard({})
    return read_source_card(card.read_text(encoding="utf-8", errors="replace"))


def _notes(source: SourceCard, base_model: str | None) -> list[str]:
    notes = []
    if "license" not in source.data:
        notes.append("no card of the checkpoint states a license; add it to README.md on the Hub")
    if base_model is None:
        notes.append("no base model is recorded; name it with --base-model user/name")
    return notes


def _files_to_send(folder: Path, manifest: Manifest) -> list[Path]:
    """Return the files of the set and no other: shards, what kexp.json pins, itself, licenses."""
    names = [record.name for record in manifest.shards]
    names += [record.name for record in manifest.files]
    names += sorted(name for name in UNPINNED_FILES if name != _CARD_NAME)
    return [folder / name for name in [*names, MANIFEST_NAME] if (folder / name).is_file()]


class _Upload:
    """One commit in the making."""

    def __init__(self, hub_id: HubId, private: bool) -> None:
        from huggingface_hub import HfApi, get_token

        if get_token() is None:
            raise UnreadableError(
                f"{hub_id}: publishing needs a token that may write; log in with `hf auth login` "
                "or set HF_TOKEN"
            )
        self._hub_id = hub_id
        self._api = HfApi()
        self._additions: list[Any] = []
        with hub_errors(hub_id):
            self._api.create_repo(hub_id.repository, private=private or None, exist_ok=True)
            info = self._api.model_info(hub_id.repository)
        if private and info.private is False:
            raise PackError(
                f"{hub_id}: exists and is public, so --private would not hide it; change that on "
                "its page, or choose another name"
            )
        self._present = {each.rfilename for each in info.siblings or ()}

    def has_card_of(self, set_root: str) -> bool:
        """Whether the repository has a card that tells of this set: people edit it there."""
        if _CARD_NAME not in self._present:
            return False
        card = HubFiles(self._hub_id).read(_CARD_NAME, 0, _MAX_CARD_BYTES)
        return set_root.encode() in card

    def stale_shards(self, names: set[str]) -> list[str]:
        """Return shards there that are not of this set: readers would refuse the folder."""
        return sorted(
            name for name in self._present - names if _SHARD_NAME.fullmatch(name) is not None
        )

    def send(self, file: Path) -> None:
        """Upload one file unless the Hub has it; it becomes visible with the commit."""
        from huggingface_hub import CommitOperationAdd

        addition = CommitOperationAdd(file.name, file)
        try:
            with hub_errors(self._hub_id):
                self._api.preupload_lfs_files(
                    self._hub_id.repository, [addition], free_memory=False
                )
        except RuntimeError as error:  # what its threads, and Xet, raise
            raise self._broken_off(file.name, error) from error
        self._additions.append(addition)

    def _broken_off(self, name: str, error: RuntimeError) -> HubError:
        lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        return HubError(
            errno.EIO,
            f"{name} could not be uploaded ({lines[0]}); run the same command again: files that "
            "are there are not sent twice",
            self._hub_id,
        )

    def add_card(self, card: str) -> None:
        """Add README.md."""
        from huggingface_hub import CommitOperationAdd

        self._additions.append(CommitOperationAdd(_CARD_NAME, card.encode()))

    def commit(self, stale: Sequence[str]) -> tuple[str, str]:
        """Make everything visible at once; return the commit and the page of the repository."""
        from huggingface_hub import CommitOperationDelete

        deletions = [CommitOperationDelete(name) for name in stale]
        with hub_errors(self._hub_id):
            done = self._api.create_commit(
                self._hub_id.repository,
                [*self._additions, *deletions],
                commit_message="Publish a .kexp container",
            )
        return done.oid, f"{self._api.endpoint}/{self._hub_id.repository}"
