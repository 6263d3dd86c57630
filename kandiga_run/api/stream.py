"""An answer as it comes, and what makes it: a conversation, or a plain text."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import TracebackType

from kandiga_run.answers.completion import Completion, completion_of
from kandiga_run.answers.parts import AnswerFormat
from kandiga_run.answers.reply import Chunk, Reply
from kandiga_run.api.settings import Settings
from kandiga_run.chat.conversation import Conversation
from kandiga_run.engine import Engine
from kandiga_run.errors import RunError
from kandiga_run.generation.answer import TokenMask
from kandiga_run.generation.kept_state import KeptState
from kandiga_run.generation.loop import Progress, generate
from kandiga_run.generation.options import GenerateOptions
from kandiga_run.tokenizer.prompts import Prompts


class Source:
    """What makes the chunks of a stream."""

    reply: Reply | None = None

    def chunks(self) -> Generator[Chunk, None, None]:
        """Compute the answer; `reply` is there from the first chunk on."""
        raise NotImplementedError


class Stream(Iterator[Chunk]):
    """An answer as it comes: iterate for chunks, `close` to stop it; `completion` is the whole."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._chunks = source.chunks()

    @property
    def completion(self) -> Completion:
        """Return the answer so far. Raises RunError before the first chunk."""
        reply = self._source.reply
        if reply is None:
            raise RunError("the answer has not begun")
        return completion_of(reply)

    def run(self) -> Completion:
        """Generate to the end; return the whole answer."""
        for _ in self:
            pass
        return self.completion

    def __next__(self) -> Chunk:
        """Return the next chunk; computing it takes as long as the model takes."""
        return next(self._chunks)

    def close(self) -> None:
        """Stop the answer; what there is stays."""
        self._chunks.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Turn(Source):
    """The next answer of a conversation."""

    def __init__(
        self,
        talk: Conversation,
        text: str | None,
        settings: Settings,
        options: GenerateOptions,
        mask: TokenMask | None,
    ) -> None:
        """text: the message to answer; None answers the messages as they stand."""
        self._talk, self._text = talk, text
        self._options, self._mask = options, mask
        self._tools = settings.get("tools")
        self._variables = {} if "think" not in settings else {"enable_thinking": settings["think"]}
        self._on_progress = settings.get("on_progress")

    def chunks(self) -> Generator[Chunk, None, None]:
        talk = self._talk
        talk.options, talk.tools, talk.variables = self._options, self._tools, self._variables
        if self._text is None:
            chunks = talk.reply_again(on_progress=self._on_progress, mask=self._mask)
        else:
            chunks = talk.reply(self._text, on_progress=self._on_progress, mask=self._mask)
        try:
            for chunk in chunks:
                self.reply = talk.last_reply
                yield chunk
        finally:
            chunks.close()


class RawText(Source):
    """The continuation of a plain text, with a state that is kept from text to text."""

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        kept: KeptState,
        text: str,
        options: GenerateOptions,
        *,
        on_progress: Progress | None = None,
        mask: TokenMask | None = None,
    ) -> None:
        self._engine, self._prompts, self._kept = engine, prompts, kept
        self._text, self._options = text, options
        self._on_progress, self._mask = on_progress, mask

    def chunks(self) -> Generator[Chunk, None, None]:
        kept = self._kept
        tokens = self._prompts.encode_raw(self._text)
        state = kept.fit(tokens)
        seen = list(kept.seen)
        generation = generate(
            self._engine,
            tokens[len(seen) :],
            self._options,
            detokenizer=self._prompts.detokenizer(),
            state=state,
            history=seen,
            on_progress=self._on_progress,
            mask=self._mask,
        )
        self.reply = Reply(generation, AnswerFormat.plain().splitter(""))
        try:
            yield from self.reply
        except GeneratorExit:
            raise
        except BaseException:
            kept.drop()
            raise
        finally:
            self.reply.close()
            kept.note([*tokens, *generation.token_ids])
