"""Cases of the vector kernels: sizes around vector widths, strided slices, values that bite."""

from kernels.attention_cases import append_cases, attention_cases, rope_cases
from kernels.cases import Case
from kernels.delta_cases import conv_cases, delta_cases, gates_cases, heads_cases
from kernels.elementwise_cases import elementwise_cases, exponential_cases, split_cases
from kernels.norm_cases import add_rms_norm_cases, gated_norm_cases, norm_cases
from kernels.routing_cases import routing_cases


def all_cases() -> list[Case]:
    """Every case of the vector kernels; ids are unique."""
    return [
        *norm_cases(),
        *add_rms_norm_cases(),
        *gated_norm_cases(),
        *elementwise_cases(),
        *exponential_cases(),
        *split_cases(),
        *rope_cases(),
        *attention_cases(),
        *append_cases(),
        *conv_cases(),
        *gates_cases(),
        *delta_cases(),
        *heads_cases(),
        *routing_cases(),
    ]
