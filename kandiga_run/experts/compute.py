"""Experts computed by the CPU kernels, where the store put them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cython_kernels import TIME_EXPERTS, ExpertLayout, expert_mlp, label_time
from kandiga_run.experts.assignment import Assignment
from kandiga_run.experts.store import Arrival


def compute_batch(
    layout: ExpertLayout,
    batch: list[Arrival],
    assignment: Assignment,
    x: NDArray[np.float32],
    results: NDArray[np.float32],
    workspace: NDArray[np.float32],
) -> None:
    """Apply the experts that have arrived to the tokens x (T, hidden) they serve.

    Their results go to the next rows of `results` (T * K, hidden); assignment.order says which.
    `workspace` is as large as `expert_scratch` says for the T * K rows.
    """
    label_time(TIME_EXPERTS)
    work = assignment.take([expert for expert, _ in batch])
    addresses = np.array([address for _, address in batch], np.uint64)
    out = results[work.first_result : work.end_result]
    expert_mlp(layout, addresses, work.row_offsets, work.rows, x, out, workspace)


def compute_all(
    layout: ExpertLayout,
    addresses: NDArray[np.uint64],
    assignment: Assignment,
    x: NDArray[np.float32],
    results: NDArray[np.float32],
    workspace: NDArray[np.float32],
) -> None:
    """Apply all experts of an assignment, which are in memory at addresses (n,), as above."""
    label_time(TIME_EXPERTS)
    work = assignment.take_all()
    expert_mlp(layout, addresses, work.row_offsets, work.rows, x, results, workspace)
