"""Who may ask: the API key, and the names under which the server is meant to be reached."""

from __future__ import annotations

import hmac
import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from kandiga_run.server.errors import ApiError, error_response

#: What needs no key: the page asks for it itself, and a supervisor must see that we live.
_OPEN_PATHS = ("/", "/health", "/openapi.json")
_OPEN_FOLDER = "/page/"
_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


class ApiKey:
    """Asks for the key on everything but the page and /health."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope) or self._is_valid(scope):
            await self._app(scope, receive, send)
            return
        message = "a valid API key is wanted: Authorization: Bearer KEY, or x-api-key: KEY"
        headers = {"www-authenticate": "Bearer"}
        refusal = ApiError(401, message, code="invalid_api_key", headers=headers)
        await error_response(scope, refusal)(scope, receive, send)

    @staticmethod
    def _is_open(scope: Scope) -> bool:
        path = scope["path"]
        return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER) or scope["method"] == "OPTIONS"

    def _is_valid(self, scope: Scope) -> bool:
        given = [
            value.removeprefix(b"Bearer ").removeprefix(b"bearer ")
            if name == b"authorization"
            else value
            for name, value in scope["headers"]
            if name in (b"authorization", b"x-api-key")
        ]
        # Compared in constant time: the key cannot be guessed letter by letter from the delay.
        return any([hmac.compare_digest(value, self._key) for value in given])


class LocalNamesOnly:
    """Refuses requests for another host name, on a server that only this machine should reach.

    Without a key a web page could reach it through a name of its own that resolves to 127.0.0.1
    (DNS rebinding); its requests carry that name.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._names = app, {host.lower(), *_LOCAL_NAMES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_local(scope):
            message = "this server answers to localhost only; give it --api-key to use other names"
            await error_response(scope, ApiError(403, message))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_local(self, scope: Scope) -> bool:
        host = next((v for k, v in scope["headers"] if k == b"host"), b"").decode("latin-1")
        name = host.rpartition("]")[0].lstrip("[") if "]" in host else host.partition(":")[0]
        return name.lower() in self._names or is_loopback(name)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host.lower() in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
