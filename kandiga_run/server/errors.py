"""Refusals and failures, in the shape each API's clients expect.

OpenAI:    {"error": {"message", "type", "param", "code"}}
Anthropic: {"type": "error", "error": {"type", "message"}, "request_id"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Scope

from kandiga_run.errors import RunError
from kandiga_run.terminal.failures import describe

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """A request that is not answered, whichever API it came by."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})


class OpenAIErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """Every refusal of the OpenAI endpoints."""

    error: OpenAIErrorDetail


class AnthropicErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """Every refusal of the Anthropic endpoints."""

    type: str
    error: AnthropicErrorDetail
    request_id: str | None


def openai_error(error: ApiError) -> dict[str, Any]:
    """Return the body of a refusal for OpenAI's clients."""
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error")
    return {
        "error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    }


def anthropic_error(error: ApiError, request_id: str | None = None) -> dict[str, Any]:
    """Return the body of a refusal for Anthropic's clients."""
    kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": error.message},
        "request_id": request_id,
    }


def error_body(scope: Scope, error: ApiError) -> dict[str, Any]:
    """Return the body in the shape of the API that `scope` asks for."""
    if scope["path"].startswith("/v1/messages") or has_header(scope, b"anthropic-version"):
        return anthropic_error(error, scope.get("state", {}).get("request_id"))
    return openai_error(error)


def error_response(scope: Scope, error: ApiError) -> JSONResponse:
    """Return the response to a refused request."""
    return JSONResponse(error_body(scope, error), error.status, headers=error.headers)


def has_header(scope: Scope, name: bytes) -> bool:
    """Whether a request carries a header; `name` in lower case."""
    return any(key == name for key, _ in scope["headers"])


def as_api_error(error: BaseException) -> ApiError:
    """Return what a client learns of a failure; a bug stays a 500 without its inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RunError):
        return ApiError(400, str(error))
    described = describe(error)
    return ApiError(500, described[0] if described else f"internal error: {type(error).__name__}")


def handle_errors(app: FastAPI) -> None:
    """Make every failure of a route one of the bodies above."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return error_response(request.scope, as_api_error(error))

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(request.scope, validation_error(error.errors(), error.body))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return error_response(
            request.scope, ApiError(error.status_code, message, headers=error.headers)
        )

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(RunError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, known)


def validation_error(errors: Sequence[Any], body: Any = None) -> ApiError:
    """Return the mistake of a body that says most, with its place, as in `messages.0.content`.

    Where a value may have several forms there is a mistake for each of them.
    """
    if not errors:
        return ApiError(400, "the body is not valid")
    telling = max(errors, key=lambda one: (one["type"].startswith("unsupported"), len(one["loc"])))
    if telling["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {telling.get('ctx', {}).get('error', '')}")
    param = _place(telling["loc"], body, is_missing=telling["type"] == "missing")
    message = telling["msg"]
    if not isinstance(body, dict):
        message = "wanted a JSON object (with the header Content-Type: application/json)"
    return ApiError(400, message if param is None else f"{param}: {message}", param=param)


def _place(loc: Sequence[str | int], body: Any, *, is_missing: bool) -> str | None:
    """Return the path to a value without pydantic's names of the forms it tried on the way."""
    place: list[str] = []
    value = body
    for part in loc[1:]:
        is_key = isinstance(value, dict) and part in value
        is_index = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_key or is_index:
            value = value[part]
            place.append(str(part))
    if is_missing and loc:
        place.append(str(loc[-1]))
    return ".".join(place) or None
