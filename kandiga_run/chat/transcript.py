"""Conversations as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kandiga_run.chat.conversation import Conversation
from kandiga_run.errors import RunError
from kandiga_run.user_files import read_json, write_json

VERSION = 1
_ROLES = ("user", "assistant", "tool", "system")


def save(conversation: Conversation, path: Path, *, model: str) -> None:
    """Write messages and system prompt. Raises OSError."""
    write_json(
        path,
        {
            "kandiga_chat": VERSION,
            "model": model,
            "system": conversation.system,
            "messages": conversation.messages,
        },
    )


def load(conversation: Conversation, path: Path) -> None:
    """Replace messages and system prompt by those of a file. Raises RunError, OSError."""
    if not path.is_file():
        raise RunError(f"{path}: there is no such file")
    saved = read_json(path)
    if saved.get("kandiga_chat") != VERSION:
        raise RunError(
            f"{path}: kandiga_chat is {saved.get('kandiga_chat')!r}, wanted {VERSION}: not a "
            "conversation that /save has written"
        )
    system, messages = saved.get("system"), saved.get("messages", [])
    if not (system is None or isinstance(system, str)) or not _are_messages(messages):
        raise RunError(f"{path}: its messages are damaged")
    conversation.system = system
    conversation.messages = messages


def _are_messages(messages: Any) -> bool:
    return isinstance(messages, list) and all(
        isinstance(message, dict)
        and message.get("role") in _ROLES
        and isinstance(message.get("content"), str)
        for message in messages
    )
