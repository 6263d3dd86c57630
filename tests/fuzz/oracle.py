"""What must hold for any bytes: reader and validator agree, and neither crashes, hangs or gorges.

Agreement is that of section 15 of the specification: the same verdict, and every code that the
reader gives is one that the validator, which lists all faults, gives too.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from formats import KexpSet, Shard, open_set, verify_full
from fuzz.limits import Cost, guarded, reads_inside_files
from fuzz.sets import Files
from kandiga_run.experts.mapped import MappedStore
from specs import validate_kexp

Result = TypeVar("Result")

JSON_CODES = frozenset({"E_JSON", "E_JSON_VALUE", "E_JSON_DUPLICATE_KEY", "E_JSON_CANONICAL"})


@dataclass(frozen=True)
class Difference:
    """Codes that may differ although both programs are right. reader -> validator."""

    reader: frozenset[str]
    validator: frozenset[str]
    reason: str


ALLOWED = (
    Difference(
        JSON_CODES,
        JSON_CODES,
        "section 7.1: where several codes apply to one document any of them may be given",
    ),
)


@dataclass
class Outcome:
    """problems: what must not be, in words; empty when all is well."""

    reader: list[str] = field(default_factory=list)
    validator: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)


class Oracle:
    """Judges sets, each laid out in one folder that is used again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._present: Files = {}
        provide_zstd()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def judge(self, files: Mapping[str, bytes]) -> Outcome:
        self._lay_out(files)
        outcome = Outcome()
        with reads_inside_files(outcome.problems):
            report = self._guard(outcome, "reader", lambda: verify_full(self.folder))
        if report is not None:
            outcome.reader = [finding.code for finding in report.findings]
            for finding in report.findings:
                if "\n" in str(finding):
                    outcome.problems.append(f"reader: a message of two lines: {str(finding)!r}")
        found = self._guard(outcome, "validator", lambda: validate_kexp.validate(self.folder))
        if found is not None:
            outcome.validator = [finding.code for finding in found.findings]
            outcome.unchecked = [message for _, message in found.unchecked]
        # A validator that could not look at something, and found nothing else, has no opinion.
        if report is not None and found is not None and (found.findings or not found.unchecked):
            outcome.problems += disagreements(outcome.reader, outcome.validator)
        if report is not None and not outcome.reader:
            self._guard(outcome, "use", self._use)
        return outcome

    def _lay_out(self, files: Mapping[str, bytes]) -> None:
        for name in self._present.keys() - files.keys():
            (self.folder / name).unlink()
        for name, data in files.items():
            if self._present.get(name) != data:
                (self.folder / name).write_bytes(data)
        self._present = dict(files)

    def _guard(self, outcome: Outcome, who: str, run: Callable[[], Result]) -> Result | None:
        size = sum(map(len, self._present.values()))
        return guarded(outcome.problems, who, run, size, outcome.cost)

    def _use(self) -> None:
        """Read all of a set that was called whole."""
        with open_set(self.folder) as opened:
            for layer in opened.layers:
                for expert in range(opened.num_experts(layer)):
                    check_extent(opened, layer, expert)
                    opened.block(layer, expert)
            for name, tensor in opened.dense.items():
                data = opened.dense_array(name)
                assert data.nbytes == tensor.length_bytes
                begin = data.ctypes.data - _address(opened.shards[tensor.shard])
                assert begin == tensor.offset_bytes or not data.nbytes
                assert begin + data.nbytes <= opened.shards[tensor.shard].size_bytes
                data.tobytes()
            check_addresses(opened)


def check_extent(opened: KexpSet, layer: int, expert: int) -> None:
    """Assert that a block lies in its file and its parts in the block: kernels take their word."""
    extent, layout = opened.extent(layer, expert), opened.layout(layer)
    size = opened.shards[extent.shard].size_bytes
    assert 0 <= extent.offset_bytes <= size - extent.block_bytes
    assert extent.payload_bytes <= extent.block_bytes == layout.block_bytes
    for part in layout.parts:
        assert 0 <= part.offset_bytes <= extent.payload_bytes - part.length_bytes


def check_addresses(opened: KexpSet) -> None:
    """Assert that what the runtime hands to kernels, address and length, lies in the maps."""
    store = MappedStore(opened, num_readers=1)
    try:
        for layer in opened.layers:
            shard = opened.shards[opened.entries(layer)[0]]
            base, length = _address(shard), opened.layout(layer).payload_bytes
            experts = np.arange(opened.num_experts(layer), dtype=np.int32)
            with store.fetch(layer, experts) as arrivals:
                arrived = dict(arrivals)
            assert arrived.keys() == set(experts.tolist())
            for expert, address in arrived.items():
                assert base <= address <= base + shard.size_bytes - length
                assert address - base == opened.extent(layer, expert).offset_bytes
    finally:
        store.close()


def _address(shard: Shard) -> int:
    return int(np.frombuffer(shard.mmap, np.uint8).ctypes.data)


def disagreements(reader: Iterable[str], validator: Iterable[str]) -> list[str]:
    """Return how the codes of reader and validator differ beyond what is allowed."""
    theirs, listed = set(reader), set(validator)
    if bool(theirs) != bool(listed):
        return [f"verdicts differ: reader {sorted(theirs)}, validator {sorted(listed)}"]
    return [
        f"codes differ: reader {code}, validator {sorted(listed)}"
        for code in sorted(theirs - listed)
        if not any(code in each.reader and listed & each.validator for each in ALLOWED)
    ]


def provide_zstd() -> None:
    """Give the validator the decoder that it finds in Python from 3.14 on."""
    with contextlib.suppress(ImportError):
        importlib.import_module("compression.zstd")
        return
    zstd = importlib.import_module("backports.zstd")
    sys.modules["compression"] = importlib.import_module("backports")
    sys.modules["compression.zstd"] = zstd


FOLDER_VARIABLE = "KANDIGA_FUZZ_FOLDER"


def memory_folder() -> Path:
    """Return a folder in memory where there is such a place."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def scratch_folder(name: str) -> Path:
    """Return an empty folder, in that of FOLDER_VARIABLE if somebody else is to remove it."""
    base = Path(os.environ.get(FOLDER_VARIABLE, memory_folder()))
    folder = base / f"kandiga-fuzz-{os.getpid()}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
