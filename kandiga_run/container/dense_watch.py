"""Dense weights that are not what was written: found before the first answer is given.

The format has one checksum for all dense weights. What an engine brings in is summed on its way;
what it leaves out (a vision tower, rows of an embedding that no token touched) is read in the
background, past the page cache, while the first tokens are computed.
"""

from __future__ import annotations

from formats import DenseCheck, KexpError, KexpSet
from formats.buffers import Buffer
from kandiga_run.background import BackgroundJob, GaveUp
from kandiga_run.container.file_guard import advised
from kandiga_run.engine import Check


class DenseWatch:
    """Checks the dense weights of a container once, unless `check` is "off"."""

    def __init__(self, container: KexpSet, check: Check) -> None:
        self._container = container
        self._sum = None if check == "off" else DenseCheck(container)
        self._rest: BackgroundJob | None = None

    def saw(self, offset_bytes: int, data: Buffer) -> None:
        """Take in what was read at an offset of the first shard. Threads may call this at once."""
        if self._sum is not None:
            self._sum.add(offset_bytes, data)

    def start_rest(self) -> None:
        """Begin to check what nobody has shown to `saw`."""
        if self._sum is not None:
            self._rest = BackgroundJob("dense-check", self._finish)

    def require(self) -> None:
        """Wait for the verdict; KexpError E_SECTION_CRC, E_IO or E_FILE_SIZE if it is bad.

        Called before logits are given out; after the first time it costs nothing.
        """
        if self._rest is not None:
            self._rest.wait()

    def close(self) -> None:
        """Stop reading, whatever the verdict would have been. Closing twice is harmless."""
        if self._rest is not None:
            self._rest.close()

    def _finish(self, gave_up: GaveUp) -> None:
        assert self._sum is not None

        def checkpoint() -> None:
            if gave_up():
                raise RuntimeError("the model was closed while its dense weights were checked")

        try:
            self._sum.finish(checkpoint)
        except KexpError as error:
            raise advised(error, self._container.path) from None
        finally:
            self._sum = None
