"""The options that several commands of `kandiga-run` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kandiga_run.errors import RunError
from kandiga_run.kv.choices import KV_CHOICES
from kandiga_run.sizes import parse_size
from kandiga_run.terminal.output import Output

Function = TypeVar("Function", bound=Callable[..., Any])


class Invocation:
    """What `main` must know about the command it ran, also when the command failed."""

    def __init__(self) -> None:
        self.is_debug = False
        self.is_verbose = False
        self._output = Output()

    @property
    def output(self) -> Output:
        """Return what the command prints with."""
        return self._output

    @output.setter
    def output(self, output: Output) -> None:
        output.is_verbose = self.is_verbose and not output.is_quiet
        self._output = output


class Size(click.ParamType[int]):
    """An amount of memory."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        try:
            return parse_size(value) if isinstance(value, str) else int(value)
        except RunError as error:
            self.fail(str(error), param, ctx)


class Sizes(click.ParamType[tuple[int, ...]]):
    """Amounts of memory separated by commas."""

    name = "SIZE,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return bytes, one number a size."""
        if not isinstance(value, str):
            return tuple(value)
        return tuple(Size().convert(part, param, ctx) for part in value.split(","))


class Counts(click.ParamType[tuple[int, ...]]):
    """Numbers of tokens separated by commas; K after a number is 1024."""

    name = "N,..."

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers in the order given."""
        if not isinstance(value, str):
            return tuple(value)
        return tuple(self._number(part.strip(), param, ctx) for part in value.split(","))

    def _number(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        digits, factor = (text[:-1], 1024) if text[-1:] in ("k", "K") else (text, 1)
        if not digits.isdecimal() or int(digits) * factor < self._least:
            self.fail(
                f"{text!r}: wanted a number from {self._least} on, like 512 or 4K", param, ctx
            )
        return int(digits) * factor


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Invocation).is_debug |= value


def _set_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Invocation).is_verbose |= value


def _options(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Return one decorator that adds several options, listed in --help in this order."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


sampling_options = _options(
    click.option(
        "--max-tokens",
        metavar="N",
        type=click.IntRange(min=1),
        default=1024,
        show_default=True,
        help="Longest answer, in tokens.",
    ),
    click.option(
        "--temperature",
        metavar="T",
        type=click.FloatRange(min=0),
        help="0 always takes the most probable token. Default: the model's "
        "generation_config.json, else 0 (1 when a filter below is given).",
    ),
    click.option(
        "--top-k",
        metavar="K",
        type=click.IntRange(min=0),
        help="Sample from the K most probable tokens.",
    ),
    click.option(
        "--top-p",
        metavar="P",
        type=click.FloatRange(min=0, max=1, min_open=True),
        help="Sample from the fewest tokens that reach probability P.",
    ),
    click.option(
        "--min-p",
        metavar="P",
        type=click.FloatRange(min=0, max=1),
        help="Sample from tokens at least P times as probable as the best.",
    ),
    click.option(
        "--repetition-penalty",
        metavar="X",
        type=click.FloatRange(min=0, min_open=True),
        help="Above 1 makes tokens already used less probable.",
    ),
    click.option(
        "--repetition-window",
        metavar="N",
        type=click.IntRange(min=0),
        help="Tokens the penalty looks back at. Default: all.",
    ),
    click.option(
        "--seed", metavar="N", type=click.IntRange(min=0), help="The same seed gives the same text."
    ),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help="End the answer before this text; may be given several times.",
    ),
    click.option(
        "--think/--no-think",
        "think",
        default=None,
        help="Ask the chat template for reasoning, or for none (enable_thinking).",
    ),
    click.option(
        "--context",
        metavar="N",
        type=click.IntRange(min=2),
        help="Tokens of prompt and answer together. Default: what the model was made for, in "
        "chat at most 8192.",
    ),
)

engine_options = _options(
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
        help="Keys and values: fp16, or so many bits for each (lossy). auto is fp16 up to 16384 "
        "tokens and k4v3 beyond.",
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

quiet_options = _options(
    click.option("--quiet", "-q", is_flag=True, help="Print answers and errors only."),
    click.option(
        "--verbose",
        "-v",
        is_flag=True,
        expose_value=False,
        callback=_set_verbose,
        help="Also tell what was found and chosen on the way.",
    ),
    click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_set_debug,
        help="Print the traceback of a failure.",
    ),
)

json_option = click.option(
    "--json", "is_json", is_flag=True, help="Print one JSON object instead of text."
)

measure_option = click.option(
    "--measure", is_flag=True, help="Measure memory and disk again, about 5 seconds."
)

output_options = _options(
    click.option("--stats", "shows_stats", is_flag=True, help="Print the figures to stderr."),
    quiet_options,
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
