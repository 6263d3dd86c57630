"""A wrong bit anywhere in the dense weights gives no answer, also where no token looks."""

from __future__ import annotations

import random
import shutil
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from formats import KexpError, KexpSet, open_set
from formats.sections import DENS
from kandiga_run.container import Model
from kandiga_run.engine import load_engine
from packed import PackedModels

SEED = 20_261_123
TOKENS = np.array([5, 9, 2], np.int32)


@pytest.fixture
def folder(packed: PackedModels, tmp_path: Path) -> Path:
    return shutil.copytree(packed("mixtral").container, tmp_path / "model")


def flip(folder: Path, offset_bytes: int, bit: int = 0) -> None:
    with open_set(folder) as opened:
        path = opened.shards[0].path
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        byte = file.read(1)[0]
        file.seek(offset_bytes)
        file.write(bytes([byte ^ 1 << bit]))


def places(container: KexpSet) -> dict[str, int]:
    """Return a byte of every tensor, and the section's first and last of tensor data."""
    rng = random.Random(SEED)
    found = {
        name: tensor.offset_bytes + rng.randrange(tensor.length_bytes)
        for name, tensor in container.dense.items()
    }
    section = container.shards[0].section(DENS)
    return {
        **found,
        "first": min(t.offset_bytes for t in container.dense.values()),
        "last": section.end_bytes - 1,
    }


def test_a_bit_of_every_tensor(folder: Path) -> None:
    with open_set(folder) as opened:
        offsets = places(opened)
    for name, offset_bytes in offsets.items():
        flip(folder, offset_bytes, bit=len(name) % 8)
        engine = load_engine(folder, engine="native")
        for _ in range(2):  # and it stays refused
            with pytest.raises(KexpError, match=r"dense weights: crc32 .*E_SECTION_CRC") as caught:
                engine.forward(TOKENS, engine.new_state(8))
            assert f"kandiga-pack repair {folder} --from SOURCE" in str(caught.value), name
        engine.close()
        flip(folder, offset_bytes, bit=len(name) % 8)
    engine = load_engine(folder, engine="native")
    engine.forward(TOKENS, engine.new_state(8))
    engine.close()


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "native", "check": "always"},
        {"engine": "native", "memory_bytes": 8 << 30},
        {"engine": "mlx"},
        {"engine": "mlx", "residency": "owned"},
    ],
    ids=str,
)
def test_every_way_to_run(folder: Path, options: dict[str, object]) -> None:
    with open_set(folder) as opened:
        row = opened.dense["model.embed_tokens.weight"]
        # the last row: with a memory budget, and without that token, nobody would look at it
        offset_bytes = row.offset_bytes + row.length_bytes - 1
    flip(folder, offset_bytes)
    engine = load_engine(folder, **options)
    with pytest.raises(KexpError, match="E_SECTION_CRC"):
        engine.forward(TOKENS, engine.new_state(8))
    engine.close()


def test_check_off_computes_with_what_is_there(folder: Path) -> None:
    with open_set(folder) as opened:
        offset_bytes = opened.dense["model.norm.weight"].offset_bytes
    flip(folder, offset_bytes)
    engine = load_engine(folder, engine="native", check="off")
    engine.forward(TOKENS, engine.new_state(8))
    engine.close()


def test_the_header_is_checked_when_the_container_is_opened(folder: Path) -> None:
    with open_set(folder) as opened:
        offset_bytes = opened.shards[0].section(DENS).offset_bytes
    flip(folder, offset_bytes + 20)
    with pytest.raises(KexpError, match="E_DENSE_SHA256"):
        load_engine(folder, check="off")


def test_tensors_the_engine_does_not_use_are_checked_too(packed: PackedModels) -> None:
    """What nobody brought in is read by the watch itself."""
    with Model.open(packed("mixtral").container) as model:
        model.dense_watch.start_rest()
        model.dense_watch.require()
        model.dense_watch.require()


def test_closing_before_the_verdict_leaves_no_thread(folder: Path) -> None:
    with Model.open(folder) as model:
        model.dense_watch.start_rest()
    assert not [each for each in threading.enumerate() if each.name == "dense-check"]


def test_pieces_of_any_size_in_any_order_are_put_together(folder: Path) -> None:
    rng = random.Random(SEED)
    for _ in range(10):
        with Model.open(folder) as model:
            section = model.container.shards[0].section(DENS)
            data = model.container.shards[0].read(section.offset_bytes, section.stored_bytes)
            cuts = sorted(rng.sample(range(len(data)), 20))
            pieces = [(a, b) for a, b in pairwise([0, *cuts, len(data)]) if rng.random() < 0.7]
            pieces += [(5, 50), (len(data) - 90, len(data) - 7)]  # may overlap others
            rng.shuffle(pieces)
            for begin, end in pieces:
                model.dense_watch.saw(section.offset_bytes + begin, data[begin:end])
            model.dense_watch.start_rest()
            model.dense_watch.require()
