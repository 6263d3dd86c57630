"""What `setup` was asked for, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from formats.hub import HubId, parse_hub_id
from formats.manifest import MANIFEST_NAME
from kandiga_run.errors import RunError
from kandiga_run.forecast.find import find_shape
from kandiga_run.forecast.presets import PRESETS
from kandiga_run.forecast.shape import ModelShape

DEMO = "demo"


@dataclass(frozen=True)
class Target:
    """A model to be set up.

    how: "fetch" a container that is published, "pack" a checkpoint, or "use" a container that is
    here. source: Hub id or path. dest: folder of the container; None in the Hub's cache.
    """

    how: Literal["fetch", "pack", "use"]
    source: str
    dest: Path | None
    shape: ModelShape

    @property
    def default_model(self) -> str:
        """Return what is remembered: an absolute path, or the id of what the cache holds."""
        return self.source if self.dest is None else str(self.dest.absolute())

    @property
    def partial(self) -> Path | None:
        """Return where what an interrupted run has done is: beside the container, or in the Hub's
        cache."""
        if self.dest is not None:
            return self.dest.with_name(f"{self.dest.name}.partial")
        hub_id = parse_hub_id(self.source)
        if hub_id is None:
            return None
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE) / f"models--{hub_id.repository.replace('/', '--')}"


def find_target(text: str, folder: Path) -> Target:
    """Return what `text` means, a preset, path or Hub id; packed models go into `folder`.

    Raises: as `forecast.find.find_shape`.
    """
    preset = PRESETS.get(text.lower())
    if preset is not None and not Path(text).exists():
        target = find_target(preset.published or preset.checkpoint, folder)
        return replace(target, shape=replace(target.shape, name=text.lower()))
    packed = _packed_already(text, folder)
    if packed is not None:
        return Target("pack", text, packed, find_shape(str(packed)))
    shape = find_shape(text)
    if shape.kind == "published":
        return Target("fetch", text, None, shape)
    if shape.kind == "container":
        path = Path(text)
        return Target("use", text, path if path.is_dir() else path.parent, shape)
    return Target("pack", text, folder / _name(text), shape)


def planned_folder(text: str, folder: Path) -> Path:
    """Return where an interrupted packing of a Hub id would have left what it did."""
    return folder / f"{_name(text)}.partial"


def _packed_already(text: str, folder: Path) -> Path | None:
    """Return the container of an id that was packed before; then nobody need be asked about it."""
    if Path(text).exists() or parse_hub_id(text) is None:
        return None
    dest = folder / _name(text)
    return dest if (dest / MANIFEST_NAME).is_file() else None


def _name(text: str) -> str:
    """Return the name of the folder that a checkpoint is packed into."""
    hub_id = None if Path(text).exists() else parse_hub_id(text)
    name = _id_name(hub_id) if hub_id else Path(text).resolve().name
    if not name:
        raise RunError(f"{text}: give the folder of a model")
    return name


def _id_name(hub_id: HubId) -> str:
    name = hub_id.repository.replace("/", "--")
    revision = hub_id.revision
    return name if revision is None else f"{name}@{revision.replace('/', '--')}"
