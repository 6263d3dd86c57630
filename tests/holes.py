"""Containers whose experts are holes in their files: zeros that take no disk."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from unittest.mock import patch

from formats import Layout
from formats.block_pipeline import BlockPipeline, Done


@contextmanager
def experts_are_holes() -> Iterator[None]:
    """Within the block experts are not written; their checksums are those of zeros."""
    with patch.object(BlockPipeline, "submit", _leave_a_hole):
        yield


def _leave_a_hole(
    pipeline: BlockPipeline, layout: Layout, fill: object, write: object, done: Done
) -> None:
    done(*_checksums_of_zeros(layout.payload_bytes))


@lru_cache
def _checksums_of_zeros(length: int) -> tuple[int, bytes]:
    zeros = bytes(length)
    return zlib.crc32(zeros), hashlib.sha256(zeros).digest()
