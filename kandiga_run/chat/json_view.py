"""One JSON object an answer, for programs."""

from __future__ import annotations

import json

from kandiga_run.answers.reply import Chunk, Reply
from kandiga_run.answers.report import stats_json, usage_json
from kandiga_run.chat.conversation import Conversation
from kandiga_run.terminal.output import Output


class JsonView:
    """Prints a line when an answer is complete."""

    def __init__(self, output: Output, conversation: Conversation, model: str) -> None:
        self._output, self._conversation, self._model = output, conversation, model

    def begin(self) -> None:
        """Nothing is shown before the end."""

    def progress(self, done: int, total: int) -> None:
        """Nothing is shown before the end."""

    def add(self, chunk: Chunk) -> None:
        """Nothing is shown before the end."""

    def end(self, reply: Reply | None) -> None:
        """Print the answer."""
        if reply is None:
            return
        generation = reply.generation
        self._output.json(
            {
                "model": self._model,
                "text": reply.text,
                "reasoning": reply.reasoning,
                "tool_calls": [
                    {"name": call.name, "arguments": json.loads(call.arguments_json)}
                    for call in reply.tool_calls
                ],
                "finish_reason": reply.finish_reason,
                "usage": usage_json(generation.stats),
                "seed": generation.seed,
                "stats": stats_json(self._conversation.engine, generation.state, generation.stats),
            }
        )
