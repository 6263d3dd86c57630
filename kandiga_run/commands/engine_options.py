"""The options about how a model is computed, and what they mean to `load_engine`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kandiga_run.commands.options import together
from kandiga_run.commands.values import Size
from kandiga_run.kv.choices import KV_CHOICES

engine_options = together(
    click.option(
        "--engine",
        type=click.Choice(["auto", "native", "mlx"]),
        default="auto",
        show_default=True,
        help="native computes on the CPU, mlx on the Apple GPU.",
    ),
    click.option(
        "--residency",
        type=click.Choice(["auto", "mapped", "owned"]),
        default="auto",
        show_default=True,
        help="Experts in the system's page cache, or in a fixed pool of our own.",
    ),
    click.option(
        "--memory",
        "memory_bytes",
        type=Size(),
        help="Budget for weights, KV cache and experts, like 2GB (1000-based) or 2GiB "
        "(1024-based).",
    ),
    click.option(
        "--experts",
        "num_experts_per_token",
        type=click.IntRange(min=1),
        metavar="K",
        help="Experts a token uses. Fewer than the model's own number is lossy.",
    ),
    click.option("--fast", is_flag=True, help="Lossy: half the model's experts a token."),
    click.option(
        "--kv",
        type=click.Choice(KV_CHOICES),
        default="auto",
        show_default=True,
        help="Keys and values: fp16 (float32 for a float32 checkpoint), or so many bits for each "
        "(lossy). auto is fp16 up to 16384 tokens and k4v3 beyond.",
    ),
    click.option(
        "--kv-qjl",
        is_flag=True,
        help="One key bit is the sign of the residual's projection (QJL).",
    ),
    click.option(
        "--kv-protect",
        metavar="N",
        type=click.IntRange(min=0),
        default=0,
        help="Keep the first and last N layers that have keys and values at 8 bits.",
    ),
    click.option(
        "--check",
        type=click.Choice(["first-touch", "always", "off"]),
        default="first-touch",
        show_default=True,
        help="When an expert's checksum is compared.",
    ),
    click.option(
        "--arithmetic",
        type=click.Choice(["auto", "exact", "int16", "int8"]),
        default="auto",
        show_default=True,
        help="Activations that meet quantized weights: float32, or rounded to 16 or 8 bits. "
        "Native engine only.",
    ),
    click.option(
        "--threads",
        "num_threads",
        metavar="N",
        type=click.IntRange(min=1),
        help="CPU threads. Default: all.",
    ),
    click.option(
        "--readers",
        "num_readers",
        metavar="N",
        type=click.IntRange(min=1),
        help="Experts read from disk at a time. Default: 4.",
    ),
    click.option(
        "--no-tuned",
        is_flag=True,
        help="Leave the settings alone that kandiga-run tune kept for this model and machine.",
    ),
)


def engine_arguments(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `load_engine` that `engine_options` stand for."""
    if choices["fast"] and choices["num_experts_per_token"] is not None:
        raise click.UsageError("--fast and --experts both choose the experts: give one of them")
    names = (
        "engine",
        "residency",
        "memory_bytes",
        "check",
        "arithmetic",
        "num_threads",
        "num_readers",
        "kv",
        "kv_qjl",
        "kv_protect",
    )
    num_experts = "fast" if choices["fast"] else choices["num_experts_per_token"]
    return {**{name: choices[name] for name in names}, "num_experts_per_token": num_experts}


def tuned_arguments(
    folder: Path, choices: dict[str, Any], *, memory_is_chosen: bool = False
) -> tuple[dict[str, Any], str]:
    """Return `engine_arguments` with tuned settings where nothing was chosen.

    Also returns what to tell of them, empty when there is nothing to tell.

    Args:
        folder: the container.
        memory_is_chosen: the caller decides how much memory there is.
    """
    arguments = engine_arguments(choices)
    if choices["no_tuned"]:
        return arguments, ""
    from kandiga_run.tune.applying import apply_tuned

    applied = apply_tuned(folder, arguments, memory_is_chosen=memory_is_chosen)
    return applied.arguments, applied.note or ""
