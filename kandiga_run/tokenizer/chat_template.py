"""A checkpoint's own chat template, rendered as transformers renders it, without transformers.

Templates come from the Hub and are untrusted code: they run in jinja2's immutable sandbox and see
nothing but plain JSON data and the few helpers below.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
import jinja2.parser
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kandiga_run.errors import RunError

Message = Mapping[str, Any]

#: Names under which clients send a message's reasoning; templates read the first, gpt-oss's the
#: second.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """The templates of one checkpoint: one, or several by name ("default", "tool_use", ...)."""

    def __init__(self, sources: str | Mapping[str, str]) -> None:
        """Take template sources; compiled at first use. Raises RunError when there is none."""
        self._sources = {"default": sources} if isinstance(sources, str) else dict(sources)
        if not self._sources:
            raise RunError("the model has an empty list of chat templates")
        self._compiled: dict[str, jinja2.Template] = {}

    @property
    def source(self) -> str:
        """Return the text of every template, the default one first."""
        names = sorted(self._sources, key=lambda name: (name != "default", name))
        return "\n".join(self._sources[name] for name in names)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt text of a conversation.

        `variables` are what else the template may ask for: bos_token, enable_thinking ... Raises
        RunError when the template refuses the messages or is itself at fault.
        """
        if not messages:
            raise RunError("a chat prompt needs at least one message")
        template = self._template(tools is not None)
        try:
            return template.render(
                messages=[_normalized(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **(variables or {}),
            )
        except jinja2.TemplateError as error:
            raise RunError(f"the chat template refuses these messages: {error}") from error
        except (TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
            kind = type(error).__name__
            raise RunError(
                f"the chat template failed on these messages: {kind}: {error}"
            ) from error

    def _template(self, has_tools: bool) -> jinja2.Template:
        name = "tool_use" if has_tools and "tool_use" in self._sources else "default"
        if name not in self._sources:
            raise RunError(
                f"the model has chat templates named {', '.join(sorted(self._sources))} and none "
                'named "default"'
            )
        if name not in self._compiled:
            try:
                self._compiled[name] = _environment().from_string(self._sources[name])
            except jinja2.TemplateError as error:
                raise RunError(f"the model's chat template is not valid jinja: {error}") from error
        return self._compiled[name]


def load_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """Return the folder's chat template, or None for a base model that has none.

    In the order transformers gives them: chat_template.jinja with additional_chat_templates/,
    tokenizer_config.json (a string, or a list of {"name", "template"}), then chat_template.json,
    where older vision checkpoints keep it.
    """
    sources = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted(folder.glob("additional_chat_templates/*.jinja"))
    }
    main = folder / "chat_template.jinja"
    if main.is_file():
        sources["default"] = main.read_text(encoding="utf-8")
    if sources:
        return ChatTemplate(sources)
    configured = tokenizer_config.get("chat_template")
    where = folder / "tokenizer_config.json"
    if configured is None and (folder / "chat_template.json").is_file():
        where = folder / "chat_template.json"
        configured = read_json_object(where).get("chat_template")
    if configured is None:
        return None
    if isinstance(configured, list):
        entries = [entry if isinstance(entry, dict) else {} for entry in configured]
        configured = {entry.get("name"): entry.get("template") for entry in entries}
    templates = {"default": configured} if isinstance(configured, str) else configured
    if not isinstance(templates, dict) or not all(isinstance(t, str) for t in templates.values()):
        raise RunError(f"{where}: chat_template is neither text nor a list of named templates")
    return ChatTemplate(templates)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return what a tokenizer file of the checkpoint says; RunError when it is no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: wanted a JSON object, seen {type(value).__name__}")
    return value


def _normalized(message: Message) -> dict[str, Any]:
    """Return the message without null fields and with its reasoning under the names templates read.

    APIs send `"content": null` beside tool calls; templates would print it as "None".
    """
    fields = {key: value for key, value in message.items() if value is not None}
    for name in _REASONING_FIELDS:
        if name in fields:
            return {"thinking": fields[name], **fields, "reasoning_content": fields[name]}
    return fields


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    helpers: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        # A plain function, so that templates cannot reach the dict class itself.
        "dict": _make_dict,
    }
    environment.globals.update(helpers)
    return environment


class _GenerationTag(Extension):
    """`{% generation %}`: marks assistant text for training; renders its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replace jinja2's own filter, which escapes HTML characters and sorts keys."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)
