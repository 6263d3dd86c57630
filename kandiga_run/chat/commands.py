"""What begins with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kandiga_run.answers.report import stats_rows
from kandiga_run.chat import transcript
from kandiga_run.chat.settings import change_setting
from kandiga_run.errors import RunError

if TYPE_CHECKING:
    from kandiga_run.chat.terminal import ChatTerminal


@dataclass(frozen=True)
class Command:
    """A slash command."""

    action: Callable[[ChatTerminal, str], None]
    help: str
    argument: str = ""


def obey(terminal: ChatTerminal, line: str) -> None:
    """Do what a line that begins with a slash says. Raises RunError, OSError."""
    name, _, argument = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        terminal.output.notice(f"{name}: no such command; /help lists them")
        return
    command.action(terminal, argument.strip())


def _help(terminal: ChatTerminal, argument: str) -> None:
    for name, command in COMMANDS.items():
        terminal.output.notice(f"{name + ' ' + command.argument:<20} {command.help}")
    terminal.output.notice(
        'Alt-Enter, a \\ at the end or """ before and after: several lines\n'
        "Ctrl-C stops an answer, Ctrl-O shows or folds its reasoning, Ctrl-D leaves"
    )


def _system(terminal: ChatTerminal, argument: str) -> None:
    conversation = terminal.conversation
    if argument:
        conversation.system = None if argument == "none" else argument
    terminal.output.notice(f"system prompt: {conversation.system or '(none)'}")


def _reset(terminal: ChatTerminal, argument: str) -> None:
    terminal.conversation.reset()
    terminal.output.notice("conversation forgotten")


def _undo(terminal: ChatTerminal, argument: str) -> None:
    question = terminal.conversation.undo()
    if question is None:
        terminal.output.notice("there is nothing to take back")
    else:
        terminal.output.notice(f"taken back: {_shortened(question)}")


def _regen(terminal: ChatTerminal, argument: str) -> None:
    if not terminal.conversation.messages:
        terminal.output.notice("there is no question to answer")
        return
    sampling = terminal.conversation.options.sampling
    if sampling.temperature == 0 or sampling.seed is not None:
        terminal.output.notice(
            "greedy: the same answer again; /set temperature 0.7 for another"
            if sampling.temperature == 0
            else "the same seed gives the same answer; /set seed default for another"
        )
    terminal.answer(terminal.conversation.reply_again)


def _set(terminal: ChatTerminal, argument: str) -> None:
    name, _, text = argument.partition(" ")
    names = [name] if name else list(terminal.settings)
    for each in names:
        terminal.output.notice(change_setting(terminal.settings, each, text.strip()))


def _save(terminal: ChatTerminal, argument: str) -> None:
    path = _path(argument, "/save")
    transcript.save(terminal.conversation, path, model=terminal.model)
    terminal.output.notice(f"{path}: {_count(terminal)} written")


def _load(terminal: ChatTerminal, argument: str) -> None:
    path = _path(argument, "/load")
    transcript.load(terminal.conversation, path)
    terminal.output.notice(f"{path}: {_count(terminal)} read")


def _fast(terminal: ChatTerminal, argument: str) -> None:
    if argument not in ("", "on", "off"):
        raise RunError(f"/fast {argument}: wanted on or off, or neither to change it")
    terminal.set_fast(None if not argument else argument == "on")


def _stats(terminal: ChatTerminal, argument: str) -> None:
    generation = terminal.conversation.last
    if generation is None:
        terminal.output.notice("no answer yet")
        return
    engine = terminal.conversation.engine
    rows = stats_rows(engine, generation.state, generation.stats)
    terminal.output.table("last answer", rows)


def _count(terminal: ChatTerminal) -> str:
    count = len(terminal.conversation.messages)
    return f"{count} message{'s' * (count != 1)}"


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise RunError(f"{command}: wanted the name of a file, like {command} talk.json")
    return Path(argument).expanduser()


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


def _exit(terminal: ChatTerminal, argument: str) -> None:
    raise EOFError


COMMANDS = {
    "/help": Command(_help, "this list"),
    "/system": Command(_system, 'show or set the system prompt ("none" removes it)', "[TEXT]"),
    "/reset": Command(_reset, "forget the conversation, keep the system prompt"),
    "/undo": Command(_undo, "take back the last question and its answer"),
    "/regen": Command(_regen, "answer the last question once more"),
    "/set": Command(_set, "show or change settings of answers and of what is shown", "[NAME [X]]"),
    "/fast": Command(_fast, "half of the model's experts a token (lossy), or all", "[on|off]"),
    "/save": Command(_save, "write the conversation to a file", "FILE"),
    "/load": Command(_load, "go on with the conversation in a file", "FILE"),
    "/stats": Command(_stats, "figures of the last answer"),
    "/exit": Command(_exit, "leave, as Ctrl-D does"),
}
