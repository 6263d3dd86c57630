"""The conversion benchmark still runs. Its figures are not tested, its peak of memory is."""

from pathlib import Path

import pytest

from benchmarks import convert_speed

# What the product promises, whatever the model's size.
ALLOWED_BYTES = 500 << 20


def test_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The caches are everybody's: a test does not drop them.
    monkeypatch.setattr(convert_speed, "drop_caches", lambda: False)
    figures = convert_speed.measure(tmp_path, convert_speed.LAYER_BYTES, 1)
    assert figures["bytes"] > convert_speed.LAYER_BYTES
    assert figures["ratio"] > 0
    assert figures["peak_memory_bytes"] < ALLOWED_BYTES
    assert list(tmp_path.iterdir()) == []
