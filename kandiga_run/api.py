"""The Python API: load a model, ask it, read the answer.

import kandiga_run as kr

with kr.load("qwen3-30b", memory="4GB") as model:
    print(model.generate("What is the capital of France?"))
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict, Unpack

from formats.published import local_set
from kandiga_run.answers.completion import Completion, completion_of
from kandiga_run.answers.constraint import Grammars
from kandiga_run.answers.parts import AnswerFormat
from kandiga_run.answers.reply import Chunk, Reply
from kandiga_run.answers.tool_calls import Tools
from kandiga_run.chat.conversation import Conversation
from kandiga_run.default_model import default_model
from kandiga_run.engine import Check, Engine, EngineName, load_engine
from kandiga_run.engine.arithmetic import ArithmeticChoice
from kandiga_run.errors import RunError
from kandiga_run.generation.answer import TokenMask
from kandiga_run.generation.kept_state import MARKS_BYTES, KeptState
from kandiga_run.generation.loop import Progress, generate
from kandiga_run.generation.model_defaults import sampling_for
from kandiga_run.generation.options import GenerateOptions
from kandiga_run.kv.choices import KVChoice
from kandiga_run.sizes import format_size, parse_size
from kandiga_run.tokenizer.chat_template import Message
from kandiga_run.tokenizer.prompts import Prompts

#: Tokens of prompt and answer together, where the caller does not say: a modest KV cache.
_CONTEXT_TOKENS = 8192


class Settings(TypedDict, total=False):
    """How to answer; what is left out is as the model's makers recommend, else greedy.

    max_tokens: longest answer, 1024 by default.
    temperature, top_k, top_p, min_p, seed: how tokens are drawn; temperature 0 is greedy.
    repetition_penalty: above 1 makes tokens of prompt and answer less probable.
    presence_penalty, frequency_penalty: the same of the answer alone, as OpenAI's API has them.
    logit_bias: added to the logits of single tokens, by id.
    stop: texts that end the answer.
    think: ask the chat template for reasoning, or for none.
    tools: definitions as OpenAI's API takes them; calls stand in `Completion.tool_calls`.
    json_schema, regex, choices, grammar: hold the answer to JSON that fits a schema, to what a
        regular expression matches, to one of some texts, to a grammar in Lark's syntax. One of
        these at most; reasoning before the answer is free.
    on_progress: called with (tokens done, tokens in all) while the prompt is read.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    stop: Sequence[str]
    think: bool
    tools: Tools
    json_schema: dict[str, Any]
    regex: str
    choices: Sequence[str]
    grammar: str
    on_progress: Progress


_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
)
_CONSTRAINTS = ("json_schema", "regex", "choices", "grammar")


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
        self._grammars: Grammars | None = None
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
            return self._begin(_RawText(self, prompt, settings))
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

    def _begin(self, source: _Source) -> Stream:
        if self._current:
            self._current.close()
        self._current = Stream(source)
        return self._current

    def _options(self, settings: Settings) -> GenerateOptions:
        unknown = set(settings) - Settings.__optional_keys__
        if unknown:
            raise RunError(
                f"no such setting: {', '.join(sorted(unknown))}; there are "
                f"{', '.join(sorted(Settings.__optional_keys__))}"
            )
        chosen: dict[str, Any] = {name: settings.get(name) for name in _SAMPLING}
        stop = settings.get("stop", ())
        return GenerateOptions(
            max_tokens=settings.get("max_tokens", 1024),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_token_ids=self.prompts.stop_token_ids,
            sampling=sampling_for(self.prompts.generation_config, chosen),
            context_length=self.context_tokens,
        )

    def _constraint(self, settings: Settings) -> TokenMask | None:
        wanted = [name for name in _CONSTRAINTS if settings.get(name) is not None]
        if len(wanted) > 1:
            raise RunError(f"{' and '.join(wanted)} both constrain the answer: give one of them")
        if not wanted:
            return None
        if self._grammars is None:
            self._grammars = Grammars(
                self.prompts.tokenizer, self.engine.vocab_size, self.prompts.stop_token_ids
            )
        grammars, kind = self._grammars, wanted[0]
        if kind == "json_schema":
            return grammars.json_schema(settings["json_schema"])
        if kind == "regex":
            return grammars.regex(settings["regex"])
        if kind == "choices":
            return grammars.choice(settings["choices"])
        return grammars.grammar(settings["grammar"])


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
        return self._model._begin(_Turn(self, text, settings))

    def answer(self, **settings: Unpack[Settings]) -> Completion:
        """Return an answer to the messages as they stand.

        After results of tools ({"role": "tool", "content": ...}) it is the next one; after an
        answer it takes that one's place.
        """
        return self.stream_answer(**settings).run()

    def stream_answer(self, **settings: Unpack[Settings]) -> Stream:
        """Return what `answer` does as an iterator of chunks."""
        return self._model._begin(_Turn(self, None, settings))

    def undo(self) -> str | None:
        """Take back the last message and its answer; return the message."""
        return self._talk.undo()

    def reset(self) -> None:
        """Forget the messages."""
        self._talk.reset()

    def __repr__(self) -> str:
        return f"<Chat with {self._model.name!r}: {len(self.messages)} messages>"


class Stream(Iterator[Chunk]):
    """An answer as it comes: iterate for chunks, `close` to stop it; `completion` is the whole."""

    def __init__(self, source: _Source) -> None:
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


class _Source:
    """What makes the chunks of a stream."""

    reply: Reply | None = None

    def chunks(self) -> Generator[Chunk, None, None]:
        raise NotImplementedError


class _Turn(_Source):
    """The next answer of a conversation."""

    def __init__(self, chat: Chat, text: str | None, settings: Settings) -> None:
        self._talk, model = chat._talk, chat._model
        self._text = text
        both: Settings = {**chat._settings, **settings}
        self._options = model._options(both)
        self._mask = model._constraint(both)
        self._tools = both.get("tools")
        self._variables = {} if "think" not in both else {"enable_thinking": both["think"]}
        self._on_progress = both.get("on_progress")

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


class _RawText(_Source):
    """The continuation of a plain text, with a state of its own kept from text to text."""

    def __init__(self, model: LoadedModel, text: str, settings: Settings) -> None:
        for name in ("tools", "think"):
            if name in settings:
                raise RunError(f"raw continues plain text: it takes no {name}")
        self._model, self._text = model, text
        self._options = model._options(settings)
        self._mask = model._constraint(settings)
        self._on_progress = settings.get("on_progress")

    def chunks(self) -> Generator[Chunk, None, None]:
        model = self._model
        tokens = model.prompts.encode_raw(self._text)
        state = model._kept.fit(tokens)
        seen = list(model._kept.seen)
        generation = generate(
            model.engine,
            tokens[len(seen) :],
            self._options,
            detokenizer=model.prompts.detokenizer(),
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
            model._kept.drop()
            raise
        finally:
            self.reply.close()
            model._kept.note([*tokens, *generation.token_ids])


def _default_model() -> str:
    name = default_model()
    if name is None:
        raise RunError("no model: give a path or an id, or remember one with kandiga-run setup")
    return name
