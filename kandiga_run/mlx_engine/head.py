"""Logits of the last token only: a prefill chunk of 512 tokens would make 512 rows of them.

At a vocabulary of 150,000 those are 300 MB, more than a layer's experts.
"""

from __future__ import annotations

from typing import Any

import mlx.nn as nn


class HeadSwitch:
    """Whether the model's head sees all tokens or the last one."""

    only_last = False

    def cut(self, hidden: Any) -> Any:
        """Return hidden (B, T, H), or (B, 1, H) when only the last token's logits are wanted."""
        return hidden[:, -1:] if self.only_last and hidden.ndim == 3 else hidden


class SwitchedHead(nn.Module):  # type: ignore[misc]
    """An output projection behind a HeadSwitch."""

    def __init__(self, head: Any, switch: HeadSwitch) -> None:
        super().__init__()
        self.head = head
        self._switch = switch

    def __call__(self, hidden: Any, *args: Any) -> Any:
        return self.head(self._switch.cut(hidden), *args)


def install_switch(model: Any) -> HeadSwitch:
    """Put a switch before the model's head, whether a module of its own or the tied embedding.

    A model whose head is neither keeps computing every row: slower, never wrong.
    """
    switch = HeadSwitch()
    for _, module in list(model.named_modules()):
        if "lm_head" in module:
            module.lm_head = SwitchedHead(module["lm_head"], switch)
        elif hasattr(module, "as_linear"):
            module.as_linear = _cut_first(module.as_linear, switch)
    return switch


def _cut_first(as_linear: Any, switch: HeadSwitch) -> Any:
    return lambda hidden: as_linear(switch.cut(hidden))
