"""What the commands share: exit codes and examples in their help, and how they talk."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from kandiga_pack.exit_codes import ExitCode
from kandiga_pack.output import Output

# Blocks marked \b keep their lines.
EXIT_CODES_HELP = "\b\nExit codes:\n" + "\n".join(
    f"  {code.value:>3}  {code.meaning}" for code in ExitCode
)


def epilog(*examples: str) -> str:
    """Return the end of a command's help: these command lines, and the exit codes."""
    lines = "\n".join(f"  {example}" for example in examples)
    return f"\b\nExamples:\n{lines}\n\n{EXIT_CODES_HELP}"


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --json, --quiet, --verbose and --debug, and pass them on as one Output."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
    @click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
    @click.option("--verbose", "-v", is_flag=True, help="Progress as lines where no bar is drawn.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @click.pass_context
    @wraps(command)
    def wrapped(
        context: click.Context,
        /,
        as_json: bool,
        quiet: bool,
        verbose: bool,
        debug: bool,
        **options: Any,
    ) -> None:
        output = Output(json=as_json, quiet=quiet, verbose=verbose)
        context.obj.update(output=output, debug=debug)
        command(output, **options)

    return wrapped
