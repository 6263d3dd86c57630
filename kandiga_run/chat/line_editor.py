"""An editable line with history, for messages typed on a terminal."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from kandiga_run.chat.line_input import message_of, needs_more
from kandiga_run.user_files import state_folder

#: A longer history file is cut to its later half.
_HISTORY_BYTES = 1 << 20
_PROMPT = "> "
_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|.)")
_STYLE = Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"})


class LineEditor:
    """Reads messages: Enter sends, Alt-Enter breaks the line, the arrow keys go back in history."""

    def __init__(
        self,
        *,
        commands: Sequence[str] = (),
        status: Callable[[], str] = lambda: "",
        on_toggle: Callable[[], None] = lambda: None,
    ) -> None:
        """Make an editor on the process's terminal.

        commands: completed by the Tab key.
        status: the line below.
        on_toggle: what Ctrl-O does.
        """
        self._typed = ""
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            history=open_history(),
            key_bindings=_key_bindings(on_toggle),
            bottom_toolbar=lambda: FormattedText([("class:bottom-toolbar", status())]),
            prompt_continuation=lambda width, line, wrap: " " * len(_PROMPT),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            enable_history_search=True,
            style=_STYLE,
        )

    def read(self) -> str:
        """Return the next message."""
        typed, self._typed = self._typed, ""
        return message_of(self._session.prompt([("bold", _PROMPT)], default=typed))

    def type_ahead(self, text: str) -> None:
        """Begin the next line with what was typed during an answer."""
        plain = _ESCAPE_SEQUENCE.sub("", text)  # arrow keys, and what a terminal itself says
        self._typed += "".join(letter for letter in plain if letter.isprintable())


def open_history() -> History:
    """Return the history of all conversations; one of this conversation where there is no file.

    Only its owner may read the file.
    """
    path = state_folder() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        _cut(path)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _cut(path: Path) -> None:
    if path.stat().st_size <= _HISTORY_BYTES:
        return
    lines = path.read_bytes()[-_HISTORY_BYTES // 2 :].split(b"\n# ", 1)
    replacement = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        replacement.unlink()
    descriptor = os.open(replacement, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(b"\n# " + lines[-1])
    replacement.replace(path)


def _key_bindings(on_toggle: Callable[[], None]) -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if needs_more(buffer.text) and buffer.document.is_cursor_at_the_end:
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _break(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-o")
    def _toggle(event: KeyPressEvent) -> None:
        run_in_terminal(on_toggle)

    return bindings
