"""What a client wants answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from kandiga_run.errors import RunError
from kandiga_run.generation.answer import TokenMask
from kandiga_run.generation.options import GenerateOptions
from kandiga_run.tokenizer.detokenizer import StreamingDetokenizer


@dataclass(frozen=True)
class Request:
    """One prompt and how to answer it. Detokenizer and constraint belong to this request alone."""

    prompt_tokens: tuple[int, ...]
    options: GenerateOptions = field(default_factory=GenerateOptions)
    #: Makes the text; without one tokens carry no text and stop strings never match.
    detokenizer: StreamingDetokenizer | None = None
    #: Which tokens may come next, such as `kandiga_run.answers.constraint.Constraint`.
    constraint: TokenMask | None = None
    #: Whoever asks: clients take turns, however many requests each has waiting.
    client: str = ""


class QueueFull(RunError):
    """So many requests wait already that another is refused."""

    def __init__(self, num_waiting: int, retry_after_seconds: int) -> None:
        super().__init__(
            f"{num_waiting} requests are waiting already; try again in {retry_after_seconds} s"
        )
        #: until about when a place is free, from how long answers took
        self.retry_after_seconds = retry_after_seconds


class Closing(RunError):
    """The scheduler takes no more requests."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down and takes no more requests")
