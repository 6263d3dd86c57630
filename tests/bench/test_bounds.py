"""Bounds and spreads, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from kandiga_run.bench.bounds import Ceilings, bound
from kandiga_run.bench.samples import Figure, Sample, add_sample
from kandiga_run.native.token_work import TokenWork

WORK = TokenWork(
    dense_bytes=1_000,
    expert_bytes=800,
    bytes_per_expert=100.0,
    state_bytes=200,
    dense_multiply_adds=2_000,
    head_multiply_adds=512,
    expert_multiply_adds=1_600,
)
CEILINGS = Ceilings(memory=20_000.0, disk=1_000.0, kernels=50_000.0)


def sample(kind: str, size: int, tokens: int, seconds: float, bytes_read: int = 0) -> Sample:
    return Sample(
        kind="prefill" if kind == "prefill" else "decode",
        size=size,
        tokens=tokens,
        seconds=seconds,
        bytes_read=bytes_read,
        process_read_bytes=bytes_read,
        experts_requested=8 * tokens,
        experts_read=bytes_read // 100,
        state_bytes=200,
        time_split={"dense": seconds / 2, "other": seconds / 2},
    )


def figure(*samples: Sample) -> Figure:
    figures: list[Figure] = []
    for each in samples:
        add_sample(figures, each)
    assert len(figures) == 1
    return figures[0]


def test_decode_in_memory_is_bound_by_what_a_token_reads() -> None:
    close = bound(figure(sample("decode", 0, 4, 0.8)), WORK, CEILINGS)
    assert close.name == "memory"
    assert close.seconds["memory"] == pytest.approx(2_000 / 20_000)
    assert close.fraction == pytest.approx(0.5)  # 0.1 s at best, 0.2 s measured


def test_decode_beside_reading_in_place() -> None:
    slow_memory = [
        replace(sample("decode", 0, 4, 0.8), in_place_bytes_per_second=speed)
        for speed in (13_000.0, 12_000.0, None, 12_500.0)
    ]
    close = bound(figure(*slow_memory), WORK, CEILINGS)
    assert close.fraction == pytest.approx(0.5)
    assert close.in_place_fraction == pytest.approx(2_000 / 12_500 / 0.2)
    from_disk = replace(
        sample("decode", 0, 4, 2.0, bytes_read=1_600), in_place_bytes_per_second=12_000.0
    )
    assert bound(figure(from_disk), WORK, CEILINGS).in_place_fraction is None


def test_decode_from_disk_is_bound_by_its_misses() -> None:
    close = bound(figure(sample("decode", 0, 4, 2.0, bytes_read=1_600)), WORK, CEILINGS)
    assert close.name == "disk"
    assert close.seconds == pytest.approx({"memory": 0.1, "disk": 0.4})
    assert close.fraction == pytest.approx(0.8)


def test_a_cache_counts_as_it_is_held() -> None:
    """Compressed keys and values are fewer bytes than the work of a token was told with."""
    large = replace(WORK, state_bytes=10_000)
    close = bound(figure(sample("decode", 0, 4, 0.8)), large, CEILINGS)
    assert close.seconds["memory"] == pytest.approx(2_000 / 20_000)


def test_prefill_reads_dense_weights_once_a_chunk_and_the_head_once() -> None:
    close = bound(figure(sample("prefill", 1024, 1024, 102.4)), WORK, CEILINGS)
    assert close.seconds["memory"] == pytest.approx((1_000 * 2 / 1024 + 8 * 100) / 20_000)
    assert close.seconds["kernels"] == pytest.approx((3_600 + 512 / 1024) / 50_000)
    assert close.name == "kernels"
    assert close.fraction == pytest.approx(0.72, abs=0.001)


def test_tokens_read_bytes_and_times_add_up() -> None:
    both = figure(
        sample("decode", 7, 2, 1.0, 100), sample("decode", 7, 4, 1.0), sample("decode", 7, 6, 1.0)
    )
    speed = both.tokens_per_second
    assert (speed.min, speed.median, speed.max) == (2.0, 4.0, 6.0)
    assert both.bytes_read_per_token == pytest.approx(100 / 12)
    assert both.process_read_bytes == 100
    assert both.time_split == {"dense": 1.5, "other": 1.5}
