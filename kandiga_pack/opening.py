"""What `convert` is given, opened: as it lies, or staged so that its files come and go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from formats.hub import HubId, is_offline
from kandiga_pack.errors import PackError, UsageError
from kandiga_pack.hub_staging import StreamedRepository
from kandiga_pack.sources import hub
from kandiga_pack.sources.base import Source
from kandiga_pack.sources.converted import Quantization
from kandiga_pack.sources.open import is_mlx_layout, open_source
from kandiga_pack.staging import ConsumedFolder, Stage
from kandiga_pack.workspace import Workspace

Say = Callable[[str], None]


@dataclass(frozen=True)
class Input:
    """A source, and what lets its files come and go, None where they stay."""

    source: Source
    stage: Stage | None = None

    def close(self) -> None:
        """Close the source."""
        (self.stage or self.source).close()


def open_input(
    text: str | Path,
    workspace: Workspace,
    *,
    revision: str | None,
    quantization: Quantization | None,
    consume: bool,
    say: Say,
) -> Input:
    """Open what the user named.

    Raises:
        UsageError: `consume` does not go with it.
        UnreadableError, PackError, HubError: it cannot be read, or not packed.
    """
    path = Path(text)
    is_on_hub = not path.exists() and hub.is_hub_id(str(text))
    if consume:
        _check_consume(path, is_on_hub, revision, quantization)
    if is_on_hub and quantization is None and not is_offline():
        streamed = _open_streamed(HubId(str(text), revision), workspace, say)
        if streamed is not None:
            return streamed
    elif consume or _was_consumed(path, workspace):
        return _open_consumed(path, workspace, consume=consume)
    return Input(open_source(text, revision=revision, quantization=quantization))


def _check_consume(
    path: Path, is_on_hub: bool, revision: str | None, quantization: Quantization | None
) -> None:
    if is_on_hub:
        raise UsageError(
            f"--consume is for a folder of yours; {path} is on the Hub, and its files are "
            "downloaded, packed and removed one by one anyway"
        )
    if revision is not None:
        raise UsageError(f"--revision is for Hub ids, and {path} is on this machine")
    if quantization is not None:
        raise UsageError(
            "--consume does not go with --quantize: converting may need any file until the end"
        )


def _was_consumed(path: Path, workspace: Workspace) -> bool:
    """Whether an earlier run removed files of this very folder."""
    journal = workspace.journal
    return bool(journal.freed) and (journal.request or {}).get("source") == str(path)


def _open_consumed(path: Path, workspace: Workspace, *, consume: bool) -> Input:
    stage = ConsumedFolder(path, workspace.source_folder, workspace.journal, consume=consume)
    if not is_mlx_layout(stage.source):
        stage.close()
        raise PackError(
            f"{path}: --consume needs experts stacked as mlx-lm writes them, and these are laid "
            "out as published, so converting may need any file until the end; leave it out"
        )
    return Input(stage.source, stage)


def _open_streamed(hub_id: HubId, workspace: Workspace, say: Say) -> Input | None:
    """Open a repository file by file; None, with a line, if it must be there as a whole."""
    stage = StreamedRepository(
        hub_id, workspace.source_folder, workspace.downloads_folder, workspace.journal
    )
    if is_mlx_layout(stage.source):
        return Input(stage.source, stage)
    stage.close()
    say(
        f"{hub_id}: experts are laid out as published, which needs all of them at hand: the whole "
        "checkpoint is downloaded first, to the Hub's cache"
    )
    return None
