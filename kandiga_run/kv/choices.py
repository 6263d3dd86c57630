"""The names of `--kv` and which of its options go together. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, get_args

from kandiga_run.errors import RunError

KVChoice = Literal["auto", "fp16", "k4v3", "kv3", "k4v2", "kv4", "k8v4"]
KV_CHOICES: tuple[KVChoice, ...] = get_args(KVChoice)

#: Bits of a key's and of a value's coordinate.
BITS: dict[str, tuple[int, int]] = {
    "k4v3": (4, 3),
    "kv3": (3, 3),
    "k4v2": (4, 2),
    "kv4": (4, 4),
    "k8v4": (8, 4),
}


def check_kv(choice: str, qjl: bool, protected_layers: int) -> None:
    """RunError for a name that is none, or choices that do not go together."""
    if choice not in KV_CHOICES:
        raise RunError(f"kv is {choice!r}, wanted one of {', '.join(KV_CHOICES)}")
    if protected_layers < 0:
        raise RunError(f"kv_protect is {protected_layers}, wanted 0 or more")
    if choice not in BITS and (qjl or protected_layers):
        raise RunError(
            f"kv_qjl and kv_protect belong to a compressed KV cache, and kv is {choice}: choose "
            f"one of {', '.join(BITS)}"
        )
    if qjl and BITS[choice][0] not in (3, 4):
        raise RunError(f"kv_qjl takes one of 3 or 4 key bits, and {choice} has 8")
