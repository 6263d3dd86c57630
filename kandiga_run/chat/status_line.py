"""The quiet line below: speed, context, memory."""

from __future__ import annotations

from kandiga_run.chat.conversation import Conversation
from kandiga_run.memory.use import memory_use
from kandiga_run.sizes import format_size


class StatusLine:
    """Figures of the conversation and its latest answer, in a few words."""

    def __init__(self, conversation: Conversation, model: str) -> None:
        self._conversation, self._model = conversation, model

    def at_prompt(self) -> str:
        """Return the line while a message is typed."""
        parts = [self._model, *self._speed(), self._context(), format_size(_memory())]
        if self._conversation.engine.stats.has_fewer_experts:
            parts.append("fast (lossy)")
        return " · ".join(parts)

    def during_answer(self) -> str:
        """Return the line while an answer is written."""
        return " · ".join([*self._speed(), format_size(_memory()), "Ctrl-C stops"])

    def _speed(self) -> list[str]:
        last = self._conversation.last
        if last is None:
            return []
        speed = last.stats.decode_tokens_per_second
        count = f"{last.stats.generated_tokens} tokens"
        return [count, f"{speed:.1f} tokens/s"] if speed else [count]

    def _context(self) -> str:
        conversation = self._conversation
        return f"context {conversation.count_tokens()}/{conversation.context_tokens}"


def _memory() -> int:
    """Return what this process keeps others from using: pages of mapped weights can be dropped."""
    use = memory_use()
    return use.anonymous_bytes if use.anonymous_bytes is not None else use.resident_bytes
