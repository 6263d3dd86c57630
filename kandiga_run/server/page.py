"""GET / : the built-in page, from files beside this module; nothing of it comes from elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from kandiga_run.server.errors import ApiError
from kandiga_run.server.responses_documented import answers

router = APIRouter()

_FOLDER = Path(__file__).with_name("page")
_MEDIA_TYPES = {
    ".svg": "image/svg+xml",
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
}
_HEADERS = {
    # What a model writes can become neither script nor request, whatever the page's own code does.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


@router.get("/", response_class=Response, responses=answers(None, streams=False, refusals=(403,)))
async def index() -> Response:
    """Return the page."""
    return _response("index.html")


@router.get(
    "/page/{name}",
    response_class=Response,
    responses=answers(None, streams=False, refusals=(403, 404)),
)
async def part(name: str) -> Response:
    """Return a script or style of the page."""
    return _response(name)


def _response(name: str) -> Response:
    files = _files()
    if name not in files:
        raise ApiError(404, f"the page has no file {name!r}")
    media_type = _MEDIA_TYPES[Path(name).suffix]
    return Response(files[name], media_type=media_type, headers=_HEADERS)


@cache
def _files() -> dict[str, bytes]:
    """Return the files by name: requests choose among them and never reach the disk."""
    paths = sorted(_FOLDER.iterdir())
    return {path.name: path.read_bytes() for path in paths if path.suffix in _MEDIA_TYPES}
