"""Container in, MLX checkpoint out: the files that were packed, byte for byte where possible."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from formats.buffers import as_bytes
from formats.durable import flush_folder, flush_to_disk, write_file
from formats.errors import os_errors
from kandiga_pack import spelling
from kandiga_pack.convert import check_destination, check_free_space
from kandiga_pack.errors import PackError
from kandiga_pack.progress import NoProgress, Progress, piece_of_work
from kandiga_pack.slices import iter_slices
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.sources.checkpoint import INDEX_FILE
from kandiga_pack.sources.container import ContainerSource


@dataclass(frozen=True)
class ExportSummary:
    """What an export did.

    identical_files: how many shards were compared with the SHA-256 of the file that was packed,
        and equal it. The others hold equal tensors under a header spelled in mlx's way.
    """

    path: Path
    num_files: int
    identical_files: int
    num_tensors: int
    bytes_written: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {**self.__dict__, "path": str(self.path)}


def export(path: str | Path, out: str | Path, *, progress: Progress | None = None) -> ExportSummary:
    """Write the checkpoint a container was made from into a new folder `out`.

    `out` appears when it is complete, and not before.

    Raises:
        PackError: `out` exists, or there is no room for it.
        KexpError: the container is damaged.
    """
    out = Path(out)
    check_destination(out)
    source = ContainerSource(Path(path))
    try:
        return _export(source, out, progress or NoProgress())
    finally:
        source.close()


def _export(source: ContainerSource, out: Path, progress: Progress) -> ExportSummary:
    started = time.monotonic()
    total_bytes = sum(info.length_bytes for info in source.tensors.values())
    check_free_space(out, total_bytes + (16 << 20))
    groups = _by_file(source.tensors)
    if not source.set.meta.get("headers", {}).keys() >= groups.keys():
        source.check_dense()  # the digest of each exported file says it otherwise
    temporary = out.with_name(f"{out.name}.partial-{os.getpid()}")
    temporary.mkdir()
    identical = 0
    try:
        with piece_of_work(progress, "exporting", total_bytes):
            for name, tensors in groups.items():
                identical += _write_shard(source, temporary / name, tensors, progress)
        _write_index(source, temporary)
        for file in source.files:
            with os_errors(temporary / file.name, "written"):
                write_file(temporary / file.name, file.read_bytes())
        flush_folder(temporary)
        check_destination(out)
        temporary.rename(out)
        flush_folder(out.absolute().parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return ExportSummary(
        path=out,
        num_files=len(groups),
        identical_files=identical,
        num_tensors=len(source.tensors),
        bytes_written=sum(file.stat().st_size for file in out.iterdir()),
        seconds=time.monotonic() - started,
    )


def _by_file(tensors: Mapping[str, TensorInfo]) -> dict[str, list[TensorInfo]]:
    groups: dict[str, list[TensorInfo]] = {}
    for info in tensors.values():
        # The names come out of a file that somebody may have sent: none may leave the folder.
        if Path(info.file).name != info.file or not info.file.endswith(".safetensors"):
            raise PackError(f"metadata names {info.file!r}, expected a plain .safetensors name")
        groups.setdefault(info.file, []).append(info)
    return groups


def _write_shard(
    source: ContainerSource, path: Path, tensors: list[TensorInfo], progress: Progress
) -> bool:
    """Write one safetensors file; return whether it is the very file that was packed."""
    style = source.set.meta.get("headers", {}).get(path.name)
    with _ShardFile(path) as file:
        with _understood(f"spelling of {path.name}"):
            header = spelling.spell_header(tensors, style)
        file.write(header)
        for info in tensors:
            for rows in iter_slices(source, info):
                file.write(as_bytes(rows))
                progress.advance(rows.nbytes)
        digest = file.finish()
    if style is None:
        return False
    wanted = source.set.meta["source"]["files"][path.name]["sha256"]
    if digest != wanted:
        raise PackError(
            f"{source.name}: {path.name} comes out with sha256 {digest[:16]}..., but "
            f"the packed file had {wanted[:16]}...; run `kandiga-pack verify {source.name}`"
        )
    return True


@contextlib.contextmanager
def _understood(what: str) -> Iterator[None]:
    """Turn what a malformed record raises into one line: containers come from other people."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PackError(f"metadata: {what} is not understood ({error!r})") from error


class _ShardFile:
    """A file being written and hashed; KexpError E_IO names it when it cannot be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        with os_errors(path, "created"):
            self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)

    def __enter__(self) -> _ShardFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        view = memoryview(data)
        with os_errors(self._path, "written"):
            while view:
                view = view[os.write(self._fd, view) :]

    def finish(self) -> str:
        """Put the file on the disk and return its SHA-256 in hexadecimal."""
        with os_errors(self._path, "written"):
            flush_to_disk(self._fd)
        return self._digest.hexdigest()


def _write_index(source: ContainerSource, folder: Path) -> None:
    style = source.set.meta.get("index")
    if style is None:
        return
    weight_map = {info.name: info.file for info in source.tensors.values()}
    path = folder / INDEX_FILE
    with _understood(f"spelling of {INDEX_FILE}"):
        text = spelling.spell_index(weight_map, style)
    with os_errors(path, "written"):
        write_file(path, text.encode())
