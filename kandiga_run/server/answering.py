"""From what a client wants, in no API's words, to requests of the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kandiga_run.answers.constraint import Constraint
from kandiga_run.answers.reasoning import opens_reasoning
from kandiga_run.generation.answer import TokenMask
from kandiga_run.generation.model_defaults import sampling_for
from kandiga_run.generation.options import GenerateOptions
from kandiga_run.scheduler import Closing, QueueFull, Request
from kandiga_run.server.errors import ApiError
from kandiga_run.server.forced_calls import ForcedCalls, OneCall, calls_schema
from kandiga_run.server.replies import Reply, Splitter
from kandiga_run.server.service import Service

#: A template message: {"role", "content", ...}.
Message = dict[str, Any]
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How the answer should be; a field that is None is the model's own choice."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    #: temperature, top_k ... as `kandiga_run.generation.sampling.SamplingOptions` names them
    sampling: Mapping[str, Any] = field(default_factory=dict)
    #: alternatives a token, or None for no log probabilities
    logprobs: int | None = None
    num_answers: int = 1
    #: a JSON schema the answer must fit
    schema: Mapping[str, Any] | None = None
    #: whoever asks: clients take turns
    client: str = ""


@dataclass(frozen=True, kw_only=True)
class ChatWanted(Wanted):
    """How the answer to a conversation should be."""

    messages: Sequence[Message]
    tools: Tools | None = None
    #: "required" means one of the tools must be called
    tool_choice: Literal["auto", "none", "required"] = "auto"
    #: whether an answer may call several; None: as many as the model wants, one that must be made
    parallel_calls: bool | None = None
    #: tokens of reasoning, after which it is ended
    reasoning_budget: int | None = None
    #: variables of the chat template, such as enable_thinking
    variables: Mapping[str, Any] = field(default_factory=dict)
    #: text the answer begins with, not repeated in it
    beginning: str = ""


@dataclass(frozen=True)
class Prepared:
    """A prompt in tokens, and how to answer it."""

    prompt_tokens: tuple[int, ...]
    options: GenerateOptions
    num_answers: int
    client: str
    #: each answer has its own: they keep what they have seen
    new_splitter: Callable[[], Splitter | None]
    new_constraint: Callable[[], TokenMask | None]


def prepare_chat(service: Service, wanted: ChatWanted) -> Prepared:
    """Render and encode a conversation. Takes its time: not for the event loop.

    Raises ApiError for what cannot be answered, RunError when the chat template refuses.
    """
    rendered = render_chat(service, wanted)
    tools = _offered_tools(wanted)
    is_forced = wanted.tool_choice == "required"
    if is_forced and not tools:
        raise ApiError(400, "a tool must be called, but tools is empty", param="tools")
    format_ = service.format
    is_open = format_.reasoning is not None and opens_reasoning(format_.reasoning, rendered)
    schema = wanted.schema
    if is_forced and tools:
        schema = calls_schema(tools, many=bool(wanted.parallel_calls))

    def new_splitter() -> Splitter:
        if is_forced:
            return ForcedCalls(format_.reasoning, is_open=is_open)
        splitter = format_.splitter(rendered, tools)
        return OneCall(splitter) if wanted.parallel_calls is False else splitter

    def new_constraint() -> TokenMask | None:
        budget = wanted.reasoning_budget
        if schema is None and not wanted.stop and budget is None:
            return None
        constraint = service.grammars.json_schema(schema) if schema is not None else None
        return format_.after_reasoning(constraint, is_open=is_open, budget=budget)

    tokens = service.prompts.encode(rendered)
    return _prepared(service, wanted, tokens, new_splitter, new_constraint)


def prepare_text(service: Service, wanted: Wanted, prompt: str | Sequence[int]) -> Prepared:
    """Encode plain text to be continued, or take its tokens. Not for the event loop."""
    tokens = service.prompts.encode_raw(prompt) if isinstance(prompt, str) else list(prompt)

    def new_constraint() -> Constraint | None:
        return service.grammars.json_schema(wanted.schema) if wanted.schema is not None else None

    return _prepared(service, wanted, tokens, lambda: None, new_constraint)


def count_chat_tokens(service: Service, wanted: ChatWanted) -> int:
    """Return the tokens of a rendered conversation. Not for the event loop."""
    return len(service.prompts.encode(render_chat(service, wanted)))


def render_chat(service: Service, wanted: ChatWanted) -> str:
    """Return the prompt text. Raises RunError when the chat template refuses the messages."""
    variables: dict[str, Any] = {}
    if service.settings.thinks is not None:
        variables["enable_thinking"] = service.settings.thinks
    variables |= wanted.variables
    try:
        rendered = service.prompts.render(
            wanted.messages, tools=_offered_tools(wanted), **variables
        )
        return rendered + wanted.beginning
    except TypeError as error:  # a variable named like an argument of render
        raise ApiError(400, f"chat_template_kwargs: {error}") from error


def submit(service: Service, prepared: Prepared) -> list[Reply]:
    """Queue a prepared request, each of its answers a place of its own.

    Raises ApiError 429 when the queue is full and 503 when the server is shutting down.
    """
    return submit_all(service, [prepared])


def submit_all(service: Service, prepared: Sequence[Prepared]) -> list[Reply]:
    """Queue several prepared requests, or none of them."""
    replies: list[Reply] = []
    try:
        for one in prepared:
            for index in range(one.num_answers):
                ticket = service.scheduler.submit(_request(service, one, index))
                replies.append(
                    Reply(
                        ticket,
                        one.new_splitter(),
                        decode=service.prompts.decode,
                        on_first_token=service.metrics.first_token_seconds.observe,
                    )
                )
    except BaseException as error:
        for reply in replies:
            reply.cancel()
        raise _refusal(error) from error
    return replies


def _request(service: Service, prepared: Prepared, index: int) -> Request:
    options = prepared.options
    if index and options.sampling.seed is not None:
        sampling = replace(options.sampling, seed=options.sampling.seed + index)
        options = replace(options, sampling=sampling)
    return Request(
        prepared.prompt_tokens,
        options,
        detokenizer=service.prompts.detokenizer(keep=service.format.kept_tokens),
        constraint=prepared.new_constraint(),
        client=prepared.client,
    )


def _refusal(error: BaseException) -> BaseException:
    match error:
        case QueueFull():
            retry = {"retry-after": str(error.retry_after_seconds)}
            return ApiError(429, str(error), code="queue_full", headers=retry)
        case Closing():
            return ApiError(503, str(error), headers={"retry-after": "5"})
    return error


def _offered_tools(wanted: ChatWanted) -> Tools | None:
    """Return the tools the model is told of; with "none" it learns of none."""
    return None if wanted.tool_choice == "none" or not wanted.tools else wanted.tools


def _prepared(
    service: Service,
    wanted: Wanted,
    tokens: list[int],
    new_splitter: Callable[[], Splitter | None],
    new_constraint: Callable[[], TokenMask | None],
) -> Prepared:
    context = service.scheduler.context_tokens
    if not tokens:
        raise ApiError(400, "the prompt is empty: there is nothing to continue", param="prompt")
    if len(tokens) >= context:
        raise ApiError(
            400,
            f"the prompt is too long: {len(tokens)} tokens, and the context of this server has "
            f"{context} for prompt and answer together",
            code="context_length_exceeded",
        )
    options = GenerateOptions(
        max_tokens=wanted.max_tokens or context,
        stop=wanted.stop,
        stop_token_ids=service.prompts.stop_token_ids,
        sampling=sampling_for(service.prompts.generation_config, wanted.sampling),
        logprobs=wanted.logprobs,
        context_length=context,
    )
    new_constraint()  # a schema that cannot be used is refused before anything is queued
    return Prepared(
        tuple(tokens), options, wanted.num_answers, wanted.client, new_splitter, new_constraint
    )
