"""A wrong bit in an expert that runs: named on first touch, and no answer."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from formats import KexpError, open_set
from kandiga_run import cli
from kandiga_run.engine import load_engine
from packed import PackedModels

SEED = 20_261_125
TOKENS = np.array([5, 9, 2], np.int32)


@pytest.fixture
def folder(packed: PackedModels, tmp_path: Path) -> Path:
    return shutil.copytree(packed("mixtral").container, tmp_path / "model")


def flip(path: Path, offset_bytes: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        byte = file.read(1)[0]
        file.seek(offset_bytes)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("residency", ["mapped", "owned"])
@pytest.mark.parametrize("engine_name", ["native", "mlx"])
def test_any_bit_of_any_payload(folder: Path, engine_name: str, residency: str) -> None:
    rng = random.Random(SEED)
    for _ in range(6):
        with open_set(folder) as opened:
            layer = rng.choice(opened.layers)
            extent = opened.extent(layer, rng.randrange(opened.num_experts(layer)))
            path = opened.shards[extent.shard].path
        offset_bytes = extent.offset_bytes + rng.randrange(extent.payload_bytes)
        bit = rng.randrange(8)
        flip(path, offset_bytes, bit)
        engine = load_engine(
            folder, engine=engine_name, residency=residency, num_experts_per_token=8
        )
        with pytest.raises(KexpError, match=r"crc32 .*E_BLOCK_CRC") as caught:
            engine.forward(TOKENS, engine.new_state(8))
        engine.close()
        error = caught.value
        assert (error.layer, error.expert) == (layer, extent.expert)
        assert (error.file, error.offset_bytes) == (path.name, extent.offset_bytes)
        flip(path, offset_bytes, bit)
    engine = load_engine(folder, engine=engine_name, residency=residency, num_experts_per_token=8)
    engine.forward(TOKENS, engine.new_state(8))
    engine.close()


def test_what_the_command_prints(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_set(folder) as opened:
        extent = opened.extent(1, 3)
        path = opened.shards[extent.shard].path
    flip(path, extent.offset_bytes, 0)
    arguments = ["run", str(folder), "--raw", "Hello", "--experts", "8", "--engine", "native"]
    assert cli.main([*arguments, "--quiet"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    where = f"kandiga-run: {path.name}: layer 1 expert 3 at {extent.offset_bytes:#x}: crc32 "
    assert err.startswith(where)
    assert err.endswith(
        f"; mend it with kandiga-pack repair {folder} --from SOURCE (E_BLOCK_CRC)\n"
    )


def test_damage_in_an_expert_that_does_not_run_harms_nobody(folder: Path) -> None:
    """The price of checking on first touch: what is never read is never checked."""
    with open_set(folder) as opened:
        places = [opened.extent(0, expert) for expert in range(opened.num_experts(0))]
        path = opened.shards[places[0].shard].path
    engine = load_engine(folder, engine="native", num_experts_per_token=1)
    before = engine.forward(TOKENS[:1], engine.new_state(8))
    num_run = engine.stats.experts_requested
    engine.close()
    assert num_run == 2  # one expert of each layer
    refused = 0
    for extent in places:
        flip(path, extent.offset_bytes + 7, 1)
        engine = load_engine(folder, engine="native", num_experts_per_token=1)
        try:
            assert np.array_equal(engine.forward(TOKENS[:1], engine.new_state(8)), before)
        except KexpError:
            refused += 1
        engine.close()
        flip(path, extent.offset_bytes + 7, 1)
    assert refused == 1
