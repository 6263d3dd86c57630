"""A conversation: its messages, and the model state kept between turns."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from kandiga_run.engine import Engine, State
from kandiga_run.errors import RunError
from kandiga_run.generation import GenerateOptions, Generation, Progress, Token, generate
from kandiga_run.prompts import Prompts


class Interrupted(Exception):
    """Raised from `on_progress` to give up a prefill between two chunks."""


class Conversation:
    """Messages with one model. A turn prefills only what the kept state has not seen.

    Where the rendered conversation departs from what the state has seen, as with a template that
    drops earlier reasoning, the state is cut back to the common beginning. Recurrent layers cannot
    be: such a model starts again from the first token.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        options: GenerateOptions,
        *,
        context_tokens: int,
        system: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Start without messages. `context_tokens` bounds the conversation, answers included."""
        self.engine, self.prompts, self.options = engine, prompts, options
        self.context_tokens = context_tokens
        self.system = system
        self.messages: list[dict[str, Any]] = []
        #: The latest turn, for its figures and finish reason.
        self.last: Generation | None = None
        self._variables = dict(variables or {})
        self._state: State | None = None
        #: Tokens the state has seen.
        self._seen: list[int] = []
        #: The text and the tokens of the conversation up to the last answer, which match exactly.
        self._known_text, self._known_tokens = "", list[int]()

    def reset(self) -> None:
        """Forget the messages; the system prompt stays."""
        self.messages.clear()

    def reply(
        self, text: str, *, on_progress: Progress | None = None
    ) -> Generator[Token, None, None]:
        """Answer a user's message, token by token; closing the iterator stops the answer.

        The answer, also a stopped one, joins the messages. A turn that gave no text leaves the
        conversation as it was before. Raises RunError when the conversation has outgrown the
        context, or the template refuses it.
        """
        self.messages.append({"role": "user", "content": text})
        rendered = ""
        generation: Generation | None = None
        try:
            rendered = self._render()
            generation = self.last = self._start(rendered, on_progress)
            yield from generation
        except (GeneratorExit, Interrupted):
            raise
        except BaseException:
            # A computation cut short in the middle of a layer leaves a state nobody can continue.
            self._drop_state()
            raise
        finally:
            if generation is not None:
                generation.close()
                self._remember(rendered, generation)
            if generation is None or not generation.text:
                self.messages.pop()
            else:
                self.messages.append({"role": "assistant", "content": generation.text})

    def _render(self) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.prompts.render([*system, *self.messages], **self._variables)

    def _start(self, rendered: str, on_progress: Progress | None) -> Generation:
        tokens = self._tokens(rendered)
        if len(tokens) >= self.context_tokens:
            raise RunError(
                f"the conversation has {len(tokens)} tokens and the context {self.context_tokens}: "
                "/reset starts over, --context allows more"
            )
        self._fit_state(tokens)
        if self._state is None:
            self._state = self.engine.new_state(self.context_tokens)
        return generate(
            self.engine,
            tokens[len(self._seen) :],
            self.options,
            detokenizer=self.prompts.detokenizer(),
            state=self._state,
            history=self._seen,
            on_progress=on_progress,
        )

    def _fit_state(self, tokens: Sequence[int]) -> None:
        """Make the state one that has seen a beginning of `tokens`, and not all of them."""
        common = min(_common_length(tokens, self._seen), len(tokens) - 1)
        surplus = len(self._seen) - common
        if surplus == 0:
            return
        if self._state is None or common == 0 or not self._state.can_trim:
            self._drop_state()
            return
        self._state.trim(surplus)
        del self._seen[common:]

    def _tokens(self, rendered: str) -> list[int]:
        """Return the tokens of the conversation, keeping those the model itself wrote.

        Encoding an answer again may cut its text into other tokens than the model chose. Where
        the text is the same, the model's own tokens stand, if what follows begins with a special
        token: text is never merged across one.
        """
        known = self._known_text
        if known and rendered.startswith(known):
            rest = rendered[len(known) :]
            if self.prompts.starts_with_added_token(rest):
                return [*self._known_tokens, *self.prompts.encode(rest)]
        return self.prompts.encode(rendered)

    def _remember(self, rendered: str, generation: Generation) -> None:
        """Note what the state has seen, and the answer's own tokens when they make its text."""
        if self._state is None:
            return
        prompt = [*self._seen, *generation.prompt_tokens]
        self._seen = [*prompt, *generation.token_ids][: self._state.position]
        answer = generation.token_ids
        if answer and answer[-1] in self.options.stop_token_ids:
            answer = answer[:-1]
        self._known_text, self._known_tokens = "", []
        if answer and self.prompts.decode(answer) == generation.text:
            space = self.prompts.leading_space(answer[0])
            self._known_text = rendered + space + generation.text
            self._known_tokens = [*prompt, *answer]

    def _drop_state(self) -> None:
        # The last turn holds the state too, and with a memory budget two would not fit.
        self._state, self._seen, self.last = None, [], None
        self._known_text, self._known_tokens = "", []


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next(
        (index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second))
    )
