"""/set: what may be changed in the middle of a conversation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

from kandiga_run.chat.conversation import Conversation
from kandiga_run.chat.views import ReasoningView, ViewSettings
from kandiga_run.errors import RunError

_DEFAULT = "default"
_ON_OFF = {"on": True, "off": False}


@dataclass(frozen=True)
class Setting:
    """One name that /set knows."""

    name: str
    wanted: str
    show: Callable[[], str]
    #: Takes what the user wrote. Raises ValueError or RunError.
    change: Callable[[str], None]


def chat_settings(conversation: Conversation, view: ViewSettings) -> dict[str, Setting]:
    """Return every setting of a conversation and its view, by name."""
    defaults = conversation.options

    def sampling(name: str, kind: type, wanted: str) -> Setting:
        def change(text: str) -> None:
            options = conversation.options
            value = getattr(defaults.sampling, name) if text == _DEFAULT else kind(text)
            changed = replace(options.sampling, **{name: value})
            conversation.options = replace(options, sampling=changed)

        return Setting(
            name, wanted, lambda: _shown(getattr(conversation.options.sampling, name)), change
        )

    def max_tokens(text: str) -> None:
        value = defaults.max_tokens if text == _DEFAULT else int(text)
        conversation.options = replace(conversation.options, max_tokens=value)

    def think(text: str) -> None:
        if text == _DEFAULT:
            conversation.variables.pop("enable_thinking", None)
        else:
            conversation.variables["enable_thinking"] = _ON_OFF[text]

    def reasoning(text: str) -> None:
        choices: dict[str, ReasoningView] = {name: name for name in get_args(ReasoningView)}
        view.reasoning = choices["collapse" if text == _DEFAULT else text]

    def switch(name: str, default: bool) -> Setting:
        def change(text: str) -> None:
            setattr(view, name, default if text == _DEFAULT else _ON_OFF[text])

        return Setting(name, "on or off", lambda: _shown(getattr(view, name)), change)

    settings = [
        sampling("temperature", float, "0 (greedy) or more"),
        sampling("top_k", int, "0 (all) or more"),
        sampling("top_p", float, "above 0, at most 1"),
        sampling("min_p", float, "0 to 1"),
        sampling("repetition_penalty", float, "above 0"),
        sampling("presence_penalty", float, "a number"),
        sampling("frequency_penalty", float, "a number"),
        sampling("seed", int, "0 or more"),
        Setting(
            "max_tokens", "1 or more", lambda: str(conversation.options.max_tokens), max_tokens
        ),
        Setting(
            "think",
            "on or off, where the model's template knows it",
            lambda: _shown(conversation.variables.get("enable_thinking")),
            think,
        ),
        Setting("reasoning", "show, collapse or hide", lambda: view.reasoning, reasoning),
        switch("markdown", True),
        switch("stats", False),
    ]
    return {setting.name: setting for setting in settings}


def change_setting(settings: dict[str, Setting], name: str, text: str) -> str:
    """Change a setting; return the line that says what it is. Raises RunError."""
    setting = settings.get(name)
    if setting is None:
        raise RunError(f"/set {name}: no such setting; there are {', '.join(settings)}")
    if text:
        try:
            setting.change(text)
        except (ValueError, KeyError) as error:
            raise RunError(f"/set {name} {text}: wanted {setting.wanted}, or default") from error
    return f"{name}: {setting.show()}"


def _shown(value: Any) -> str:
    if value is None:
        return _DEFAULT
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
