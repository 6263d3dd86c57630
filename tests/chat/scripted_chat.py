"""A program: the chat of `kandiga-run chat` with a model that says what it is told to.

    python scripted_chat.py FOLDER ANSWERS.json

ANSWERS.json: {"answers": [...], "seconds_per_token": 0.01, "template": ...}. What is real: the
conversation, the terminal, the views; what is not: the numbers in the model.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bigram_engine import MarkingState
from kandiga_run.chat.assembly import chat_terminal
from kandiga_run.terminal.output import Output
from scripted_engine import CHATML, chatml_prompts, conversation, script


class Fast:
    """Counts as the model that /fast changes."""

    def __init__(self, talk: object) -> None:
        self.is_fast, self._talk = False, talk

    def change(self, is_fast: bool) -> None:
        self.is_fast = is_fast
        self._talk.engine.stats.num_experts_per_token = 1 if is_fast else 2


def main(folder: Path, answers: Path) -> None:
    plan = json.loads(answers.read_text())
    prompts = chatml_prompts(folder, plan.get("template", CHATML))
    scripts = [script(prompts, answer) for answer in plan["answers"]]
    talk, engine = conversation(
        prompts,
        scripts,
        context_tokens=plan.get("context_tokens", 4000),
        max_tokens=plan.get("max_tokens", 2000),
    )
    engine.state_type = MarkingState
    engine.before_forward = lambda: time.sleep(plan.get("seconds_per_token", 0))
    output = Output(is_json="--json" in sys.argv)
    chat_terminal(talk, output, Fast(talk), model="models/qwen3-30b").run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
