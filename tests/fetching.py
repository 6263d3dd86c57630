"""Fetching experts from a store, every byte compared with the container's."""

import ctypes

import numpy as np

from formats import KexpSet
from kandiga_run.experts.store import ExpertStore


def arrived(store: ExpertStore, container: KexpSet, layer: int, experts: list[int]) -> list[int]:
    """Fetch experts of a layer, check each payload, and return the order of arrival."""
    order = []
    length = container.layout(layer).payload_bytes
    with store.fetch(layer, np.array(experts, np.int32)) as arrivals:
        for expert, address in arrivals:
            assert ctypes.string_at(address, length) == container.block(layer, expert)
            order.append(expert)
    return order
