"""What both expert stores promise: the right bytes, once each, checked, whatever the residency."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from fetching import arrived
from formats import KexpError
from kandiga_run.container import Model
from kandiga_run.engine import load_engine
from kandiga_run.errors import RunError
from kandiga_run.experts.store import ExpertStore, open_store
from packed import PackedModels
from wrong_bit import flip_bit

RESIDENCIES = ("mapped", "owned")
ENOUGH = 64 << 20


@pytest.fixture
def model(packed: PackedModels) -> Model:
    with Model.open(packed("mixtral").container) as model:
        yield model


@pytest.fixture
def damaged(packed: PackedModels, tmp_path: Path) -> Path:
    """Return a container with one wrong bit in layer 1, expert 3."""
    folder = shutil.copytree(packed("mixtral").container, tmp_path / "damaged")
    with Model.open(folder) as model:
        extent = model.container.extent(1, 3)
        path = model.container.shards[extent.shard].path
    flip_bit(path, extent.offset_bytes + extent.payload_bytes - 1)
    return folder


def new_store(model: Model, residency: str, **options: object) -> ExpertStore:
    budget = ENOUGH if residency == "owned" else None
    return open_store(model, residency=residency, budget_bytes=budget, **options)


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_every_expert_arrives_once(model: Model, residency: str) -> None:
    store = new_store(model, residency)
    for layer in model.container.layers:
        wanted = list(range(model.container.num_experts(layer)))
        assert sorted(arrived(store, model.container, layer, wanted)) == wanted
        assert sorted(arrived(store, model.container, layer, [6, 1])) == [1, 6]
    stats = store.stats
    assert stats.experts_requested == 20
    assert stats.experts_read + stats.experts_reused == 20
    assert stats.residency == store.residency == residency
    store.close()


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_nothing_wanted(model: Model, residency: str) -> None:
    store = new_store(model, residency)
    assert arrived(store, model.container, 0, []) == []
    store.close()


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_leaving_early_leaves_the_store_usable(model: Model, residency: str) -> None:
    store = new_store(model, residency)
    for _ in range(20):
        with store.fetch(0, np.arange(8, dtype=np.int32)) as arrivals:
            next(iter(arrivals))
    assert sorted(arrived(store, model.container, 0, list(range(8)))) == list(range(8))
    store.close()


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("check", ["first-touch", "always"])
def test_a_damaged_block_is_named(damaged: Path, residency: str, check: str) -> None:
    with Model.open(damaged) as model:
        store = new_store(model, residency, check=check)
        for _ in range(2):  # a second try must not find the block in a slot
            with pytest.raises(KexpError, match=r"layer 1 expert 3.*E_BLOCK_CRC") as caught:
                arrived(store, model.container, 1, [0, 3, 5])
            assert (caught.value.layer, caught.value.expert) == (1, 3)
        assert sorted(arrived(store, model.container, 1, [0, 5])) == [0, 5]
        store.close()


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_a_forward_call_names_a_damaged_block(damaged: Path, residency: str) -> None:
    engine = load_engine(damaged, engine="native", residency=residency, num_experts_per_token=8)
    with pytest.raises(KexpError, match=r"layer 1 expert 3.*E_BLOCK_CRC"):
        engine.forward(np.array([5], np.int32), engine.new_state(8))
    engine.close()


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_check_off_hands_out_what_is_there(damaged: Path, residency: str) -> None:
    with Model.open(damaged) as model:
        store = new_store(model, residency, check="off")
        with store.fetch(1, np.array([3], np.int32)) as arrivals:
            assert [expert for expert, _ in arrivals] == [3]
        store.close()


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_closing_twice(model: Model, residency: str) -> None:
    store = new_store(model, residency)
    arrived(store, model.container, 0, [1])
    store.close()
    store.close()


def test_a_budget_and_mapped_contradict_each_other(model: Model) -> None:
    with pytest.raises(RunError, match="leave one of the two out"):
        open_store(model, residency="mapped", budget_bytes=ENOUGH)


def test_auto(model: Model) -> None:
    """A small model is mapped; a budget means slots."""
    for budget, expected in ((None, "mapped"), (ENOUGH, "owned")):
        store = open_store(model, budget_bytes=budget)
        assert store.residency == expected
        store.close()
