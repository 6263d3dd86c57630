"""Messages as Anthropic's clients send them, made into those that chat templates read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kandiga_run.server.answering import ChatWanted
from kandiga_run.server.anthropic.request import (
    AssistantMessage,
    CountRequest,
    Message,
    NamedChoice,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)
from kandiga_run.server.errors import ApiError
from kandiga_run.server.openai.chat_messages import merge_leading_system


def chat_wanted(body: CountRequest, **fields: Any) -> ChatWanted:
    """Return what a body asks for; `fields` are those that only an answer needs."""
    tools = [_tool(tool) for tool in body.tools or ()]
    choice: Any = "auto"
    if isinstance(body.tool_choice, NamedChoice):
        name, choice = body.tool_choice.name, "required"
        tools = [tool for tool in tools if tool["function"]["name"] == name]
        if not tools:
            raise ApiError(400, f"{name!r} is not one of the tools", param="tool_choice")
    elif body.tool_choice is not None:
        choice = {"any": "required"}.get(body.tool_choice.type, body.tool_choice.type)
    variables: dict[str, Any] = {}
    budget = None
    if body.thinking is not None:
        variables["enable_thinking"] = body.thinking.type != "disabled"
        budget = body.thinking.budget_tokens
    output = body.output_config
    if output is not None and output.effort is not None:
        variables["reasoning_effort"] = output.effort
    messages = _messages(body)
    beginning = ""
    if messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
        beginning = messages.pop()["content"]
        # The beginning of an answer stands after its reasoning: there is none to come.
        variables.setdefault("enable_thinking", False)
    if not messages:
        raise ApiError(400, "wanted a message of the user", param="messages")
    return ChatWanted(
        messages=messages,
        tools=tools or None,
        tool_choice=choice,
        parallel_calls=_may_call_several(body),
        reasoning_budget=budget,
        variables=variables,
        beginning=beginning,
        schema=output.format.schema_ if output is not None and output.format else None,
        **fields,
    )


def _may_call_several(body: CountRequest) -> bool | None:
    choice = body.tool_choice
    if choice is None or choice.disable_parallel_tool_use is None:
        return None
    return not (isinstance(choice, NamedChoice) or choice.disable_parallel_tool_use)


def _messages(body: CountRequest) -> list[dict[str, Any]]:
    converted = [{"role": "system", "content": _text(body.system)}] if body.system else []
    for message in body.messages:
        converted.extend(_converted(message))
    return merge_leading_system(converted)


def _converted(message: Message) -> list[dict[str, Any]]:
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    match message:
        case UserMessage():
            return _user(message)
        case AssistantMessage():
            return [_assistant(message)]
    return [{"role": "system", "content": _text(message.content)}]


def _user(message: UserMessage) -> list[dict[str, Any]]:
    """Return results of tools as messages of their own, before what the user says."""
    blocks = message.content
    assert not isinstance(blocks, str)
    results: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)}
        for block in blocks
        if isinstance(block, ToolResultBlock)
    ]
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    if texts or not results:
        results.append({"role": "user", "content": "".join(texts)})
    return results


def _result(block: ToolResultBlock) -> str:
    text = _text(block.content or "")
    return f"Error: {text}" if block.is_error else text


def _assistant(message: AssistantMessage) -> dict[str, Any]:
    blocks = message.content
    assert not isinstance(blocks, str)
    text = "".join(block.text for block in blocks if isinstance(block, TextBlock))
    converted: dict[str, Any] = {"role": "assistant", "content": text}
    reasoning = "".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    if reasoning:
        converted["reasoning_content"] = reasoning
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": block.input},
        }
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    return {**converted, "tool_calls": calls} if calls else converted


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _tool(tool: Any) -> dict[str, Any]:
    function = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}
