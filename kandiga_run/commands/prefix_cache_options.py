"""Options about beginnings of prompts that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kandiga_run.commands.options import together
from kandiga_run.commands.values import Size

if TYPE_CHECKING:
    from kandiga_run.scheduler import CacheOptions


class _SizeOrNone(Size):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes; nothing needs no unit."""
        return 0 if value == "0" else super().convert(value, param, ctx)


prefix_cache_options = together(
    click.option(
        "--prefix-cache",
        "prefix_cache_bytes",
        type=_SizeOrNone(),
        help="Memory for beginnings of prompts, which are read once; 0 keeps none. Default: 1GiB, "
        "or a sixteenth of --memory.",
    ),
    click.option(
        "--prefix-cache-dir",
        "prefix_cache_folder",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        help="Keep them in this folder too, for later runs. Who can read it can read the prompts.",
    ),
    click.option(
        "--prefix-cache-disk",
        "prefix_cache_folder_bytes",
        type=Size(),
        default="8GiB",
        show_default=True,
        help="What that folder may hold; what was used longest ago is removed.",
    ),
    click.option(
        "--reuse-answers",
        "whole_turns",
        is_flag=True,
        help="Read nothing of a conversation again, not even the answers. A next answer may then "
        "differ by rounding from the one to the same conversation read from its start.",
    ),
)


def prefix_cache(choices: dict[str, Any]) -> CacheOptions:
    """Return what was chosen."""
    from kandiga_run.scheduler import CacheOptions

    return CacheOptions(
        capacity_bytes=choices["prefix_cache_bytes"],
        folder=choices["prefix_cache_folder"],
        folder_bytes=choices["prefix_cache_folder_bytes"],
        whole_turns=choices["whole_turns"],
    )
