"""`kandiga-run chat`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kandiga_run.commands.engine_options import engine_options
from kandiga_run.commands.model_argument import model_argument
from kandiga_run.commands.opening import (
    generate_options,
    open_engine,
    open_tokenizer,
    template_variables,
)
from kandiga_run.commands.options import Invocation, output_options, sampling_options
from kandiga_run.terminal.exit_codes import HELP
from kandiga_run.terminal.output import Output

if TYPE_CHECKING:
    from kandiga_run.chat.conversation import Conversation
    from kandiga_run.engine import Engine
    from kandiga_run.tokenizer.prompts import Prompts


@click.command(
    "chat",
    short_help="Converse in the terminal.",
    epilog=f"""\b
Examples:
  kandiga-run chat
  kandiga-run chat ./model
  kandiga-run chat someone/Qwen3-30B-A3B-kexp@v1.0
  kandiga-run chat ./model --system "Answer in one sentence." --memory 4GB
  kandiga-run chat ./model --fast
  printf 'Hello\\nAnd in French?\\n' | kandiga-run chat ./model
  kandiga-run chat ./model --json < questions.txt

{HELP}""",
)
@model_argument
@click.option("--system", metavar="TEXT", help="System message of the conversation.")
@sampling_options
@engine_options
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object an answer.")
@output_options
@click.pass_obj
def chat_command(
    invocation: Invocation,
    /,
    model: Path,
    system: str | None,
    is_json: bool,
    shows_stats: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Converse with MODEL, a folder of .kexp files or the id of a published one; without
    it with the model that `kandiga-run setup` remembers.

    Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands. Alt-Enter, a backslash at the end,
    or three quotation marks before and after make a message of several lines. Piped input is
    answered line by line, as plain text or with --json as one object an answer.
    """
    output = invocation.output = Output(is_json=is_json, is_quiet=quiet)
    folder, prompts = open_tokenizer(model, choices, output)
    context_tokens = _chat_context(prompts, choices["context"])
    with EngineSwitch(folder, choices, output, context_tokens) as engines:
        from kandiga_run.chat.assembly import chat_terminal
        from kandiga_run.chat.conversation import Conversation
        from kandiga_run.generation.kept_state import MARKS_BYTES

        conversation = Conversation(
            engines.engine,
            prompts,
            generate_options(prompts, choices),
            context_tokens=context_tokens,
            system=system,
            variables=template_variables(choices),
            # With a budget there is the latest mark only: it is not in the budget's plan.
            marks_bytes=0 if choices["memory_bytes"] else MARKS_BYTES,
        )
        engines.conversation = conversation
        chat_terminal(
            conversation, output, engines, model=str(model), shows_stats=shows_stats
        ).run()


class EngineSwitch:
    """The engine of a conversation; /fast takes another number of experts."""

    def __init__(
        self, folder: Path, choices: dict[str, Any], output: Output, context_tokens: int
    ) -> None:
        self._folder, self._choices, self._output = folder, choices, output
        self._context_tokens = context_tokens
        self._stack = ExitStack()
        self.is_fast: bool = choices["fast"]
        self.conversation: Conversation | None = None

    def __enter__(self) -> EngineSwitch:
        self.engine = self._open(self._choices)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def change(self, is_fast: bool) -> None:
        """Open the model with half of the experts a token, or with what it was opened with.

        The conversation is read again by the next answer: its state was computed otherwise.
        """
        if self.conversation is not None:
            self.conversation.drop_state()
        self._stack.close()
        choices = {**self._choices, "fast": is_fast}
        if is_fast:
            choices["num_experts_per_token"] = None
        try:
            self.engine = self._open(choices)
            self.is_fast = is_fast
        except BaseException:
            self.engine = self._open(self._choices | {"fast": self.is_fast})
            raise
        finally:
            if self.conversation is not None:
                self.conversation.use(self.engine)

    def _open(self, choices: dict[str, Any]) -> Engine:
        opened = open_engine(self._folder, choices, self._output, self._context_tokens)
        return self._stack.enter_context(opened)


def _chat_context(prompts: Prompts, chosen: int | None) -> int:
    """Return the tokens a conversation may hold; without a choice a modest KV cache."""
    return chosen or min(8192, prompts.context_length or 8192)
