"""What happens when a container's files change, or cannot be read, while a model runs on them.

A file that was deleted or replaced by another of its name stays what it was for whoever has it
open. One that is cut short takes pages away from under the kernels, and one that is written to
changes the model: neither may end in a killed process or in an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cython_kernels import MapGuard, arm_map_guards
from formats import KexpError, KexpSet, Shard


class FileGuard:
    """Watches the shards of a container from when it was opened until `close`."""

    def __init__(self, container: KexpSet) -> None:
        self._container = container
        self._guarded = [(shard, MapGuard(shard.mmap)) for shard in container.shards]

    def check(self) -> None:
        """Raise KexpError if what was computed from the mapped shards must not be used.

        Called after each forward call: a system call a shard, a microsecond or two.

        Raises:
            KexpError: E_FILE_SIZE, E_FILE_CHANGED, or E_IO for a page that could not be read.
        """
        arm_map_guards()
        for shard, guard in self._guarded:
            try:
                shard.check_unchanged()
            except KexpError as error:
                raise advised(error, self._container.path) from None
            if guard.fault_offset_bytes is not None:
                raise _unreadable_page(self._container, shard, guard.fault_offset_bytes)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Check after computing on the mapped shards, and say so if that is why it failed."""
        try:
            yield
        except Exception:
            self.check()
            raise
        self.check()

    def close(self) -> None:
        """Let go of the maps. Closing twice is harmless."""
        for _, guard in self._guarded:
            guard.close()
        self._guarded = []


def advised(error: KexpError, folder: Path) -> KexpError:
    """Return the error with what to do about it."""
    if error.code in ("E_BLOCK_CRC", "E_SECTION_CRC"):
        advice = f"mend it with kandiga-pack repair {folder} --from SOURCE"
    elif error.code in ("E_FILE_SIZE", "E_IO"):
        advice = f"kandiga-pack verify {folder} tells what is left"
    else:
        return error
    if advice not in error.message:
        error.message = f"{error.message}; {advice}"
    return error


def _unreadable_page(container: KexpSet, shard: Shard, offset_bytes: int) -> KexpError:
    """Return the error for a page of a file that has its size and yet could not be read."""
    layer, expert = shard.expert_at(offset_bytes) or (None, None)
    error = KexpError(
        "E_IO",
        "a page could not be read from the disk",
        file=shard.path,
        offset_bytes=offset_bytes,
        layer=layer,
        expert=expert,
    )
    return advised(error, container.path)
