"""A program on a real pseudo-terminal, and the screen as a person would see it."""

import io
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

TIMEOUT_SECONDS = 60.0
CTRL_C, CTRL_D, CTRL_O, ALT_ENTER, TAB = "\x03", "\x04", "\x0f", "\x1b\r", "\t"
ARROW_UP = "\x1b[A"

# pyte knows no dimmed text: grey comes nearest.
_DIM = re.compile(rb"(\x1b\[(?:\d;)*)2((?:;\d)*m)")


class TerminalScreen:
    """Runs a program; `rows` is what its screen shows."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        columns: int = 80,
        rows: int = 24,
    ) -> None:
        environment = {**os.environ, "TERM": "xterm-256color", **(environment or {})}
        for name in ("NO_COLOR", "COLUMNS", "LINES", "PYTEST_CURRENT_TEST"):
            environment.pop(name, None)
        self._child = pexpect.spawn(
            command[0],
            list(command[1:]),
            env=environment,
            cwd=folder,
            dimensions=(rows, columns),
            timeout=5,
        )
        self._child.delaybeforesend = None
        self.screen = _AnsweringScreen(columns, rows, self._child.send)
        self._stream = pyte.ByteStream(self.screen)
        #: Every byte the program wrote.
        self.written = b""

    @property
    def rows(self) -> list[str]:
        """Return what scrolled away and what stands on the screen, without blanks at the ends."""
        above = ["".join(c.data for c in _cells(line, self.screen)) for line in self.scrolled]
        lines = [line.rstrip() for line in [*above, *self.screen.display]]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def scrolled(self) -> list[Mapping[int, pyte.screens.Char]]:
        """Return the lines above the screen."""
        return list(self.screen.history.top)

    @property
    def text(self) -> str:
        """Return the rows as one text."""
        return "\n".join(self.rows)

    def press(self, keys: str) -> None:
        """Press keys."""
        self._child.send(keys)

    def enter(self, text: str) -> None:
        """Type a line when the prompt waits for one."""
        self.wait(lambda: self.at_prompt, "the prompt")
        self.press(text)
        self.wait(lambda: not self.at_prompt, "what was typed")
        self.press("\r")

    @property
    def at_prompt(self) -> bool:
        """Whether the cursor stands behind a prompt, and nothing is typed."""
        line = self.screen.display[self.screen.cursor.y]
        return line.rstrip() == ">" and self.screen.cursor.x == 2 and not self.screen.cursor.hidden

    def wait_for(self, text: str) -> None:
        """Read until a text is shown."""
        self.wait(lambda: text in self.text, repr(text))

    def wait(self, is_there: Callable[[], bool], what: str) -> None:
        """Read until something holds; AssertionError with the screen when it does not."""
        waited, before = 0.0, time.monotonic()
        while not is_there():
            assert waited < TIMEOUT_SECONDS, f"no {what} on:\n{self.text}"
            if not self.read():
                assert self._child.isalive() or is_there(), f"ended without {what}:\n{self.text}"
            # A machine that was suspended, or this process stopped, has not waited that long.
            now = time.monotonic()
            waited, before = waited + min(now - before, 1.0), now

    def read(self, seconds: float = 0.1) -> bool:
        """Take in what the program writes; return whether it wrote anything."""
        try:
            data = self._child.read_nonblocking(65536, timeout=seconds)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return False
        self.written += data
        self._stream.feed(_DIM.sub(rb"\g<1>90\g<2>", data))
        return True

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the window; what stands on it is cut, not wrapped anew."""
        self.screen.resize(rows, columns)
        self._child.setwinsize(rows, columns)

    def exit_code(self) -> int:
        """Wait for the end."""
        while self.read(1):
            pass
        self._child.wait()
        return self._child.exitstatus if self._child.exitstatus is not None else -1

    def close(self) -> None:
        """End the program."""
        self._child.close(force=True)


class _AnsweringScreen(pyte.HistoryScreen):
    """Says where the cursor is when asked, as terminals do."""

    def __init__(self, columns: int, rows: int, send: Callable[[str], object]) -> None:
        super().__init__(columns, rows, history=2000, ratio=0.01)
        self._send = send

    def write_process_input(self, data: str) -> None:
        self._send(data)


def _cells(line: Mapping[int, pyte.screens.Char], screen: pyte.Screen) -> list[pyte.screens.Char]:
    return [line[column] for column in range(screen.columns)]


def screenshot_svg(terminal: TerminalScreen, path: Path, *, title: str) -> None:
    """Write the whole of what a terminal has shown as a picture, with its colours."""
    screen = terminal.screen
    console = Console(record=True, width=screen.columns, file=io.StringIO())
    lines = [*terminal.scrolled, *(screen.buffer[row] for row in range(screen.lines))]
    for line in lines[: len(terminal.rows)]:
        text = Text()
        for style, cells in groupby(_cells(line, screen), key=_style):
            text.append("".join(cell.data for cell in cells), style)
        text.rstrip()
        console.print(text, soft_wrap=True)
    svg = console.export_svg(title=title)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever looks at the picture fetches no font.
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))


def _style(cell: pyte.screens.Char) -> Style:
    return Style(
        color=_colour(cell.fg),
        bgcolor=_colour(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        reverse=cell.reverse,
    )


def _colour(name: str) -> str | None:
    """Return a colour of pyte by rich's name for it."""
    if name == "default":
        return None
    if re.fullmatch("[0-9a-fA-F]{6}", name):
        return "#" + name
    return name.replace("brown", "yellow").replace("bright", "bright_")
