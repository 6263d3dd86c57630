"""Checkpoint in, container out, one expert at a time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from formats import KexpError, open_set
from kandiga_pack.conversion import Conversion
from kandiga_pack.errors import PackError, UnreadableError
from kandiga_pack.journal import Journal
from kandiga_pack.opening import Input, Say, open_input
from kandiga_pack.progress import NoProgress, Progress
from kandiga_pack.sources.base import Source
from kandiga_pack.sources.converted import Quantization
from kandiga_pack.workspace import Workspace

DEFAULT_SHARD_BYTES = 8 << 30


@dataclass(frozen=True)
class ConvertSummary:
    """What a conversion did.

    bytes_read: of the source's weight files. bytes_written: of every file in `path`.
    bytes_per_second: bytes_read over seconds, opening, hashing and checking included; bytes_written
        of weights that no file held before.
    notes: lines the user should read, such as what was left out.
    """

    path: Path
    source: str
    architecture: str
    num_layers: int
    num_experts: int
    num_dense_tensors: int
    num_shards: int
    bytes_read: int
    bytes_written: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def bytes_per_second(self) -> float:
        """Source bytes a second, or written ones where the source is no file."""
        return (self.bytes_read or self.bytes_written) / max(self.seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            **self.__dict__,
            "path": str(self.path),
            "bytes_per_second": self.bytes_per_second,
        }


def convert(
    source: str | Path | Source,
    dest: str | Path,
    *,
    revision: str | None = None,
    quantization: Quantization | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    consume: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> ConvertSummary:
    """Pack a checkpoint into a new folder `dest`.

    Memory stays at a few blocks whatever the model's size. `dest` appears when it is complete and
    checked, and not before; the same source gives the same bytes. An interrupted conversion is
    taken up by the same call: what is done by then is in `dest.partial`.

    Args:
        source: folder, GGUF file or Hub id; or an opened Source, which is left open. The weight
            files of a Hub id are downloaded, packed and removed one by one.
        dest: folder to make; it must not exist.
        revision: for a Hub id.
        quantization: quantize an unquantized checkpoint on the way, as mlx_lm.convert would.
        shard_bytes: size aimed at for each file.
        consume: REMOVE each weight file of the folder `source` once all of it is packed and on the
            disk. The disk then holds the model once, plus one such file and one layer at most if
            the layers ascend from file to file.
        restart: forget what an interrupted conversion has done.
        say: is told of what the user should know at once.

    Raises:
        PackError, formats.KexpError, OSError: see errors.describe for what the user is told.
    """
    started = time.monotonic()
    dest = Path(dest)
    workspace = Workspace(dest)
    if not workspace.exists:  # else it may be that of this very conversion, finished but for that
        check_destination(dest)
    with workspace:
        if _is_finished(workspace):
            workspace.is_done = True
            name = str(source) if isinstance(source, str | Path) else source.name
            return _summarize(dest, name, (), started)
        check_destination(dest)
        if restart:
            _start_anew(workspace)
        if not isinstance(source, str | Path):
            opened = Input(source)
        else:
            opened = open_input(
                source,
                workspace,
                revision=revision,
                quantization=quantization,
                consume=consume,
                say=say or _say_nothing,
            )
        try:
            conversion = Conversion(opened.source, opened.stage, shard_bytes)
            _take_up(workspace, conversion.request, say or _say_nothing)
            check_free_space(dest, conversion.needed_bytes(workspace.journal))
            conversion.run(workspace, progress or NoProgress())
            notes = tuple(opened.source.notes)
            workspace.is_done = True
        finally:
            if opened.source is not source:
                opened.close()
    return _summarize(dest, opened.source.name, notes, started)


def _say_nothing(_line: str) -> None:
    pass


def _is_finished(workspace: Workspace) -> bool:
    """Whether `dest` is what this workspace was made for, left by a run killed while tidying up."""
    if workspace.journal.set_root is None or workspace.set_folder.exists():
        return False
    try:
        with open_set(workspace.dest) as opened:
            return opened.shards[0].superblock.set_root.hex() == workspace.journal.set_root
    except KexpError:
        return False


def _take_up(workspace: Workspace, request: dict[str, Any], say: Say) -> None:
    """Go on with an earlier run that was asked for the same, or begin."""
    journal = workspace.journal
    if journal.request == request and journal.has_work:
        say(f"going on with what is in {workspace.folder}")
        return
    if journal.request is not None and journal.has_work:
        _refuse_changed(journal.request, request)
        if journal.freed:
            raise PackError(
                f"{workspace.folder} is of a conversion with another source or other options, some "
                "of whose files are gone already: run that command again, or add --restart"
            )
        say(
            f"{workspace.folder} is of a conversion with another source or other options: "
            "beginning anew"
        )
    workspace.clear_set()
    journal.begin(request)


def _refuse_changed(before: dict[str, Any], request: dict[str, Any]) -> None:
    """Refuse a source that is the same by name, and not by its files."""
    if before["source"] != request["source"] or before["revision"] != request["revision"]:
        return
    for name in sorted(before["files"].keys() | request["files"].keys()):
        was, is_now = before["files"].get(name), request["files"].get(name)
        if was != is_now:
            raise PackError(
                f"{Path(request['source']) / name}: changed since the interrupted conversion read "
                f"it ([size, time] {was} -> {is_now}); add --restart to pack it anew"
            )


def _start_anew(workspace: Workspace) -> None:
    _refuse_loss(workspace.journal)
    workspace.clear()
    workspace.journal.forget()


def _refuse_loss(journal: Journal) -> None:
    """Refuse to throw away the only copy of weights whose source was consumed."""
    before = journal.request or {"source": "", "revision": None}
    if before["revision"] is not None:  # the Hub still has them
        return
    gone = [name for name in sorted(journal.freed) if not Path(before["source"], name).exists()]
    if gone:
        raise PackError(
            f"{Path(before['source']) / gone[0]}: was consumed ({len(gone)} such files); beginning "
            "anew would lose its weights. Run the command again as it was first, or put the files "
            "back"
        )


def _summarize(
    dest: Path, source_name: str, notes: tuple[str, ...], started: float
) -> ConvertSummary:
    with open_set(dest) as opened:
        counts = opened.meta["counts"]
        return ConvertSummary(
            path=dest,
            source=source_name,
            architecture=opened.meta["architecture"],
            num_layers=counts["layers"],
            num_experts=counts["experts"],
            num_dense_tensors=counts["dense_tensors"],
            num_shards=len(opened.shards),
            bytes_read=sum(each["size"] for each in opened.meta["source"]["files"].values()),
            bytes_written=sum(path.stat().st_size for path in dest.iterdir()),
            seconds=time.monotonic() - started,
            notes=notes,
        )


def check_destination(dest: Path) -> None:
    """Raise unless `dest` can be made: it does not exist, and its parent may be written to."""
    if os.path.lexists(dest):
        raise PackError(f"{dest}: already exists; remove it or name another destination")
    parent = dest.absolute().parent
    if not parent.is_dir():
        raise UnreadableError(f"{dest}: {parent} is not a folder; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UnreadableError(f"{dest}: {parent} may not be written to (permission denied)")


def check_free_space(dest: Path, needed_bytes: int) -> None:
    """Raise PackError unless the file system of `dest` has `needed_bytes` to spare."""
    status = os.statvfs(dest.absolute().parent)
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes < needed_bytes:
        raise PackError(
            f"{dest}: needs {format_bytes(needed_bytes)}, but only {format_bytes(free_bytes)} are "
            "free there; free some space or name another destination"
        )


def format_bytes(count: float) -> str:
    """Write a number of bytes in decimal units, as file managers and the Hub do."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
