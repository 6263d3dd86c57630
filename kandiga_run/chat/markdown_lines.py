"""Markdown that arrives in pieces, as lines for a terminal."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from typing import Any, ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.rule import Rule
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

_THEME = Theme(
    {
        "markdown.h1": "bold underline",
        "markdown.h2": "bold underline",
        "markdown.h3": "bold",
        "markdown.h4": "bold italic",
        "markdown.code": "cyan",
        "markdown.block_quote": "italic",
        "markdown.hr": "dim",
    },
    inherit=True,
)

_STYLE = re.compile(r"\x1b\[[0-9;]*m")

# Tags that a model writes are text: an answer must not lose what it says about <div>.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


class LineRenderer:
    """Renders markdown, and plain text in a style, for a terminal of some width."""

    def __init__(self, width: int, color_system: str | None) -> None:
        # One column less: a line that fills the last one may or may not wrap.
        self._buffer = io.StringIO()
        self._console = Console(
            file=self._buffer,
            width=max(10, width - 1),
            force_terminal=color_system is not None,
            color_system=color_system,  # type: ignore[arg-type] # one of rich's own
            theme=_THEME,
            highlight=False,
            legacy_windows=False,
            no_color=color_system is None,
        )

    def markdown(self, source: str) -> list[str]:
        """Return the lines of a piece of markdown, styled by escape sequences."""
        return self._lines(_Document(source))

    def text(self, text: str, style: str = "") -> list[str]:
        """Return plain text, wrapped."""
        return self._lines(Text(text, style=style, overflow="fold"))

    def line(self, text: str, style: str = "") -> str:
        """Return one line, cut where the terminal ends."""
        lines = self._lines(Text(text, style=style, overflow="ellipsis", no_wrap=True))
        return lines[0] if lines else ""

    def _lines(self, renderable: Any) -> list[str]:
        self._buffer.seek(0)
        self._buffer.truncate()
        self._console.print(renderable, soft_wrap=False)
        lines = [line.rstrip(" ") for line in self._buffer.getvalue().split("\n")]
        shown = [index for index, line in enumerate(lines) if _STYLE.sub("", line).strip()]
        return lines[shown[0] : shown[-1] + 1] if shown else []


def split_blocks(source: str) -> list[str]:
    """Return the blocks of markdown, of which all but the last are complete.

    A paragraph, a list, a table, a piece of code; joined they are the source.
    """
    starts = [
        token.map[0]
        for token in _PARSER.parse(source)
        if token.level == 0 and token.nesting >= 0 and token.map
    ]
    lines = source.splitlines(keepends=True)
    edges = [0, *starts[1:], len(lines)]
    return ["".join(lines[a:b]) for a, b in pairwise(edges) if a < b]


class _Heading(Heading):
    """At the left, whatever its level."""

    LEVEL_ALIGN: ClassVar[dict[str, Any]] = {}


class _Code(CodeBlock):
    """Code between two rules, unpadded: selected with a mouse it is the code."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the rules and the highlighted code."""
        name = "" if self.lexer_name == "text" else self.lexer_name
        yield Rule(name, style="dim", align="left", characters="─")
        yield Syntax(
            str(self.text).rstrip(),
            self.lexer_name,
            theme="ansi_dark",
            background_color="default",
            word_wrap=True,
        )
        yield Rule(style="dim", characters="─")


class _Document(Markdown):
    """Markdown as models write it: a line break in the source is one in the text."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
    }

    def __init__(self, source: str) -> None:
        # Links in full: where one leads must be seen.
        super().__init__("", hyperlinks=False)
        self.parsed = _PARSER.parse(source)
        _harden_breaks(self.parsed)


def _harden_breaks(tokens: list[Token]) -> None:
    for token in tokens:
        if token.type == "softbreak":
            token.type = "hardbreak"
        _harden_breaks(token.children or [])
