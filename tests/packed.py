"""Tiny checkpoints and the containers made of them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints import make_checkpoint
from kandiga_pack.convert import convert


@dataclass(frozen=True)
class Packed:
    """checkpoint: an MLX folder. container: what convert made of it."""

    checkpoint: Path
    container: Path


def pack_checkpoint(checkpoint: Path, **convert_options: Any) -> Packed:
    """Convert a checkpoint folder; the container appears beside it."""
    container = checkpoint.with_name(checkpoint.name + "-kexp")
    convert(checkpoint, container, **convert_options)
    return Packed(checkpoint, container)


class PackedModels:
    """Makes and packs checkpoints, each one once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Packed] = {}

    def __call__(self, family: str, **options: Any) -> Packed:
        """Return the packed checkpoint that make_checkpoint(folder, family, **options) makes."""
        key = f"{family} {sorted(options.items(), key=str)!r}"
        if key not in self._known:
            folder = self._folder / f"{len(self._known)}-{family}"
            self._known[key] = pack_checkpoint(make_checkpoint(folder, family, **options))
        return self._known[key]


#: Options with which `endless_copy` answers until it is stopped.
ENDLESS = ("--max-tokens", "1000000", "--context", "2000000")


def endless_copy(container: Path, folder: Path) -> Path:
    """Copy a container to `folder`, without a stop token."""
    shutil.copytree(container, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": []}')
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
