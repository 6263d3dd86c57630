"""What the command's options about kept prompts become."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from kandiga_run.commands.prefix_cache_options import prefix_cache, prefix_cache_options
from kandiga_run.scheduler import CacheOptions


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], CacheOptions()),
        (["--prefix-cache", "0"], CacheOptions(capacity_bytes=0)),
        (
            ["--prefix-cache", "2MiB", "--prefix-cache-dir", "kept", "--prefix-cache-disk", "1GB"],
            CacheOptions(2 << 20, Path("kept"), 1_000_000_000),
        ),
        (["--reuse-answers"], CacheOptions(whole_turns=True)),
    ],
)
def test_options(arguments: list[str], expected: CacheOptions) -> None:
    seen: list[CacheOptions] = []

    @click.command()
    @prefix_cache_options
    def command(**choices: Any) -> None:
        seen.append(prefix_cache(choices))

    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert seen == [expected]
