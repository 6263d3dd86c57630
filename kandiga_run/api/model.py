"""A loaded model, and conversations with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from formats.published import local_set
from kandiga_run.answers.completion import Completion
from kandiga_run.answers.parts import AnswerFormat
from kandiga_run.api.settings import Constraints, Settings, options_of
from kandiga_run.api.stream import RawText, Source, Stream, Turn
from kandiga_run.chat.conversation import Conversation
from kandiga_run.default_model import default_model
from kandiga_run.engine import Check, Engine, EngineName, load_engine
from kandiga_run.engine.arithmetic import ArithmeticChoice
from kandiga_run.errors import RunError
from kandiga_run.generation.kept_state import MARKS_BYTES, KeptState
from kandiga_run.generation.options import GenerateOptions
from kandiga_run.kv.choices import KVChoice
from kandiga_run.sizes import format_size, parse_size
from kandiga_run.tokenizer.chat_template import Message
from kandiga_run.tokenizer.prompts import Prompts

#: Tokens of prompt and answer together, where the caller does not say: a modest KV cache.
_CONTEXT_TOKENS = 8192


def load(
    model: str | Path | None = None,
    *,
    memory: str | int | None = None,
    kv: KVChoice = "auto",
    context: int | None = None,
    fast: bool = False,
    experts: int | None = None,
    engine: EngineName = "auto",
    arithmetic: ArithmeticChoice = "auto",
    threads: int | None = None,
    check: Check = "first-touch",
) -> LoadedModel:
    """Open a model; close it, or use it in a `with` block.

    Args:
        model: a folder of .kexp files, or the id of a published one, which is downloaded; None
            takes the one that `kandiga-run setup` remembers.
        memory: budget for weights, KV cache and experts, such as "4GB", or bytes.
        kv: how keys and values are held; "auto" compresses them beyond 16384 tokens.
        context: tokens of prompt and answer together; 8192 by default, or what the model was made
            for if that is less.
        fast: lossy: half of the model's experts a token. `experts` chooses their number.
        engine: "native" computes on the CPU, "mlx" on an Apple GPU.
        arithmetic: "exact" keeps activations in float32.
        threads: all CPUs by default.
        check: when an expert's checksum is compared.

    Raises RunError for choices that cannot work, `formats.KexpError` for a damaged container.
    """
    if fast and experts is not None:
        raise RunError("fast and experts both choose the experts: give one of them")
    name = str(model if model is not None else _default_model())
    folder = local_set(Path(name))
    prompts = Prompts(folder)
    context_tokens = context or min(_CONTEXT_TOKENS, prompts.context_length or _CONTEXT_TOKENS)
    memory_bytes = parse_size(memory) if isinstance(memory, str) else memory
    opened = load_engine(
        folder,
        engine=engine,
        memory_bytes=memory_bytes,
        num_experts_per_token="fast" if fast else experts,
        check=check,
        num_threads=threads,
        kv=kv,
        arithmetic=arithmetic,
        state_tokens=context_tokens,
    )
    return LoadedModel(name, opened, prompts, context_tokens, memory_bytes)


class LoadedModel:
    """An opened model. One answer at a time: beginning another ends one that is still streaming.

    A state is kept between answers, so that what a prompt has in common with the one before it is
    not computed again. Not thread-safe; `kandiga_run.scheduler` shares an engine among threads.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        prompts: Prompts,
        context_tokens: int,
        memory_bytes: int | None = None,
    ) -> None:
        """`load` makes these. Owns the engine."""
        self.name, self.engine, self.prompts = name, engine, prompts
        self.context_tokens, self.memory_bytes = context_tokens, memory_bytes
        # Marks are not in the budget's plan: with a tight one there is only the latest.
        marks_bytes = MARKS_BYTES if memory_bytes is None else 0
        self._kept = KeptState(engine, context_tokens, marks_bytes=marks_bytes)
        self._format = AnswerFormat.of(prompts)
        self._constraints = Constraints(prompts, engine.vocab_size)
        self._current: Stream | None = None

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        raw: bool = False,
        **settings: Unpack[Settings],
    ) -> Completion:
        """Return the whole answer to a question, or to the messages of a conversation.

        Args:
            prompt: a user's message, or [{"role": "user", "content": ...}, ...].
            system: goes before them.
            raw: continue the text as it is, without the chat template.
            settings: see `Settings`.

        Raises RunError for settings that cannot work and a prompt that leaves no room.
        """
        return self.stream(prompt, system=system, raw=raw, **settings).run()

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        raw: bool = False,
        **settings: Unpack[Settings],
    ) -> Stream:
        """Return the answer as an iterator of chunks: `.text`, `.reasoning`, `.tool_calls`."""
        if raw:
            if system or not isinstance(prompt, str):
                raise RunError("raw continues one plain text: it takes neither messages nor system")
            for name in ("tools", "think"):
                if name in settings:
                    raise RunError(f"raw continues plain text: it takes no {name}")
            source = RawText(
                self.engine,
                self.prompts,
                self._kept,
                prompt,
                self._options(settings),
                on_progress=settings.get("on_progress"),
                mask=self._constraints.mask(settings),
            )
            return self._begin(source)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if messages and messages[-1].get("role") == "assistant":
            raise RunError("the last message is the assistant's own: there is nothing to answer")
        talk = Chat(self, system=system)
        talk.messages.extend(dict(message) for message in messages)
        return talk.stream_answer(**settings)

    def chat(self, *, system: str | None = None, **settings: Unpack[Settings]) -> Chat:
        """Return a conversation that remembers; `settings` hold for each of its answers."""
        return Chat(self, system=system, **settings)

    def close(self) -> None:
        """Release threads, memory and files. Closing twice is harmless."""
        if self._current:
            self._current.close()
        self.engine.close()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        stats = self.engine.stats
        memory = f", within {format_size(self.memory_bytes)}" if self.memory_bytes else ""
        lossy = f", lossy: {stats.num_experts_per_token} of {stats.top_k} experts a token"
        return (
            f"<LoadedModel {self.name!r}: {self.engine.name} engine, "
            f"{self.context_tokens} tokens of context{memory}"
            f"{lossy if stats.has_fewer_experts else ''}>"
        )

    def _begin(self, source: Source) -> Stream:
        if self._current:
            self._current.close()
        self._current = Stream(source)
        return self._current

    def _options(self, settings: Settings) -> GenerateOptions:
        return options_of(settings, self.prompts, self.context_tokens)


