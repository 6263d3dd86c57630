"""Kept beginnings of prompts in a folder, from run to run.

A file is a prompt cache (`kv/prompt_cache.py`) with the tokens of one piece. Its name says what it
is: the key of all tokens up to its end, the key of those before it, how many tokens it has, and
whether a state can go on from its end. Keys begin with who made it: model, settings, instruction
set. The folder is kept below its bound by removing what was used longest ago.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from time import time

from kandiga_run.errors import RunError
from kandiga_run.kv.prompt_cache import StateIdentity, read_prompt_cache, save_prompt_cache
from kandiga_run.kv.snapshot import LayerPiece, StatePiece
from kandiga_run.scheduler.prefix_cache import StoredPiece, Tokens, key_after

_log = logging.getLogger(__name__)

_SUFFIX = ".kvpiece"
# A file that was not finished for so long will not be: another process is not writing it.
_ABANDONED_SECONDS = 3600
_ENDS = {"end": True, "part": False}


@dataclass(frozen=True)
class _File:
    stored: StoredPiece
    parent_key: str
    path: Path
    nbytes: int


@dataclass(frozen=True)
class _Job:
    parent_key: str
    key: str
    tokens: Tokens
    piece: StatePiece


class DiskPieces:
    """Pieces as files; written by a thread of its own, read by the caller."""

    def __init__(
        self,
        folder: Path,
        capacity_bytes: int,
        identity: StateIdentity,
        *,
        chunk_tokens: int,
        pending_bytes: int,
    ) -> None:
        """Use a folder, which is made when it is missing; RunError when it cannot be.

        chunk_tokens: how prompts are cut, which changes results by rounding.
        pending_bytes: of pieces that wait in memory to be written, at most.
        """
        self._folder, self._capacity_bytes, self._identity = folder, capacity_bytes, identity
        #: stands for no tokens
        self.first_key = key_after(repr((vars(identity), chunk_tokens)), ())
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts are private
            for path in folder.iterdir():
                self._take_in(path)
        except OSError as error:
            raise RunError(f"{folder}: cannot keep prompts here: {error}") from error
        self._max_pending_bytes, self._pending_bytes = pending_bytes, 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="kandiga-prompts", daemon=True)
        self._writer.start()

    def after(self, parent_key: str) -> list[StoredPiece]:
        """Return what is held of tokens that come next after those of a key."""
        with self._lock:
            return [file.stored for file in self._files.values() if file.parent_key == parent_key]

    def load(self, stored: StoredPiece, tokens: Tokens, begin: int) -> StatePiece | None:
        """Return a piece, whose tokens are known; None, and a notice, for a damaged file."""
        with self._lock:
            file = self._files.get(stored.key)
        if file is None:
            return None
        try:
            saved_tokens, saved = read_prompt_cache(file.path, self._identity)
            _check_tokens(file.path, saved_tokens, tokens)
            os.utime(file.path)
        except (RunError, OSError) as error:
            _log.warning("a kept prompt is ignored and removed: %s", error)
            self._remove(file)
            return None
        layers = []
        for index, about in enumerate(saved.abouts):
            prefix = f"{index}."
            own = {
                name.removeprefix(prefix): array
                for name, array in saved.arrays.items()
                if name.startswith(prefix)
            }
            layers.append(LayerPiece(about, own))
        return StatePiece(begin, begin + len(tokens), tuple(layers))

    def keep(self, parent_key: str, key: str, tokens: Tokens, piece: StatePiece) -> None:
        """Write a piece some time soon; it is left out when the disk cannot keep up."""
        with self._lock:
            known = self._files.get(key)
            if known is not None and (known.stored.can_be_last or not piece.can_be_last):
                return
            if self._pending_bytes + piece.nbytes > self._max_pending_bytes:
                _log.debug("the disk does not keep up: a prompt is not kept at %d", piece.end)
                return
            self._pending_bytes += piece.nbytes
        self._jobs.put(_Job(parent_key, key, tokens, piece))

    def close(self) -> None:
        """Finish writing. Closing twice is harmless."""
        if self._writer.is_alive():
            self._jobs.put(None)
            self._writer.join()

    @property
    def nbytes(self) -> int:
        """Return the size of all files."""
        with self._lock:
            return sum(file.nbytes for file in self._files.values())

    def _write(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._write_one(job)
            except (RunError, OSError) as error:
                _log.warning("a prompt is not kept: %s", error)
            with self._lock:
                self._pending_bytes -= job.piece.nbytes

    def _write_one(self, job: _Job) -> None:
        end = "end" if job.piece.can_be_last else "part"
        name = f"{job.key}-{job.parent_key}-{len(job.tokens)}-{end}{_SUFFIX}"
        path = self._folder / name
        save_prompt_cache(path, job.piece.layers, job.tokens, self._identity)
        with self._lock:
            former = self._files.pop(job.key, None)
        if former is not None and former.path != path:
            former.path.unlink(missing_ok=True)
        self._take_in(path)
        self._make_room()

    def _take_in(self, path: Path) -> None:
        """Note a file, if its name is one of ours; remove what a killed process left."""
        if path.name.endswith(f"{_SUFFIX}.partial"):
            if time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
            return
        words = path.name.removesuffix(_SUFFIX).split("-")
        if not path.name.endswith(_SUFFIX) or len(words) != 4 or words[3] not in _ENDS:
            return
        key, parent_key, num_tokens, end = words
        if not num_tokens.isdecimal():
            return
        stored = StoredPiece(key, int(num_tokens), _ENDS[end])
        file = _File(stored, parent_key, path, path.stat().st_size)
        with self._lock:
            self._files[key] = file

    def _make_room(self) -> None:
        """Remove what was used longest ago until the rest fits."""
        if self.nbytes <= self._capacity_bytes:
            return
        with self._lock:
            files = list(self._files.values())
        for file in sorted(files, key=_last_used):
            if self.nbytes <= self._capacity_bytes:
                return
            self._remove(file)

    def _remove(self, file: _File) -> None:
        with self._lock:
            self._files.pop(file.stored.key, None)
        file.path.unlink(missing_ok=True)


def _check_tokens(path: Path, saved: list[int], wanted: Tokens) -> None:
    if tuple(saved) != wanted:
        raise RunError(f"{path}: it holds other tokens than its name says")


def _last_used(file: _File) -> float:
    try:
        return file.path.stat().st_mtime
    except OSError:  # somebody removed it
        return 0.0
