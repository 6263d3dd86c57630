"""Is a container what was written, and is it what its source says?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from formats import KexpError, verify_full, verify_index
from formats.buffers import as_bytes
from kandiga_pack.errors import AlreadyQuantizedError, PackError
from kandiga_pack.progress import NoProgress, Progress, piece_of_work
from kandiga_pack.slices import iter_slices
from kandiga_pack.sources.base import Source, TensorInfo
from kandiga_pack.sources.container import ContainerSource
from kandiga_pack.sources.converted import Quantization
from kandiga_pack.sources.open import open_source

Level = Literal["index", "full"]

_MAX_FINDINGS = 100


@dataclass
class VerifyReport:
    """What was checked, and every fault found; no findings means all is right.

    compared_with: the source whose tensors were compared byte by byte, None without one.
    """

    path: Path
    level: Level
    num_shards: int = 0
    num_experts: int = 0
    bytes_checked: int = 0
    compared_with: str | None = None
    tensors_compared: int = 0
    findings: list[KexpError | PackError] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            **self.__dict__,
            "path": str(self.path),
            "ok": self.ok,
            "findings": [_finding_as_dict(finding) for finding in self.findings],
        }


def verify(
    path: str | Path,
    *,
    level: Level = "full",
    against: str | Path | Source | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check a container.

    Args:
        path: folder of the set, or one of its .kexp files.
        level: "index" checks everything but the weights; "full" reads every byte.
        against: also compare every tensor with this source, byte by byte. A container that was
            quantized while packing is compared with its source quantized again.
        revision: of `against`, when it is a Hub id.

    Returns:
        The report; faults of the container are in it, not raised.

    Raises:
        PackError: `against` cannot be opened.
    """
    path = Path(path)
    progress = progress or NoProgress()
    report = VerifyReport(path, level)
    if level == "full":
        with piece_of_work(progress, "verifying", _size_bytes(path)):
            checked = verify_full(path, progress=progress.advance)
    else:
        checked = verify_index(path)
    report.num_shards, report.num_experts = checked.num_shards, checked.num_experts
    report.bytes_checked = checked.num_bytes
    report.findings.extend(checked.findings)
    if against is not None and report.ok:
        _compare_with(against, revision, report, progress)
    return report


def _size_bytes(path: Path) -> int:
    folder = path if path.is_dir() else path.parent
    return sum(shard.stat().st_size for shard in folder.glob("*.kexp"))


def _compare_with(
    against: str | Path | Source, revision: str | None, report: VerifyReport, progress: Progress
) -> None:
    container = ContainerSource(report.path)
    try:
        if isinstance(against, str | Path):
            source = _open_like(container, against, revision)
        else:
            source = against
        try:
            report.compared_with = source.name
            _compare(container, source, report, progress)
        finally:
            if source is not against:
                source.close()
    finally:
        container.close()


def _open_like(container: ContainerSource, against: str | Path, revision: str | None) -> Source:
    """Open a source, quantized as the container is unless it already is so on its own."""
    quantization = Quantization.from_settings(container.set.meta.get("conversion"))
    try:
        return open_source(against, revision=revision, quantization=quantization)
    except AlreadyQuantizedError:
        return open_source(against, revision=revision)


def _compare(
    container: ContainerSource, source: Source, report: VerifyReport, progress: Progress
) -> None:
    same: dict[str, TensorInfo] = {}
    for finding in _compare_listings(container, source, same):
        _add(report, finding)
    with piece_of_work(progress, "comparing", sum(info.length_bytes for info in same.values())):
        for info in same.values():
            if not container.is_stacked(info.name):
                _compare_dense(container, source, info, report, progress)
        for layer, expert, slices in container.experts():
            for name, data in slices.items():
                if name in same:
                    if not _same_bytes(data, source.read(name, expert, 1)):
                        where = f"layer {layer} expert {expert}: {name}"
                        _add(report, PackError(f"{where} differs from {source.name}"))
                    progress.advance(data.nbytes)
    report.tensors_compared = len(same)


def _compare_listings(
    container: ContainerSource, source: Source, same: dict[str, TensorInfo]
) -> Iterator[PackError]:
    """Yield tensors and settings that differ; put tensors of one dtype and shape into `same`."""
    for name, info in container.tensors.items():
        other = source.tensors.get(name)
        if other is None:
            yield PackError(f"{name} is not in {source.name}")
        elif (info.dtype, info.shape) != (other.dtype, other.shape):
            yield PackError(
                f"{name} is {info.dtype} {info.shape}, but {other.dtype} {other.shape} in "
                f"{source.name}"
            )
        else:
            same[name] = info
    for name in source.tensors.keys() - container.tensors.keys():
        yield PackError(f"{name} of {source.name} is missing")
    if container.config != source.config:
        keys = _differing_keys(container.config, source.config)
        yield PackError(f"config.json differs from that of {source.name} in {', '.join(keys)}")


def _differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    absent = object()
    return sorted(key for key in {*one, *other} if one.get(key, absent) != other.get(key, absent))


def _compare_dense(
    container: ContainerSource,
    source: Source,
    info: TensorInfo,
    report: VerifyReport,
    progress: Progress,
) -> None:
    equal = True
    for ours, theirs in zip(iter_slices(container, info), iter_slices(source, info), strict=True):
        equal &= _same_bytes(ours, theirs)
        progress.advance(ours.nbytes)
    if not equal:
        _add(report, PackError(f"{info.name} differs from {source.name}"))


def _same_bytes(one: np.ndarray, other: np.ndarray) -> bool:
    """Compare bits, not numbers: a NaN equals itself, and -0 is not 0."""
    return as_bytes(one) == as_bytes(other)


def _add(report: VerifyReport, finding: PackError) -> None:
    if len(report.findings) < _MAX_FINDINGS:
        report.findings.append(finding)


def _finding_as_dict(finding: KexpError | PackError) -> dict[str, Any]:
    if isinstance(finding, KexpError):
        return {
            "code": finding.code,
            "message": finding.message,
            "file": finding.file,
            "offset_bytes": finding.offset_bytes,
            "layer": finding.layer,
            "expert": finding.expert,
        }
    return {"code": "E_SOURCE", "message": str(finding)}