class Chat:
    """A conversation with a loaded model. `messages` may be read and changed between answers."""

    def __init__(
        self, model: LoadedModel, *, system: str | None = None, **settings: Unpack[Settings]
    ) -> None:
        self._model, self._settings = model, settings
        self._talk = Conversation(
            model.engine,
            model.prompts,
            model._options(settings),
            context_tokens=model.context_tokens,
            system=system,
            kept=model._kept,
            format_=model._format,
        )

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Return the messages, oldest first, without the system prompt."""
        return self._talk.messages

    @messages.setter
    def messages(self, messages: Sequence[Message]) -> None:
        self._talk.messages = [dict(message) for message in messages]

    @property
    def system(self) -> str | None:
        """Return the system prompt; assign to change it."""
        return self._talk.system

    @system.setter
    def system(self, text: str | None) -> None:
        self._talk.system = text

    def say(self, text: str, **settings: Unpack[Settings]) -> Completion:
        """Return the answer to a message; both join the conversation."""
        return self.stream(text, **settings).run()

    def stream(self, text: str, **settings: Unpack[Settings]) -> Stream:
        """Return the answer to a message as an iterator of chunks."""
        return self._begin(text, settings)

    def answer(self, **settings: Unpack[Settings]) -> Completion:
        """Return an answer to the messages as they stand.

        After results of tools ({"role": "tool", "content": ...}) it is the next one; after an
        answer it takes that one's place.
        """
        return self.stream_answer(**settings).run()

    def stream_answer(self, **settings: Unpack[Settings]) -> Stream:
        """Return what `answer` does as an iterator of chunks."""
        return self._begin(None, settings)

    def undo(self) -> str | None:
        """Take back the last message and its answer; return the message."""
        return self._talk.undo()

    def reset(self) -> None:
        """Forget the messages."""
        self._talk.reset()

    def __repr__(self) -> str:
        return f"<Chat with {self._model.name!r}: {len(self.messages)} messages>"

    def _begin(self, text: str | None, settings: Settings) -> Stream:
        model = self._model
        both: Settings = {**self._settings, **settings}
        options, mask = model._options(both), model._constraints.mask(both)
        return model._begin(Turn(self._talk, text, both, options, mask))


def _default_model() -> str:
    name = default_model()
    if name is None:
        raise RunError("no model: give a path or an id, or remember one with kandiga-run setup")
    return name
