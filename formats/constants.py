"""Sizes and limits of .kexp version 1. The reasons are in specs/kexp-v1.md."""

from __future__ import annotations

MAGIC = b"\x89KEXP\r\n\x1a"
VERSION_MAJOR = 1
VERSION_MINOR = 0

HEADER_BYTES = 4096
SECTION_ENTRY_BYTES = 80
EXPERT_ENTRY_BYTES = 64

# 16 KiB, not 4: Metal's zero-copy buffers want whole Apple pages, and it is also a multiple of
# Linux's page and of every NVMe sector size in use.
BLOCK_ALIGN = 16384
# The widest vector register is 64 bytes; 128 is also the cache line pair that x86 prefetches.
TENSOR_ALIGN = 128

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

# Every limit is compared before the loop or the allocation that it bounds.
MAX_SECTIONS = 64
MAX_SHARDS = 4096
MAX_LAYERS = 4096
MAX_EXPERTS_PER_LAYER = 16384
# 64 MiB of index: what a reader holds in memory to check it. Blocks of one page would make a file
# of 16 GiB of them.
MAX_EXPERTS_PER_SHARD = 1 << 20
MAX_LAYOUTS = 4096
MAX_PARTS = 64
MAX_BLOCK_BYTES = GIB
MAX_JSON_BYTES = 16 * MIB
MAX_JSON_DEPTH = 16
# A parsed value takes fifty times the bytes of its text: 16 MiB of "[]," would be 800 MB.
MAX_JSON_VALUES = 2**18
# config.json is the source's own, and larger in every way than anything seen so far.
MAX_CONFIG_DEPTH = 64
MAX_JSON_INT = 2**53 - 1
MAX_STRING_BYTES = 4 * KIB
MAX_ZSTD_WINDOW_BYTES = 8 * MIB
MAX_TENSOR_DIMS = 32

DEFAULT_SHARD_BYTES = 8 * GIB
# The Hub advises against files above 200 GB; its hard limit is 500 GB.
MAX_SHARD_BYTES = 200 * 10**9


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


def extent_fits(offset: int, length: int, size: int) -> bool:
    """Whether [offset, offset + length) lies inside [0, size).

    Written as a subtraction so that the same line is right in a language whose integers wrap.
    """
    return 0 <= offset <= size and 0 <= length <= size - offset
