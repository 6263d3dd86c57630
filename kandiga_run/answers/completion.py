"""A finished answer, as the Python API gives it out."""

from __future__ import annotations

from dataclasses import dataclass

from kandiga_run.answers.reply import Reply, ReplyEnd
from kandiga_run.answers.tool_calls import ToolCall
from kandiga_run.generation.loop import GenerationStats
from kandiga_run.generation.usage import Usage


@dataclass(frozen=True)
class Completion:
    """An answer; `str()` is its text."""

    text: str
    #: What the model thought before, for models that tell.
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    #: "stop": the model ended it, or a stop text; "length": a limit; "tool_calls": it asks for
    #: tools; None: it was stopped.
    finish_reason: ReplyEnd | None
    usage: Usage
    stats: GenerationStats
    #: Gives the same answer again, with the same prompt and settings.
    seed: int

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        speed = self.stats.decode_tokens_per_second
        return (
            f"<Completion {text!r}, {self.finish_reason or 'stopped'}, "
            f"{self.usage.generated_tokens} tokens"
            f"{f', {speed:.1f} tokens/s' if speed else ''}>"
        )

    def _repr_markdown_(self) -> str:
        """Return what a notebook shows."""
        thoughts = self.reasoning.replace("&", "&amp;").replace("<", "&lt;")
        folded = f"<details><summary>reasoning</summary>\n\n{thoughts}\n\n</details>\n\n"
        return (folded if thoughts else "") + self.text


def completion_of(reply: Reply) -> Completion:
    """Return an answer as far as it has come."""
    stats = reply.generation.stats
    return Completion(
        reply.text,
        reply.reasoning,
        tuple(reply.tool_calls),
        reply.finish_reason,
        Usage(
            stats.reused_tokens + stats.prompt_tokens, stats.reused_tokens, stats.generated_tokens
        ),
        stats,
        reply.generation.seed,
    )
