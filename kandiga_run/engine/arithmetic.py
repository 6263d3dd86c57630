"""Which arithmetic the quantized matrices are multiplied in, and what "auto" means."""

from __future__ import annotations

from typing import Literal

#: "exact": activations in float32. "int16", "int8": rounded to so many bits for each group of a
#: weight's columns, and multiplied with its codes as integers.
Arithmetic = Literal["exact", "int16", "int8"]
ArithmeticChoice = Literal["auto", "exact", "int16", "int8"]


def native_arithmetic(choice: ArithmeticChoice) -> Arithmetic:
    """Return what the native engine computes in.

    "auto" is int16: a KL divergence from exact of 6e-8 on a real text, and a token of 12 layers of
    a 35B model in 28 ms where exact takes 41 and int8, with less precision, 29.
    """
    return "int16" if choice == "auto" else choice
