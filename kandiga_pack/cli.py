"""The command `kandiga-pack`: parse, run, turn whatever is raised into a line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from dataclasses import replace
from typing import Any, NoReturn

import click
from click.shell_completion import shell_complete

from kandiga_pack.commands import COMMANDS
from kandiga_pack.commands.options import epilog
from kandiga_pack.errors import describe
from kandiga_pack.exit_codes import ExitCode
from kandiga_pack.interrupts import interrupt_on
from kandiga_pack.output import Output

_COMPLETE_VARIABLE = "_KANDIGA_PACK_COMPLETE"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=epilog(
        "kandiga-pack convert mlx-community/Qwen3-30B-A3B-4bit qwen3-30b",
        "kandiga-pack verify qwen3-30b",
        "kandiga-pack inspect someone/Qwen3-30B-A3B-kexp",
        "kandiga-pack publish qwen3-30b me/Qwen3-30B-A3B-kexp --dry-run",
    ),
)
@click.version_option(package_name="kandiga-kexp")
def cli() -> None:
    """Pack mixture-of-experts checkpoints into .kexp containers, whose experts are read one at a
    time from disk."""


for _command in COMMANDS:
    cli.add_command(_command)


def run(arguments: list[str] | None = None) -> ExitCode:
    """Run a command line and return its exit code; nothing is raised."""
    state: dict[str, Any] = {"output": Output(), "debug": False}
    try:
        with cli.make_context("kandiga-pack", list(arguments or []), obj=state) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        return ExitCode(done.exit_code)
    except BrokenPipeError:  # `| head` has read enough; the interpreter would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED  # verify may not have told what it found
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except (Exception, KeyboardInterrupt) as error:
        if state["debug"]:
            traceback.print_exception(error, file=sys.stderr)
        message, code = describe(error)
        if isinstance(error, click.UsageError) and "--json" in (arguments or []):
            # Options may not have been taken in when one of them is wrong.
            state["output"] = replace(state["output"], json=True)
        state["output"].error(message, code)
        return code
    return ExitCode.OK


def main() -> NoReturn:
    """Entry point of `kandiga-pack`."""
    if _COMPLETE_VARIABLE in os.environ:
        # A shell asks how to go on; `kandiga-run completion` prints what makes it ask.
        sys.exit(
            shell_complete(
                cli, {}, "kandiga-pack", _COMPLETE_VARIABLE, os.environ[_COMPLETE_VARIABLE]
            )
        )
    interrupt_on(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    sys.exit(run(sys.argv[1:]))
