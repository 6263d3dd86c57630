"""Items of the Responses API, made into messages that chat templates read, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kandiga_run.server.openai.chat_messages import called
from kandiga_run.server.openai.responses_request import (
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    Part,
    ReasoningItem,
    Refusal,
)
from kandiga_run.server.replies import Whole


def item_messages(items: str | Sequence[Item]) -> list[dict[str, Any]]:
    """Return messages; reasoning, text and calls of one turn of the model become one."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case MessageItem(role="assistant"):
                turn = _turn(messages, "content")
                turn["content"] = _text(item.content)
            case MessageItem():
                role = "user" if item.role == "user" else "system"
                messages.append({"role": role, "content": _text(item.content)})
            case ReasoningItem():
                turn = _turn(messages, "reasoning_content")
                turn["reasoning_content"] = _reasoning(item)
            case FunctionCallItem():
                turn = _turn(messages, None)
                call = called(item.name, item.arguments, item.call_id)
                turn.setdefault("tool_calls", []).append(call)
            case FunctionCallOutputItem():
                output = {"role": "tool", "tool_call_id": item.call_id}
                messages.append({**output, "content": _text(item.output)})
    for message in messages:
        message.setdefault("content", "")
    return messages


def answer_message(whole: Whole) -> dict[str, Any]:
    """Return an answer as the message it is in the conversation that follows."""
    message: dict[str, Any] = {"role": "assistant", "content": whole.content}
    if whole.reasoning:
        message["reasoning_content"] = whole.reasoning
    if whole.calls:
        message["tool_calls"] = [
            called(call.name, call.arguments_json, call.id) for call in whole.calls
        ]
    return message


def _turn(messages: list[dict[str, Any]], field: str | None) -> dict[str, Any]:
    """Return the model's turn that the next item belongs to, a new one if it has this already."""
    last = messages[-1] if messages else None
    starts_new = last is None or last["role"] != "assistant" or (field and field in last)
    # Reasoning stands before what it led to.
    if starts_new or (field == "reasoning_content" and len(last or ()) > 1):
        messages.append({"role": "assistant"})
    return messages[-1]


def _text(content: str | Sequence[Part]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.refusal if isinstance(part, Refusal) else part.text for part in content)


def _reasoning(item: ReasoningItem) -> str:
    return "".join(part.text for part in item.content or item.summary or ())
