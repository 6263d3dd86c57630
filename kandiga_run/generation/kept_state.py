"""A model's state kept between answers, so that what they have in common is computed once."""

from __future__ import annotations

from collections.abc import Sequence

from kandiga_run.engine import BudgetedEngine, Engine, RewindableState, State, StateMark
from kandiga_run.errors import RunError

#: Marks of recurrent layers together; one is some 60 MB for Qwen3.5-35B-A3B.
MARKS_BYTES = 256_000_000


class KeptState:
    """One state, the tokens it has seen, and marks to which recurrent layers can go back."""

    def __init__(self, engine: Engine, max_tokens: int, *, marks_bytes: int = MARKS_BYTES) -> None:
        """Hold nothing yet.

        max_tokens: room of the state, once there is one.
        marks_bytes: at most so much for marks, but for the latest.
        """
        self._engine = engine
        self.max_tokens = max_tokens
        self._marks_bytes = marks_bytes
        self._marks: list[StateMark] = []
        self._can_mark = True
        self.state: State | None = None
        self.seen: list[int] = []

    def fit(self, tokens: Sequence[int]) -> State:
        """Return a state that has seen a beginning of `tokens`, as long as possible, not all.

        One token at least is left to compute, since its logits begin the answer.
        """
        common = min(common_length(tokens, self.seen), len(tokens) - 1)
        if self.state is not None and common < len(self.seen):
            self._go_back(self.state, common)
        if self.state is None:
            self.state = self._engine.new_state(self.max_tokens)
            self._reserve(self.state)
        return self.state

    def _reserve(self, state: State) -> None:
        """Count a mark's memory in the engine's budget; where it has no room there are no marks."""
        engine = self._engine
        if not self.needs_marks or not isinstance(engine, BudgetedEngine):
            return
        if engine.budget_bytes is None:
            return
        try:
            engine.reserve(state.recurrent_nbytes, 0, self.max_tokens)
        except RunError:
            engine.reserve(0, 0, self.max_tokens)
            self._can_mark = False

    def note(self, tokens: Sequence[int]) -> None:
        """Take note of the tokens of a sequence which the state has been computing.

        A state that was given up within a chunk goes back to its latest mark.
        """
        if self.state is None:
            return
        self.seen = list(tokens[: self.state.position])
        if isinstance(self.state, RewindableState) and self.state.is_broken:
            self._go_back(self.state, len(self.seen))

    @property
    def needs_marks(self) -> bool:
        """Whether going back takes a mark."""
        state = self.state
        if not isinstance(state, RewindableState) or not self._can_mark:
            return False
        return state.can_mark and not state.can_trim

    def mark(self) -> None:
        """Make this moment one that the state can go back to, if it needs such a thing."""
        if not self.needs_marks or not isinstance(self.state, RewindableState):
            return
        if not self._marks_bytes:
            self._marks.clear()  # else there would be two for a moment
        self._marks = [mark for mark in self._marks if mark.position < self.state.position]
        self._marks.append(self.state.mark())
        while len(self._marks) > 1 and sum(m.nbytes for m in self._marks) > self._marks_bytes:
            del self._marks[0]

    def drop(self) -> None:
        """Forget the state, as after a computation that was cut short within a layer."""
        self.state, self.seen = None, []
        self._marks.clear()

    def _go_back(self, state: State, position: int) -> None:
        if state.can_trim and position:
            state.trim(len(self.seen) - position)
            del self.seen[position:]
            return
        reachable = [mark for mark in self._marks if mark.position <= position]
        if not reachable or not isinstance(state, RewindableState) or not state.can_mark:
            self.drop()
            return
        state.rewind(reachable[-1])
        self._marks = reachable
        del self.seen[state.position :]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with in common."""
    pairs = zip(first, second, strict=False)
    return next(
        (index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second))
    )
