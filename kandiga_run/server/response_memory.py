"""Conversations of the Responses API that a later request may continue by id."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

#: Kept in memory alone, and of those the latest: a server that stops forgets them.
MAX_CHARACTERS = 16_000_000


@dataclass(frozen=True)
class Remembered:
    """A response, and the conversation up to and including it as template messages."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]


class ResponseMemory:
    """The latest responses, as many as fit."""

    def __init__(self, max_characters: int = MAX_CHARACTERS) -> None:
        self._max_characters = max_characters
        self._held: OrderedDict[str, tuple[int, Remembered]] = OrderedDict()
        self._num_characters = 0

    def add(self, remembered: Remembered) -> None:
        """Keep a response; the oldest give way."""
        size = len(json.dumps([remembered.response, remembered.messages]))
        if size > self._max_characters:
            return
        self._held[remembered.response["id"]] = (size, remembered)
        self._num_characters += size
        while self._num_characters > self._max_characters:
            _, (oldest, _) = self._held.popitem(last=False)
            self._num_characters -= oldest

    def get(self, response_id: str) -> Remembered | None:
        """Return a response by its id, if it is still known."""
        entry = self._held.get(response_id)
        return entry[1] if entry else None

    def remove(self, response_id: str) -> bool:
        """Forget a response; return whether it was known."""
        entry = self._held.pop(response_id, None)
        if entry:
            self._num_characters -= entry[0]
        return entry is not None
