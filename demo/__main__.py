"""Prepare, pack, verify, ask: `make demo`, or `python -m demo`.

Everything is kept under .demo; a step is done again only when its result is not whole or was made
from something else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from demo.commands import CommandFailedError, run_command
from demo.expected import DENSE_TOKEN_IDS, QUESTION
from demo.prepare import CHECKPOINT_NAME, INTERRUPTED, ROOT, prepare
from demo.records import code_digest, forget, is_complete, record, record_of
from demo.table import results_table

CONTAINER_NAME = CHECKPOINT_NAME.removesuffix("-mlx")
# About half of the 401 MB of experts find room beside the dense weights: some are read for every
# token, some are found in memory.
MEMORY_BUDGET = "300MB"
MAX_TOKENS = 128


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=(__doc__ or "").strip())
    parser.add_argument("--work", type=Path, default=ROOT / ".demo", help="default: %(default)s")
    work = parser.parse_args().work
    console = Console()
    try:
        return _demo(console, work)
    except CommandFailedError as error:
        console.print(f"demo: {error}", style="red", highlight=False)
        return error.exit_code
    except subprocess.CalledProcessError as error:
        console.print(
            f"demo: the download failed (exit code {error.returncode} of pip). It needs the "
            "package index once: check the network and run the demo again",
            style="red",
        )
        return 1
    except OSError as error:
        console.print(f"demo: {error}", style="red", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("demo: interrupted; the next call goes on after the last finished step")
        return INTERRUPTED


def _demo(console: Console, work: Path) -> int:
    console.rule("1 of 4: real weights, made into a mixture of 8 experts a layer", align="left")
    checkpoint = prepare(work)
    console.print(f"an MLX checkpoint: {checkpoint}", highlight=False, soft_wrap=True)
    console.rule("2 of 4: pack", align="left")
    container = _pack(console, work, checkpoint)
    console.rule("3 of 4: verify, against the checkpoint byte for byte", align="left")
    _verify(console, container, checkpoint)
    console.rule("4 of 4: ask, with experts read from disk", align="left")
    answer = _ask(console, container)
    console.print(answer["text"], style="green", highlight=False)
    console.print(
        results_table(answer, experts_bytes=_experts_bytes(container), budget=MEMORY_BUDGET)
    )
    return _compare(console, answer)


def _pack(console: Console, work: Path, checkpoint: Path) -> Path:
    container = work / CONTAINER_NAME
    inputs = {
        "checkpoint": record_of(checkpoint),
        "code": code_digest([ROOT / "formats", ROOT / "kandiga_pack"]),
    }
    if is_complete(container, inputs):
        console.print(f"kept from the last call: {container}", highlight=False, soft_wrap=True)
        return container
    for leftover in (container, container.with_name(f"{container.name}.partial")):
        forget(leftover)
    run_command(console, "kandiga-pack", "convert", checkpoint, container)
    record(container, inputs)
    return container


def _verify(console: Console, container: Path, checkpoint: Path) -> None:
    options = ["--level", "full", "--against", checkpoint]
    try:
        run_command(console, "kandiga-pack", "verify", container, *options)
    except CommandFailedError:
        # Sizes and times told nothing: kept, it would fail every call from here on.
        forget(container)
        console.print("the packed model is removed: the next call packs it again", style="red")
        raise


def _ask(console: Console, container: Path) -> dict[str, Any]:
    memory = ["--residency", "owned", "--memory", MEMORY_BUDGET]
    options = ["--temperature", "0", "--max-tokens", str(MAX_TOKENS), "--json"]
    output = run_command(
        console, "kandiga-run", "run", container, QUESTION, *memory, *options, keep=True
    )
    answer: dict[str, Any] = json.loads(output)
    return answer


def _experts_bytes(container: Path) -> int:
    from formats import open_set

    with open_set(container) as kexp:
        return sum(
            kexp.num_experts(layer) * kexp.layout(layer).payload_bytes for layer in kexp.layers
        )


def _compare(console: Console, answer: dict[str, Any]) -> int:
    """Every expert is a copy of the dense MLP, so any other answer is a mistake of ours."""
    if answer["token_ids"] == list(DENSE_TOKEN_IDS):
        console.print(
            f"all {len(DENSE_TOKEN_IDS)} tokens are those of the dense model", style="green"
        )
        return 0
    console.print("not the answer of the dense model: this is a bug", style="bold red")
    return 1


if __name__ == "__main__":
    sys.exit(main())
