"""MODEL on a command line: a path or a Hub id, and the remembered one where it is left out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

Function = TypeVar("Function", bound=Callable[..., Any])

# "Really?", "你好" and "Hello, world" are prompts; "chta", "Chat" and "qwen3-30b" may be anything.
_WORD = re.compile(r"[\x21-\x7e]*[^\s?!.,;:]")


def model_argument(function: Function) -> Function:
    """Add an optional argument `model: Path`; left out, it is the default model."""
    return click.argument(
        "model", required=False, type=click.Path(path_type=Path), callback=_or_default
    )(function)


def _or_default(
    context: click.Context, _parameter: click.Parameter, value: Path | None
) -> Path | None:
    if value is not None or context.resilient_parsing:
        return value
    return remembered_model()


def complete_model(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return presets, and that files may be meant, for a shell."""
    from kandiga_run.forecast.presets import PRESETS

    names = [CompletionItem(name) for name in PRESETS if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def remembered_model() -> Path:
    """Return the default model; UsageError when there is none."""
    from kandiga_run.default_model import default_model

    model = default_model()
    if model is None:
        raise click.UsageError(
            "no MODEL named and none remembered: name one, or let `kandiga-run setup` choose and "
            "remember one"
        )
    return Path(model)


def reads_like_a_prompt(text: str) -> bool:
    """Whether text stands for a prompt where a model's or a command's name could stand, too.

    One plain word does not: it may be a name with a mistake in it, and a mistake must not be
    answered by a model. Nor does what exists as a file.

    >>> [reads_like_a_prompt(text) for text in ("Hi there", "Why?", "chta", "./model", "a/b")]
    [True, True, False, False, False]
    """
    return text == "-" or (not _WORD.fullmatch(text) and not os.path.lexists(text))
