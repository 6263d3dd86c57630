"""Messages as OpenAI's clients send them, made into those that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kandiga_run.server.openai.chat_request import (
    AssistantMessage,
    Content,
    Message,
    MessageToolCall,
    RefusalPart,
    SystemMessage,
    ToolMessage,
)


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages as templates read them."""
    return merge_leading_system([_converted(message) for message in messages])


def merge_leading_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make the leading instructions one message: many templates take one, and only first."""
    num_system = next(
        (i for i, message in enumerate(messages) if message["role"] != "system"), len(messages)
    )
    if num_system < 2:
        return messages
    merged = "\n\n".join(message["content"] for message in messages[:num_system])
    return [{"role": "system", "content": merged}, *messages[num_system:]]


def called(name: str, arguments: str, call_id: str | None) -> dict[str, Any]:
    """Return a call as templates read it: arguments as an object where they are one."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = arguments
    call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": value}}
    return call if call_id is None else {"id": call_id, **call}


def plain_text(content: Content | None) -> str:
    """Return the text of a message, its parts joined."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = (part.refusal if isinstance(part, RefusalPart) else part.text for part in content)
    return "".join(parts)


def _converted(message: Message) -> dict[str, Any]:
    match message:
        case SystemMessage():
            converted: dict[str, Any] = {"role": "system", "content": plain_text(message.content)}
        case AssistantMessage():
            converted = _assistant(message)
        case ToolMessage():
            converted = {"role": "tool", "content": plain_text(message.content)}
            if message.tool_call_id is not None:
                converted["tool_call_id"] = message.tool_call_id
        case _:
            converted = {"role": "user", "content": plain_text(message.content)}
    if message.name is not None:
        converted["name"] = message.name
    return converted


def _assistant(message: AssistantMessage) -> dict[str, Any]:
    converted: dict[str, Any] = {"role": "assistant", "content": plain_text(message.content)}
    if reasoning := message.reasoning_content or message.reasoning:
        converted["reasoning_content"] = reasoning
    if message.tool_calls:
        converted["tool_calls"] = [_call(call) for call in message.tool_calls]
    return converted


def _call(call: MessageToolCall) -> dict[str, Any]:
    return called(call.function.name, call.function.arguments, call.id)
