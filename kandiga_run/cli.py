"""The command `kandiga-run`: parse, run, turn whatever is raised into a line and an exit code.

Imports here and at the top of commands/ are few on purpose: `kandiga-run --help` and a mistyped
option answer at once, and numpy, tokenizers, jinja2, rich and the engines are loaded by the command
that needs them.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches

import click

from kandiga_run.commands import COMMANDS
from kandiga_run.commands.completion import COMPLETE_VARIABLES
from kandiga_run.commands.model_argument import reads_like_a_prompt
from kandiga_run.commands.options import Invocation
from kandiga_run.commands.run import run_command
from kandiga_run.terminal.exit_codes import HELP, ExitCode
from kandiga_run.terminal.failures import describe
from kandiga_run.terminal.output import PROGRAM, Output

_EPILOG = f"""\b
Examples:
  kandiga-run setup
  kandiga-run chat
  kandiga-run "What is the capital of France?"
  kandiga-run plan mlx-community/Qwen3.5-35B-A3B-4bit
  kandiga-run serve --port 8080

\b
Environment:
  KANDIGA_MODEL        the model where none is named, before the remembered one
  KANDIGA_ISA          kernels to use, such as avx2; one that cannot run is an error
  HF_HOME, HF_TOKEN    where downloads are kept, and who asks for them
  HF_HUB_OFFLINE=1     nothing is asked of the network

\b
Files:
  ~/.config/kandiga/config.json        the default model
  ~/.config/kandiga/tuned.json         what `kandiga-run tune` found
  ~/.cache/kandiga/ceilings.json       what memory and disk of this machine give
  ~/.local/share/kandiga/models        what `kandiga-run setup` packed
XDG_CONFIG_HOME, XDG_CACHE_HOME and XDG_DATA_HOME move them.

{HELP}"""
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Group(click.Group):
    """Commands, and a sentence where a command could stand: a prompt for the default model."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which somebody new needs them."""
        return [command.name or "" for command in COMMANDS]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take `--fast "Why?"` for `run --fast "Why?"`: options of `run` may stand before it."""
        if args and not ctx.resilient_parsing and self._begins_with_option_of_run(ctx, args[0]):
            self._check_no_command_follows(ctx, args)
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def _begins_with_option_of_run(self, ctx: click.Context, word: str) -> bool:
        name = word.partition("=")[0]
        own = {opt for each in self.get_params(ctx) for opt in each.opts}
        return name not in own and name in {opt for each in run_command.params for opt in each.opts}

    def _check_no_command_follows(self, ctx: click.Context, args: list[str]) -> None:
        """UsageError for `--json chat`, whose meaning is plain but which no command takes so."""
        parser = run_command.make_parser(click.Context(run_command, parent=ctx))
        word = parser.parse_args(list(args))[0].get("model")
        if word in self.commands:
            raise click.UsageError(
                f"options stand behind the command: {PROGRAM} {word} {args[0]}", ctx
            )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names, or `run` for a prompt."""
        word = args[0]
        if self.get_command(ctx, word) is None and not ctx.resilient_parsing:
            if reads_like_a_prompt(word):
                return super().resolve_command(ctx, ["run", *args])
            raise click.UsageError(self._unknown(ctx, word), ctx)
        return super().resolve_command(ctx, args)

    def _unknown(self, ctx: click.Context, word: str) -> str:
        names = sorted(self.commands)
        near = get_close_matches(word.lower(), names, n=1)
        if near:
            return f"no command {word!r}: did you mean {near[0]!r}?"
        if "/" in word or os.path.exists(word):
            return f"no command {word!r}: to use that model, `{PROGRAM} chat {word}`"
        return (
            f"no command {word!r}: one of {', '.join(names)}, or a question of several words in "
            "quotes"
        )


@click.group(cls=_Group, context_settings=_SETTINGS, epilog=_EPILOG, no_args_is_help=True)
@click.version_option(package_name="kandiga-kexp", prog_name=PROGRAM)
def cli() -> None:
    """Run mixture-of-experts language models from .kexp containers, experts read from disk.

    A sentence in quotes in the place of COMMAND is a prompt for the default model. Answers go to
    stdout, all else to stderr.
    """


for _command in COMMANDS:
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A locale without the characters of an answer shows "?" and goes on.
            stream.reconfigure(errors="replace")
    if COMPLETE_VARIABLES[PROGRAM] in os.environ:
        return _complete()
    invocation = Invocation()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not click's own main: it would take Ctrl-C and a closed pipe for itself.
        with cli.make_context(PROGRAM, list(words), obj=invocation) as context:
            cli.invoke(context)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        # Options may not have been taken in when one of them is wrong.
        invocation.output.is_json |= _asks_for_json(words)
        _print_usage_error(error, invocation.output)
        return ExitCode.USAGE
    except BrokenPipeError:
        # Whoever read our output has seen enough, as `head` does: no failure.
        _silence_stdout()
        return ExitCode.OK
    except BaseException as error:
        return _report(error, invocation)
    return ExitCode.OK


def _complete() -> int:
    """Answer a shell that asks how to go on; never a word on stderr, which would be in its way."""
    from click.shell_completion import shell_complete

    variable = COMPLETE_VARIABLES[PROGRAM]
    return shell_complete(cli, {}, PROGRAM, variable, os.environ[variable])


def _report(error: BaseException, invocation: Invocation) -> int:
    """Print one line for a failure, after its traceback with --debug; return the exit code."""
    invocation.output.end_text()
    if invocation.is_debug:
        traceback.print_exception(error, file=sys.stderr)
    line, code = describe(error) or (_describe_bug(error), ExitCode.FAILED)
    _tell(line, code, invocation.output)
    return code


def _tell(line: str, code: ExitCode, output: Output) -> None:
    """Print an error, one line; programs get it on stdout, too."""
    if output.is_json:
        output.json({"ok": False, "error": line, "exit_code": int(code)})
    output.error(line)


def _describe_bug(error: BaseException) -> str:
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {what} (--debug shows where; please report it)"


def _asks_for_json(words: Sequence[str]) -> bool:
    """Whether a command line that could not be read wants JSON on stdout."""
    if "--json" not in words:
        return False
    # That of bench names a file, - being stdout.
    return words[0] != "bench" or words[words.index("--json") + 1 :][:1] == ["-"]


def _print_usage_error(error: click.ClickException, output: Output) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), file=output.stderr)
        return
    context = getattr(error, "ctx", None)
    command = context.command_path if context else PROGRAM
    message = error.format_message().removesuffix(".")
    _tell(f"{message} (see {command} --help)", ExitCode.USAGE, output)


def _silence_stdout() -> None:
    """Keep the interpreter from complaining when it flushes a closed stdout on exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
