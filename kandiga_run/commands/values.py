"""Values of options that are neither text nor plain numbers."""

from __future__ import annotations

from typing import Any

import click

from kandiga_run.errors import RunError
from kandiga_run.sizes import parse_size


class Size(click.ParamType[int]):
    """An amount of memory."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        try:
            return parse_size(value) if isinstance(value, str) else int(value)
        except RunError as error:
            self.fail(str(error), param, ctx)


class Sizes(click.ParamType[tuple[int, ...]]):
    """Amounts of memory separated by commas."""

    name = "SIZE,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return bytes, one number a size."""
        if not isinstance(value, str):
            return tuple(value)
        return tuple(Size().convert(part, param, ctx) for part in value.split(","))


class Counts(click.ParamType[tuple[int, ...]]):
    """Numbers of tokens separated by commas; K after a number is 1024."""

    name = "N,..."

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers in the order given."""
        if not isinstance(value, str):
            return tuple(value)
        return tuple(self._number(part.strip(), param, ctx) for part in value.split(","))

    def _number(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        digits, factor = (text[:-1], 1024) if text[-1:] in ("k", "K") else (text, 1)
        if not digits.isdecimal() or int(digits) * factor < self._least:
            self.fail(
                f"{text!r}: wanted a number from {self._least} on, like 512 or 4K", param, ctx
            )
        return int(digits) * factor
