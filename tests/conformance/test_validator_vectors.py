"""The validator's verdict on every vector."""

from __future__ import annotations

import sys

import pytest

from conformance.vectors import Vector, load_vectors
from specs.validate_kexp import validate

VECTORS = load_vectors()
# Their fault is inside the compressed bytes.
NEEDS_ZSTD = {
    "invalid/zstd-lies",
    "invalid/zstd-checksum",
    "invalid/zstd-content",
    "invalid/zstd-json-values",
}
HAS_ZSTD = sys.version_info >= (3, 14)


def test_there_are_vectors() -> None:
    assert len(VECTORS) > 100
    assert {vector.name for vector in VECTORS} > NEEDS_ZSTD


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_vector(vector: Vector) -> None:
    report = validate(vector.path)
    codes = [finding.code for finding in report.findings]
    if not HAS_ZSTD and (vector.name in NEEDS_ZSTD or vector.name.startswith("valid/zstd-")):
        assert (codes, report.exit_code) == ([], 4)
    elif vector.verdict == "valid":
        assert (codes, report.exit_code) == ([], 0)
    else:
        assert report.exit_code == 1
        assert vector.code in codes


@pytest.mark.parametrize("vector", load_vectors("invalid"), ids=lambda vector: vector.name)
def test_level(vector: Vector) -> None:
    """What a reader has to find at open is found without reading the weights."""
    report = validate(vector.path, level="semantics")
    codes = {finding.code for finding in report.findings}
    if vector.level == "open" and vector.name not in NEEDS_ZSTD:
        assert vector.code in codes
