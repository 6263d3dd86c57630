"""A picture of a real chat, from what `kandiga-run chat` writes to a terminal.

    python tests/chat_screenshot.py MODEL docs/images/chat.svg

The README's picture is one of the model that `make demo` packs. A test makes one of a tiny model.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from terminal_screen import TerminalScreen, screenshot_svg

QUESTIONS = (
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
)


def picture(
    model: str, path: Path, *, questions: Sequence[str] = QUESTIONS, options: Sequence[str] = ()
) -> str:
    """Ask the questions on a terminal, write the picture, return the text that is in it."""
    with tempfile.TemporaryDirectory() as folder:
        terminal = TerminalScreen(
            [sys.executable, "-m", "kandiga_run", "chat", model, *options],
            environment={"XDG_STATE_HOME": folder, "HOME": folder},
            columns=84,
            rows=20,
        )
        try:
            for question in questions:
                terminal.enter(question)
            terminal.wait(lambda: terminal.at_prompt, "the prompt")
            terminal.wait_for("context ")
            screenshot_svg(terminal, path, title=f"kandiga-run chat {Path(model).name}")
            return terminal.text
        finally:
            terminal.close()


if __name__ == "__main__":
    print(picture(sys.argv[1], Path(sys.argv[2])))
