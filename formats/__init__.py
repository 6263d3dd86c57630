"""The .kexp container: the only code that knows its bytes. specs/kexp-v1.md is the authority.

Reading starts at `open_set`, writing at `plan_shards` and `SetWriter`, checking at `verify_index`
and `verify_full`.
"""

from formats.constants import BLOCK_ALIGN, DEFAULT_SHARD_BYTES, TENSOR_ALIGN
from formats.dense import DenseSpec, DenseTensor, plan_image
from formats.dense_check import DenseCheck
from formats.errors import UNREADABLE_CODES, KexpError
from formats.expert_index import ExpertExtent
from formats.layout import Layout, Part
from formats.manifest import MANIFEST_NAME, shard_file_name
from formats.plan import LayerPlan, SetPlan, ShardPlan, plan_shards
from formats.reader import KexpSet, open_set
from formats.shard import Shard
from formats.shard_writer import ShardCheckpoint
from formats.verify import Report, verify_full, verify_index
from formats.writer import Resumption, SetWriter

__all__ = [
    "BLOCK_ALIGN",
    "DEFAULT_SHARD_BYTES",
    "MANIFEST_NAME",
    "TENSOR_ALIGN",
    "UNREADABLE_CODES",
    "DenseCheck",
    "DenseSpec",
    "DenseTensor",
    "ExpertExtent",
    "KexpError",
    "KexpSet",
    "LayerPlan",
    "Layout",
    "Part",
    "Report",
    "Resumption",
    "SetPlan",
    "SetWriter",
    "Shard",
    "ShardCheckpoint",
    "ShardPlan",
    "open_set",
    "plan_image",
    "plan_shards",
    "shard_file_name",
    "verify_full",
    "verify_index",
]
