"""Dense weights beside slots: the file's bytes in memory of our own, charged by huge pages."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from formats import KexpError
from kandiga_run.container import Model
from kandiga_run.engine import load_engine
from kandiga_run.experts.pages import HUGE_PAGE
from kandiga_run.native.dense_copy import DenseCopy
from kandiga_run.native.dense_pieces import pieces
from packed import PackedModels
from wrong_bit import flip_bit


@pytest.mark.parametrize("cached", [True, False])
def test_a_copy_holds_what_the_file_holds(
    packed: PackedModels, tmp_path: Path, cached: bool
) -> None:
    folder = shutil.copytree(packed("qwen3_next").container, tmp_path / "container")
    with Model.open(folder) as model:
        if not cached:
            for shard in model.container.shards:
                os.fsync(shard.fd)
                os.posix_fadvise(shard.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        copy = DenseCopy(model)
        names = sorted(model.dense)[::2]
        arrays = {name: copy.array(name) for name in names}
        copy.fill(names)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, model.dense_array(name))
            assert not array.flags.writeable
        assert copy.nbytes(names) % HUGE_PAGE == 0
        assert copy.nbytes(names) >= sum(model.dense[name].length_bytes for name in names)


def test_pieces_cover_each_tensor_once(packed: PackedModels) -> None:
    with Model.open(packed("qwen3_moe").container) as model:
        tensors = [model.dense[name] for name in sorted(model.dense)[1::3]]
        covered: list[int] = []
        for offset, length in pieces(tensors, 4096):
            assert offset // 4096 == (offset + length - 1) // 4096
            covered.extend(range(offset, offset + length))
        wanted = [
            byte
            for tensor in tensors
            for byte in range(tensor.offset_bytes, tensor.offset_bytes + tensor.length_bytes)
        ]
        assert covered == sorted(wanted)


def test_slots_and_mapped_pages_give_the_same_logits(packed: PackedModels) -> None:
    container = packed("qwen3_5_moe").container
    prompt = np.arange(3, 40, dtype=np.int32)
    logits = []
    for residency in ("owned", "mapped"):
        engine = load_engine(container, engine="native", residency=residency)
        logits.append(engine.forward(prompt, engine.new_state(64)))
        engine.close()
    np.testing.assert_array_equal(*logits)


def test_damage_is_found_in_the_copy(packed: PackedModels, tmp_path: Path) -> None:
    folder = shutil.copytree(packed("mixtral").container, tmp_path / "container")
    with Model.open(folder) as model:
        tensor = model.dense["model.layers.1.self_attn.q_proj.weight"]
        path = model.container.shards[tensor.shard].path
    flip_bit(path, tensor.offset_bytes + 5)
    engine = load_engine(folder, engine="native", residency="owned")
    with pytest.raises(KexpError, match="dense weights: crc32"):
        engine.forward(np.arange(3, 8, dtype=np.int32), engine.new_state(64))
    engine.close()
