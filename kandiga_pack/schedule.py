"""In which order a checkpoint is read, and when each of its files has been: no files touched."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.stacks import ExpertStack

# All weight files together, for a source whose tensors are made of several of them.
WHOLE = ""


@dataclass(frozen=True)
class Stage:
    """One step of a conversion, in the order of these fields.

    opens: weight files that are needed from here on; their dense tensors are written first.
    dense: those tensors.
    stack: the layer whose experts are written then; None at the end.
    is_last_of_shard: whether the next layer is in another file of the set.
    closes: weight files that nobody needs after this.
    """

    opens: tuple[str, ...]
    dense: tuple[TensorInfo, ...]
    stack: ExpertStack | None
    is_last_of_shard: bool
    closes: tuple[str, ...]

    def group_of(self, info: TensorInfo) -> str:
        """Return which of `opens` one of the dense tensors is from."""
        return info.file if info.file in self.opens else WHOLE

    @property
    def written_bytes(self) -> int:
        """Bytes that the stage adds to the set."""
        dense = sum(info.length_bytes for info in self.dense)
        if self.stack is None:
            return dense
        return dense + self.stack.num_experts * self.stack.layout.block_bytes


def make_schedule(
    weight_files: Collection[str],
    stacks: Sequence[ExpertStack],
    dense: Sequence[TensorInfo],
    last_layers: Collection[int],
) -> list[Stage]:
    """Return the stages of a conversion.

    Layers ascend, as the set wants them. Dense tensors are taken from a file when it is first
    needed for a layer, so that a checkpoint whose layers ascend too is read from front to back,
    and each file can go when its last layer is packed.

    Args:
        weight_files: those that tensors may be taken from one by one; empty if any tensor may come
            from any file, which makes one group, WHOLE, of all.
        last_layers: the last layer of each file of the set.
    """

    def group(info: TensorInfo) -> str:
        return info.file if info.file in weight_files else WHOLE

    dense_of: dict[str, list[TensorInfo]] = {}
    for info in dense:
        dense_of.setdefault(group(info), []).append(info)
    needs = [sorted({group(part.tensor) for part in stack.parts}) for stack in stacks]
    opened: set[str] = set()
    opens: list[list[str]] = []
    for files in needs:
        opens.append([file for file in files if file not in opened])
        opened.update(files)
    rest = [file for file in [*weight_files, *dense_of] if file not in opened]
    opens.append(list(dict.fromkeys(rest)))
    last_use = {file: at for at, files in enumerate([*needs, opens[-1]]) for file in files}
    return [
        Stage(
            opens=tuple(files),
            dense=tuple(info for file in files for info in dense_of.get(file, ())),
            stack=stack,
            is_last_of_shard=stack is not None and stack.layer in last_layers,
            closes=tuple(sorted(file for file, last in last_use.items() if last == at)),
        )
        for at, (files, stack) in enumerate(zip(opens, [*stacks, None], strict=True))
    ]


def without_done(
    stages: Sequence[Stage], groups: Collection[str], layers: Collection[int]
) -> list[Stage]:
    """Return the stages less what is done: dense tensors of `groups`, experts of `layers`."""
    return [
        replace(
            stage,
            dense=tuple(info for info in stage.dense if stage.group_of(info) not in groups),
            stack=stage.stack if stage.stack and stage.stack.layer not in layers else None,
        )
        for stage in stages
    ]


def peak_bytes(
    stages: Sequence[Stage], fetched: Mapping[str, int], freed: Mapping[str, int]
) -> int:
    """Return the most bytes by which the disk is ever fuller than before the first stage.

    Args:
        fetched: size of each weight file that is downloaded when it is opened.
        freed: size of each weight file that is removed when it is closed.
    """
    extra = peak = 0
    for stage in stages:
        extra += sum(fetched.get(file, 0) for file in stage.opens) + stage.written_bytes
        peak = max(peak, extra)
        extra -= sum(freed.get(file, 0) for file in stage.closes)
    return peak
