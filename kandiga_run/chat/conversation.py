"""A conversation: its messages, and the model state kept between turns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

from kandiga_run.answers.parts import AnswerFormat
from kandiga_run.answers.reply import Chunk, Reply
from kandiga_run.answers.tool_calls import ToolCall, Tools
from kandiga_run.engine import Engine
from kandiga_run.errors import RunError
from kandiga_run.generation.answer import TokenMask
from kandiga_run.generation.kept_state import MARKS_BYTES, KeptState, common_length
from kandiga_run.generation.loop import Generation, Progress, generate
from kandiga_run.generation.options import GenerateOptions
from kandiga_run.tokenizer.prompts import Prompts


class Interrupted(Exception):
    """Raised from `on_progress` or `between_layers` to give up reading the prompt."""


class _Watch(NamedTuple):
    """What is called while the prompt is read: see `generate`."""

    on_progress: Progress | None
    between_layers: Callable[[], None] | None


class Conversation:
    """Messages with one model. A turn prefills only what the kept state has not seen.

    Where the rendered conversation departs from what the state has seen, as with a template that
    drops earlier reasoning, the state goes back to the common beginning; recurrent layers to the
    end of the latest question before it.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        options: GenerateOptions,
        *,
        context_tokens: int,
        system: str | None = None,
        tools: Tools | None = None,
        variables: Mapping[str, Any] | None = None,
        kept: KeptState | None = None,
        marks_bytes: int = MARKS_BYTES,
        format_: AnswerFormat | None = None,
    ) -> None:
        """Start without messages.

        context_tokens: bounds the conversation, answers included.
        variables: what the template is told besides the messages, such as enable_thinking.
        kept: a state that others use in turns with this conversation; its own by default ...
        marks_bytes: ... with marks that take so much memory at most.
        """
        self.engine, self.prompts, self.options = engine, prompts, options
        self.context_tokens = context_tokens
        self.system = system
        self.tools = tools
        self.variables = dict(variables or {})
        #: {"role": "user" | "assistant" | "tool", "content": ..., ...}, as templates take them.
        self.messages: list[dict[str, Any]] = []
        #: The latest turn, for its figures and finish reason.
        self.last: Generation | None = None
        self.last_reply: Reply | None = None
        self._format = format_ or AnswerFormat.of(prompts, with_tools=tools is not None)
        self._marks_bytes = marks_bytes
        self._kept = kept or KeptState(engine, context_tokens, marks_bytes=marks_bytes)
        #: The text and the tokens of the conversation up to each answer, which match exactly.
        self._known: list[tuple[str, list[int]]] = []

    def reset(self) -> None:
        """Forget the messages; the system prompt stays."""
        self.messages.clear()

    def undo(self) -> str | None:
        """Take back the last question and all that followed it; return the question."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index]["role"] == "user":
                question = str(self.messages[index]["content"])
                del self.messages[index:]
                return question
        return None

    def use(self, engine: Engine) -> None:
        """Go on with another engine for the same model; the messages stay."""
        self.drop_state()
        self.engine = engine
        self._kept = KeptState(engine, self.context_tokens, marks_bytes=self._marks_bytes)

    def drop_state(self) -> None:
        """Forget what was computed, not what was said; the next answer reads all of it again."""
        # The last turn holds the state too, and with a memory budget two would not fit.
        self._kept.drop()
        self.last = self.last_reply = None

    def count_tokens(self) -> int:
        """Return how many tokens the model's state holds."""
        return len(self._kept.seen)

    def reply(
        self,
        text: str,
        *,
        on_progress: Progress | None = None,
        between_layers: Callable[[], None] | None = None,
        mask: TokenMask | None = None,
    ) -> Generator[Chunk, None, None]:
        """Answer a user's message, chunk by chunk; closing the iterator stops the answer.

        The answer, also a stopped one, joins the messages. A turn that gave nothing leaves the
        conversation as it was before. Raises RunError when the conversation has outgrown the
        context, or the template refuses it.
        """
        self.messages.append({"role": "user", "content": text})
        return self._answer(_Watch(on_progress, between_layers), mask, instead=[])

    def reply_again(
        self,
        *,
        on_progress: Progress | None = None,
        between_layers: Callable[[], None] | None = None,
        mask: TokenMask | None = None,
    ) -> Generator[Chunk, None, None]:
        """Answer the messages as they stand, such as results of tools; the last answer is replaced.

        Raises RunError when there is nothing to answer.
        """
        replaced: list[dict[str, Any]] = []
        if self.messages and self.messages[-1]["role"] == "assistant":
            replaced = [self.messages.pop()]
        if not self.messages:
            raise RunError("there is no message to answer")
        watch = _Watch(on_progress, between_layers)
        return self._answer(watch, mask, instead=[self.messages[-1], *replaced])

    def _answer(
        self,
        watch: _Watch,
        mask: TokenMask | None,
        *,
        instead: Sequence[dict[str, Any]],
    ) -> Generator[Chunk, None, None]:
        """Answer the last message. What stands in its place when there is no answer: `instead`."""
        rendered = ""
        reply: Reply | None = None
        try:
            rendered = self._render()
            reply = self.last_reply = self._start(rendered, watch, mask)
            self.last = reply.generation
            yield from reply
        except (GeneratorExit, Interrupted):
            raise
        except BaseException:
            # A computation cut short in the middle of a layer leaves a state nobody can continue.
            self.drop_state()
            raise
        finally:
            if reply is not None:
                reply.close()
                self._remember(rendered, reply.generation)
            if reply is not None and (reply.generation.text or reply.tool_calls):
                self.messages.append(_message(reply))
            else:
                self.messages[-1:] = instead

    def _render(self, *, add_generation_prompt: bool = True) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.prompts.render(
            [*system, *self.messages],
            add_generation_prompt=add_generation_prompt,
            tools=self.tools,
            **self.variables,
        )

    def _start(self, rendered: str, watch: _Watch, mask: TokenMask | None) -> Reply:
        tokens = self._tokens(rendered)
        if len(tokens) >= self.context_tokens:
            raise RunError(
                f"the conversation has {len(tokens)} tokens and the context {self.context_tokens}: "
                "start over (/reset) or allow more (--context)"
            )
        state = self._kept.fit(tokens)
        seen = list(self._kept.seen)
        question_end = self._question_end(tokens) - len(seen)

        def on_chunk(done: int, total: int) -> None:
            if done == question_end:
                self._kept.mark()
            if watch.on_progress:
                watch.on_progress(done, total)

        splitter = self._format.splitter(rendered, self.tools)
        if mask is not None or self.options.stop:
            mask = self._format.after_reasoning(mask, is_open=splitter.opens_in_reasoning)
        generation = generate(
            self.engine,
            tokens[len(seen) :],
            self.options,
            detokenizer=self.prompts.detokenizer(keep=self._format.kept_tokens),
            state=state,
            history=seen,
            on_progress=on_chunk,
            between_layers=watch.between_layers,
            pause_at=question_end if question_end > 0 else None,
            mask=mask,
        )
        return Reply(generation, splitter)

    def _question_end(self, tokens: Sequence[int]) -> int:
        """Return how many tokens the conversation has before what begins the answer.

        Later turns may have something else there: the mark of a reasoning that is then left out.
        Only for a state that cannot be cut back anywhere: a prompt read in two pieces has some
        experts read twice, those of the few tokens after the question.
        """
        if not self._kept.needs_marks:
            return 0
        return common_length(tokens, self._tokens(self._render(add_generation_prompt=False)))

    def _tokens(self, rendered: str) -> list[int]:
        """Return the tokens of the conversation, keeping those the model itself wrote.

        Encoding an answer again may cut its text into other tokens than the model chose. Where
        the text is the same, the model's own tokens stand, if what follows begins with a special
        token: text is never merged across one.
        """
        for text, tokens in reversed(self._known):
            rest = rendered.removeprefix(text)
            if rest != rendered and self.prompts.starts_with_added_token(rest):
                return [*tokens, *self.prompts.encode(rest)]
        return self.prompts.encode(rendered)

    def _remember(self, rendered: str, generation: Generation) -> None:
        """Note what the state has seen, and the answer's own tokens when they make its text."""
        if self._kept.state is None:
            return
        prompt = [*self._kept.seen, *generation.prompt_tokens]
        self._kept.note([*prompt, *generation.token_ids])
        answer = generation.token_ids
        if answer and answer[-1] in self.options.stop_token_ids:
            answer = answer[:-1]
        self._known = [known for known in self._known if rendered.startswith(known[0])]
        if answer and self._decode(answer) == generation.text:
            space = self.prompts.leading_space(answer[0])
            self._known.append((rendered + space + generation.text, [*prompt, *answer]))

    def _decode(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer as the conversation shows it."""
        detokenizer = self.prompts.detokenizer(keep=self._format.kept_tokens)
        return "".join([detokenizer.add(token) for token in tokens]) + detokenizer.finish()


def _message(reply: Reply) -> dict[str, Any]:
    """Return an answer as the message that templates take."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [_call(call) for call in reply.tool_calls]
    return message


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"type": "function", "function": function, **({"id": call.id} if call.id else {})}
