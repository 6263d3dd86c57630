"""The buffers between kernels, allocated once and shared by all layers.

Blocks declare what they need when they are built, so the size of everything is known before the
first token: that is what a memory budget is checked against. Blocks of different groups never run
at the same time, so their buffers lie over each other. Memory is allocated at its full size; the
system charges only the part that chunks really touch.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kandiga_run.experts.huge_memory import HugeMemory

_ALIGN = 64  # a cache line, and the widest vector register


class Scratch:
    """Named buffers for chunks of up to `max_rows` tokens; the same name is the same memory.

    A name is "group/buffer": only buffers of one group, and those without a group, hold their
    values at the same time.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._bytes: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        self._memory: HugeMemory | None = None
        self._views: dict[tuple[Any, ...], NDArray[Any]] = {}

    def declare(self, name: str, width: int, dtype: DTypeLike = np.float32) -> None:
        """Announce rows of up to `width` values; the widest declaration of a name counts."""
        self.declare_bytes(name, self.max_rows * width * np.dtype(dtype).itemsize)

    def declare_bytes(self, name: str, nbytes: int) -> None:
        """Announce a buffer by its size for `max_rows`; fewer rows use less of its beginning."""
        if self._memory is not None:
            raise RuntimeError(f"scratch {name!r} declared after the first use of another buffer")
        nbytes = -(-nbytes // _ALIGN) * _ALIGN
        self._bytes[name] = max(nbytes, self._bytes.get(name, 0))

    @property
    def nbytes(self) -> int:
        """Return what all buffers take together for the largest chunk."""
        by_group = self._bytes_by_group()
        without_group = by_group.pop("", 0)
        return without_group + max(by_group.values(), default=0)

    def bytes_for(self, num_rows: int) -> int:
        """Return the memory that chunks of up to `num_rows` touch, rounded up to pages."""
        totals: dict[str, int] = {}
        for name, nbytes in self._bytes.items():
            part = -(-nbytes * num_rows // self.max_rows)
            # A buffer begins and ends within a page.
            part = min(nbytes, (part // mmap.PAGESIZE + 2) * mmap.PAGESIZE)
            totals[_group(name)] = totals.get(_group(name), 0) + part
        # Buffers of groups lie over each other, and smaller ones have other beginnings.
        return min(self.nbytes, sum(totals.values()))

    def give_back(self) -> None:
        """Return the memory to the system; buffers keep their places, their values are lost."""
        if self._memory is not None:
            self._memory.give_back(0, len(self._memory.view))

    def rows(
        self, name: str, num_rows: int, *shape: int, dtype: DTypeLike = np.float32
    ) -> NDArray[Any]:
        """Return an uninitialized array (num_rows, *shape) at the start of a buffer."""
        key = (name, num_rows, shape, dtype)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._view(name, (num_rows, *shape), np.dtype(dtype))
        return view

    def whole(self, name: str) -> NDArray[np.float32]:
        """Return all of a buffer as float32."""
        return self.rows(name, self._bytes[name] // 4)

    def _view(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        needed = int(np.prod(shape)) * dtype.itemsize
        if needed > self._bytes[name]:
            raise ValueError(f"scratch {name!r}: {needed} bytes wanted of {self._bytes[name]}")
        if self._memory is None:
            self._memory = self._allocate()
        start = self._offsets[name]
        data = self._memory.view[start : start + needed]
        return np.frombuffer(data, dtype).reshape(shape)

    def _allocate(self) -> HugeMemory:
        """Place every buffer: first those without a group, then each group over the others."""
        first_of_groups = self._bytes_by_group().get("", 0)
        ends: dict[str, int] = {"": 0}
        for name, nbytes in self._bytes.items():
            group = _group(name)
            self._offsets[name] = ends.setdefault(group, first_of_groups)
            ends[group] += nbytes
        # Small pages: a token touches the beginning of every buffer, which would be as many huge
        # pages.
        return HugeMemory(self.nbytes, huge=False)

    def _bytes_by_group(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        for name, nbytes in self._bytes.items():
            totals[_group(name)] = totals.get(_group(name), 0) + nbytes
        return totals


def _group(name: str) -> str:
    return name.rpartition("/")[0]
