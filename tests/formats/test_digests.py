"""The hash tree has the shape of RFC 9162."""

from __future__ import annotations

import hashlib

import pytest

from containers import merkle
from formats.digests import tree_root

# Inputs and roots of the test vectors that Certificate Transparency implementations share.
CT_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
CT_ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


@pytest.mark.parametrize("count", sorted(CT_ROOTS))
def test_certificate_transparency_vectors(count: int) -> None:
    assert tree_root(CT_LEAVES[:count]).hex() == CT_ROOTS[count]


def test_the_empty_tree() -> None:
    assert tree_root([]) == hashlib.sha256(b"").digest()


@pytest.mark.parametrize("count", [*range(1, 35), 100, 1000])
def test_equal_to_the_recursive_definition(count: int) -> None:
    items = [number.to_bytes(4, "little") for number in range(count)]
    assert tree_root(items) == merkle(items)
