"""POST /v1/completions: text continued as it stands, without a chat template."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kandiga_run.generation.answer import Token
from kandiga_run.server.answering import Prepared, Wanted, prepare_text, submit_all
from kandiga_run.server.disconnects import unless_disconnected
from kandiga_run.server.errors import as_api_error, openai_error
from kandiga_run.server.fields import stop_strings
from kandiga_run.server.identifiers import new_id
from kandiga_run.server.openai.chat import (
    DONE,
    sampling_of,
    schema_of,
    usage_of_prompts,
)
from kandiga_run.server.openai.completions_request import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from kandiga_run.server.openai.logprobs import finite, unique_text
from kandiga_run.server.replies import End, Piece, Reply, Whole, merged, wholes
from kandiga_run.server.responses_documented import answers
from kandiga_run.server.service import Service
from kandiga_run.server.serving import client_name, service_of, stream
from kandiga_run.server.sse import encode_event
from kandiga_run.server.whole_characters import WholeCharacters

router = APIRouter(dependencies=[WholeCharacters])

#: Without a limit of its own a request gets this short a continuation, as OpenAI has it.
_DEFAULT_MAX_TOKENS = 16


@router.post("/v1/completions", responses=answers(Completion))
async def create_completion(request: Request, body: CompletionRequest) -> Response:
    """Continue text."""
    service = service_of(request)
    service.check_model(body.model)
    service.note_unknown(body.unknown_fields)
    prepared = await asyncio.to_thread(_prepare, service, body, client_name(request, body.user))
    replies = submit_all(service, prepared)
    echoes = _echoes(service, body, prepared) if body.echo else [""] * len(replies)
    writer = _Writer(service, len(prepared), echoes, has_logprobs=body.logprobs is not None)
    if body.stream:
        has_usage = bool(body.stream_options and body.stream_options.include_usage)
        return stream(request, writer.events(replies, has_usage=has_usage), replies)
    return JSONResponse(writer.completion(await unless_disconnected(request, wholes(replies))))


def _prepare(service: Service, body: CompletionRequest, client: str) -> list[Prepared]:
    wanted = Wanted(
        max_tokens=body.max_tokens or _DEFAULT_MAX_TOKENS,
        stop=stop_strings(body.stop),
        sampling=sampling_of(body),
        logprobs=body.logprobs,
        num_answers=body.n or 1,
        schema=schema_of(body.response_format),
        client=client,
    )
    return [prepare_text(service, wanted, prompt) for prompt in body.prompts]


def _echoes(service: Service, body: CompletionRequest, prepared: Sequence[Prepared]) -> list[str]:
    """Return the text to repeat before each answer."""
    texts = [
        prompt if isinstance(prompt, str) else service.prompts.decode(prompt)
        for prompt in body.prompts
    ]
    pairs = zip(texts, prepared, strict=True)
    return [text for text, one in pairs for _ in range(one.num_answers)]


class _Writer:
    """Writes the answers of one request, whole or in parts."""

    def __init__(
        self, service: Service, num_prompts: int, echoes: Sequence[str], *, has_logprobs: bool
    ) -> None:
        self._vocabulary, self._model = service.token_bytes, service.settings.model
        self._num_prompts, self._echoes = num_prompts, echoes
        self._has_logprobs = has_logprobs
        self._offsets = [len(echo) for echo in echoes]
        self._id, self._created = new_id("cmpl-"), int(time.time())

    def completion(self, answers: Sequence[Whole]) -> dict[str, Any]:
        """Return the body of answers that are not streamed."""
        choices = [
            self._choice(index, self._echoes[index] + one.content, one.tokens, one.end)
            for index, one in enumerate(answers)
        ]
        usage = usage_of_prompts([one.end for one in answers], self._num_prompts)
        return self._body(choices, usage=usage)

    async def events(
        self, replies: Sequence[Reply], *, has_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream; a failure is its last event."""
        ends: dict[int, End] = {}
        for index, echo in enumerate(self._echoes):
            if echo:
                yield encode_event(self._body([self._choice(index, echo, ())]))
        try:
            async for index, piece in merged(replies):
                if isinstance(piece, Piece):
                    choice = self._choice(index, piece.content, piece.tokens)
                    yield encode_event(self._body([choice]))
                elif isinstance(piece, End):
                    ends[index] = piece
                    yield encode_event(self._body([self._choice(index, "", (), piece)]))
        except Exception as error:
            yield encode_event(openai_error(as_api_error(error)))
            return
        if has_usage:
            ordered = [ends[index] for index in range(len(replies))]
            yield encode_event(self._body([], usage=usage_of_prompts(ordered, self._num_prompts)))
        yield DONE

    def _body(self, choices: list[CompletionChoice], **usage: Any) -> dict[str, Any]:
        return Completion(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._model,
            choices=choices,
            **usage,
        ).json_value()

    def _choice(
        self, index: int, text: str, tokens: Sequence[Token], end: End | None = None
    ) -> CompletionChoice:
        reason: Literal["stop", "length"] | None = None
        if end:
            reason = "length" if end.finish_reason == "length" else "stop"
        has_logprobs = self._has_logprobs and (tokens or end is not None)
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(index, tokens) if has_logprobs else None,
            finish_reason=reason,
        )

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> CompletionLogprobs:
        logprobs = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token in tokens:
            text = unique_text(self._vocabulary, token.id)
            assert token.logprob is not None
            logprobs.tokens.append(text)
            logprobs.token_logprobs.append(finite(token.logprob))
            best = {
                unique_text(self._vocabulary, other): finite(logprob)
                for other, logprob in token.top_logprobs
            }
            logprobs.top_logprobs.append(best)
            logprobs.text_offset.append(self._offsets[index])
            self._offsets[index] += len(text)
        return logprobs
