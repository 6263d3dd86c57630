"""Text that cannot be written as UTF-8 is refused before anything else looks at it."""

from __future__ import annotations

import json
import re

from fastapi import Depends, Request

from kandiga_run.server.errors import ApiError

#: How JSON writes one half of a character outside the first plane; two belong together.
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


async def _check(request: Request) -> None:
    body = await request.body()
    if not _HALF.search(body):
        return
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ApiError(
            400, "the body has half a character in its text (a lone surrogate)"
        ) from error


WholeCharacters = Depends(_check)
