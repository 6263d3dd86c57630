"""The options that several commands of `kandiga-run` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

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


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Invocation).is_debug |= value


def _set_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Invocation).is_verbose |= value


def together(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Return one decorator that adds several options, listed in --help in this order."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


sampling_options = together(
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


quiet_options = together(
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

output_options = together(
    click.option("--stats", "shows_stats", is_flag=True, help="Print the figures to stderr."),
    quiet_options,
)
