"""A conversation's terminal, put together for what stdin and stdout are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kandiga_run.chat.commands import COMMANDS
from kandiga_run.chat.conversation import Conversation
from kandiga_run.chat.json_view import JsonView
from kandiga_run.chat.line_input import PlainReader
from kandiga_run.chat.plain_view import PlainView
from kandiga_run.chat.status_line import StatusLine
from kandiga_run.chat.terminal import ChatTerminal, FastSwitch
from kandiga_run.chat.views import AnswerView, ViewSettings
from kandiga_run.terminal.output import Output


def chat_terminal(
    conversation: Conversation,
    output: Output,
    fast: FastSwitch | None,
    *,
    model: str,
    shows_stats: bool = False,
) -> ChatTerminal:
    """Return a terminal for a conversation: editable and in colours where both sides are one."""
    settings = ViewSettings(stats=shows_stats)
    is_interactive = sys.stdin.isatty() and output.stdout.isatty() and not output.is_json
    if is_interactive and os.environ.get("TERM") not in (None, "", "dumb"):
        return _live_terminal(conversation, output, fast, settings, model)
    view: AnswerView = PlainView(output, settings)
    if output.is_json:
        view = JsonView(output, conversation, model)
    return ChatTerminal(
        conversation,
        output,
        PlainReader(),
        view,
        is_interactive=is_interactive,
        model=model,
        view_settings=settings,
        fast=fast,
    )


def _live_terminal(
    conversation: Conversation,
    output: Output,
    fast: FastSwitch | None,
    settings: ViewSettings,
    model: str,
) -> ChatTerminal:
    from kandiga_run.chat.line_editor import LineEditor
    from kandiga_run.chat.live_view import LiveView

    name = Path(model).name or model
    status = StatusLine(conversation, name)
    view = LiveView(output.stdout, settings, status=status.during_answer)

    def show_reasoning() -> None:
        reply = conversation.last_reply
        view.show_reasoning(reply.reasoning if reply and reply.reasoning else "(no reasoning)")

    editor = LineEditor(commands=tuple(COMMANDS), status=status.at_prompt, on_toggle=show_reasoning)
    output.notice(f"{name}: /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")
    return ChatTerminal(
        conversation,
        output,
        editor,
        view,
        is_interactive=True,
        model=model,
        view_settings=settings,
        fast=fast,
        on_toggle=view.toggle_reasoning,
        on_typed=editor.type_ahead,
    )
