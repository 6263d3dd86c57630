"""Names of answers and calls, as clients expect them."""

from __future__ import annotations

import secrets


def new_id(prefix: str) -> str:
    """Return an id nobody has seen, such as "chatcmpl-1f..."."""
    return prefix + secrets.token_hex(12)
