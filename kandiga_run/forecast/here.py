"""This machine as a forecast sees it."""

from __future__ import annotations

from pathlib import Path

from kandiga_run.forecast.ceilings import MeasuredCeilings, ceilings_for
from kandiga_run.forecast.forecast import USABLE_MEMORY_SHARE
from kandiga_run.forecast.shape import ModelShape
from kandiga_run.memory.use import available_bytes
from kandiga_run.terminal.output import Output
from kandiga_run.user_files import data_folder


def models_folder() -> Path:
    """Return where `setup` packs models to unless told otherwise."""
    return data_folder() / "models"


def model_folder(shape: ModelShape) -> Path:
    """Return the folder whose disk counts for a model."""
    if shape.kind == "published":
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE)
    if shape.kind not in ("container", "checkpoint"):
        return models_folder()
    path = Path(shape.name)
    return path if path.is_dir() else path.parent


def folder_bytes(folder: Path) -> int:
    """Return what the files in a folder take; 0 for none. Holes in them take nothing."""
    if not folder.is_dir():
        return 0
    found = (each for each in folder.rglob("*") if each.is_file() and not each.is_symlink())
    return sum(each.stat().st_blocks * 512 for each in found)


def usable_memory_bytes() -> int:
    """Return what an engine may take here without others suffering."""
    return int(available_bytes() * USABLE_MEMORY_SHARE)


def measured(
    shape: ModelShape, folder: Path, output: Output, *, measure: bool = False
) -> MeasuredCeilings:
    """Return this machine's ceilings, saying so when they have to be measured first."""
    files = sorted(folder.glob("*.kexp")) if shape.kind == "container" else []
    with output.waiting("measuring memory and disk"):
        return ceilings_for(folder, files, measure=measure)
