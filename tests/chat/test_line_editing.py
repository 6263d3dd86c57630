"""`kandiga-run chat` on a terminal: what a person sees and can press."""

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kandiga_command import KANDIGA_RUN, TIMEOUT_SECONDS
from kandiga_run.terminal.exit_codes import ExitCode
from packed import ENDLESS, PackedModels, endless_copy


@pytest.fixture(scope="module")
def endless_model(packed: PackedModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_copy(packed("qwen3_moe").container, tmp_path_factory.mktemp("endless") / "model")


class Terminal:
    """A process on a pseudo-terminal of its own, as a person has it."""

    def __init__(self, *arguments: str | Path) -> None:
        main_end, other_end = pty.openpty()
        self._fd = main_end
        #: What the screen was told and no `wait_for` has passed.
        self.unread = ""
        # The terminal of a test answers no questions about the cursor.
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self._process = subprocess.Popen(
            [*KANDIGA_RUN, *map(str, arguments)],
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(other_end)

    def wait_for(self, text: str) -> None:
        """Read up to the next `text`."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while text not in self.unread:
            piece = self._read(deadline - time.monotonic())
            assert piece, f"waited for {text!r}, seen {self.unread!r}"
            self.unread += piece
        self.unread = self.unread.partition(text)[2]

    def wait_for_answer(self) -> None:
        """Wait until Ctrl-C is a signal again, not a key of the line editor, and text comes."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not termios.tcgetattr(self._fd)[LOCAL_MODES] & termios.ISIG:
            assert time.monotonic() < deadline, "the line editor still has the terminal"
            time.sleep(0.001)
        while self._read(0):  # what the line editor has written
            pass
        assert self._read(TIMEOUT_SECONDS), "no answer"

    def enter(self, text: str) -> None:
        """Type at the next prompt; before it the keys would reach a terminal in another mode."""
        self.wait_for(LINE_BEGINS)
        self.press(text)

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def exit_code(self) -> int:
        while piece := self._read(TIMEOUT_SECONDS):
            self.unread += piece
        return self._process.wait(TIMEOUT_SECONDS)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def _read(self, seconds: float) -> str:
        """Return what comes within some seconds, or "" when nothing does or nothing more can."""
        ready, _, _ = select.select([self._fd], [], [], max(0, seconds))
        try:
            return os.read(self._fd, 65536).decode(errors="replace") if ready else ""
        except OSError:  # the process has closed its end
            return ""


def _take_terminal() -> None:
    """Make the pseudo-terminal the controlling one, so that pressing Ctrl-C sends the signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


CTRL_C, CTRL_D, BACKSPACE, ARROW_UP = "\x03", "\x04", "\x7f", "\x1b[A"


LOCAL_MODES = 3  # in what termios.tcgetattr returns


# What prompt_toolkit writes when a line begins and when it is done: bracketed paste on and off.
LINE_BEGINS, LINE_DONE = "\x1b[?2004h", "\x1b[?2004l"


class TestChatOnATerminal:
    """What a person sees and can press."""

    @pytest.fixture
    def terminal(self, endless_model: Path) -> Iterator[Terminal]:
        terminal = Terminal("chat", endless_model, *ENDLESS)
        terminal.wait_for("/help lists commands")
        yield terminal
        terminal.close()

    def test_answers_until_ctrl_c_and_leaves_at_ctrl_d(self, terminal: Terminal) -> None:
        terminal.enter("/stats\r")
        terminal.wait_for("no answer yet")
        for _ in range(2):
            terminal.enter("Hello\r")
            terminal.wait_for(LINE_DONE)
            terminal.wait_for_answer()
            terminal.press(CTRL_C)
            terminal.wait_for("stopped")
        terminal.enter("/stats\r")
        terminal.wait_for("more reused")
        terminal.wait_for("tokens/s")
        terminal.enter(CTRL_D)
        assert terminal.exit_code() == ExitCode.OK

    def test_exit_command(self, terminal: Terminal) -> None:
        terminal.enter("/exit\r")
        assert terminal.exit_code() == ExitCode.OK

    def test_line_editing(self, terminal: Terminal) -> None:
        """Ctrl-C drops a line, backspace corrects it, arrow up brings back the one before."""
        terminal.enter("nonsense" + CTRL_C)
        terminal.enter(f"/helq{BACKSPACE}p\r")
        terminal.wait_for("forget the conversation")
        terminal.enter(ARROW_UP + "\r")
        terminal.wait_for("forget the conversation")
