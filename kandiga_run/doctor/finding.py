"""One line of the diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from kandiga_run.terminal.failures import describe

State = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """What was looked at and what it is.

    text: for people, with the reason. advice: what to do about it, empty when all is well.
    facts: the same for programs.
    """

    name: str
    state: State
    text: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


Look = Callable[[], Iterator[Finding]]


def findings(looks: dict[str, Look]) -> Iterator[Finding]:
    """Yield what each look finds; one that fails is a finding itself, and the others go on."""
    for name, look in looks.items():
        try:
            yield from look()
        except Exception as error:
            line, _ = describe(error) or (f"{type(error).__name__}: {error}", 1)
            yield Finding(name, "broken", line)
