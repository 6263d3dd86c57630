"""Plans are pure: from shapes to extents, no files."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from containers import LAYERS, affine_layout, plain_layout
from formats import BLOCK_ALIGN, KexpError, Layout, Part, plan_shards
from formats.plan import LayerPlan, place_sections
from formats.sections import BLKS, DENS, EXPT, LAYT, META

SMALL = Layout.build([Part("up", "weight", "u8", (1, 1))])


def test_a_small_model_is_one_file() -> None:
    plan = plan_shards(1000, LAYERS)
    assert [shard.name for shard in plan.shards] == ["model.kexp"]
    assert plan.layouts == (affine_layout(), plain_layout())
    assert [layer.layout for layer in plan.layers] == [0, 0, 1]
    assert plan.total_bytes == 1000 + 8 * BLOCK_ALIGN


def test_one_byte_too_many_divides_it() -> None:
    exact = 1000 + 8 * BLOCK_ALIGN
    assert len(plan_shards(1000, LAYERS, shard_bytes=exact).shards) == 1
    divided = plan_shards(1000, LAYERS, shard_bytes=exact - 1)
    assert [len(shard.layers) for shard in divided.shards] == [0, 3]
    assert divided.shards[1].name == "model-00002-of-00002.kexp"


def test_the_shape_of_a_35b_model() -> None:
    """40 layers of 256 experts of 1,769,472 bytes: 18 layers a shard of 8 GiB."""
    parts = []
    for projection, rows, cols in (("gate", 512, 2048), ("up", 512, 2048), ("down", 2048, 512)):
        parts += [
            Part(projection, "weight", "u32", (rows, cols // 8), "affine", 4, 64),
            Part(projection, "scales", "bf16", (rows, cols // 64), "affine", 4, 64),
            Part(projection, "biases", "bf16", (rows, cols // 64), "affine", 4, 64),
        ]
    layout = Layout.build(parts)
    assert layout.payload_bytes == layout.block_bytes == 1_769_472
    plan = plan_shards(2 << 30, [(layer, 256, layout) for layer in range(40)])
    assert [len(shard.layers) for shard in plan.shards] == [0, 18, 18, 4]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(0, 10**6),
    st.integers(1, 60 * BLOCK_ALIGN),
)
def test_every_layer_is_in_one_shard_in_order(
    counts: list[int], dense_bytes: int, shard_bytes: int
) -> None:
    layers = [(index, count, SMALL) for index, count in enumerate(counts)]
    plan = plan_shards(dense_bytes, layers, shard_bytes=shard_bytes)
    assert [layer.layer for layer in plan.layers] == list(range(len(counts)))
    for shard in plan.shards[1:]:
        assert shard.blocks_bytes == sum(layer.num_experts for layer in shard.layers) * BLOCK_ALIGN
        assert shard.blocks_bytes <= shard_bytes or len(shard.layers) == 1
    if len(plan.shards) > 1:
        assert plan.shards[0].layers == ()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.sampled_from([SMALL, affine_layout(), plain_layout()])),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 10**6),
    st.integers(1, 40 * BLOCK_ALIGN),
)
def test_shards_are_filled_in_order(
    drawn: list[tuple[int, Layout]], dense_bytes: int, shard_bytes: int
) -> None:
    """Nothing is lost, and a shard is begun only when a layer does not fit the one before."""
    layers = [(3 * index, count, layout) for index, (count, layout) in enumerate(drawn)]
    plan = plan_shards(dense_bytes, layers, shard_bytes=shard_bytes)
    assert len(set(plan.layouts)) == len(plan.layouts) == len({layout for _, layout in drawn})
    assert [
        (each.layer, each.num_experts, plan.layouts[each.layout]) for each in plan.layers
    ] == layers

    def size(layer: LayerPlan) -> int:
        return layer.num_experts * plan.layouts[layer.layout].block_bytes

    sizes = [shard.blocks_bytes for shard in plan.shards]
    assert sizes == [sum(map(size, shard.layers)) for shard in plan.shards]
    assert plan.total_bytes == dense_bytes + sum(sizes)
    assert (len(plan.shards) == 1) == (plan.total_bytes <= shard_bytes)
    for before, after in pairwise(plan.shards[1:]):
        assert before.blocks_bytes + size(after.layers[0]) > shard_bytes


@pytest.mark.parametrize(
    ("layers", "code"),
    [
        ([], "E_PLAN"),
        ([(1, 2, SMALL), (1, 2, SMALL)], "E_PLAN"),
        ([(1, 2, SMALL), (0, 2, SMALL)], "E_PLAN"),
        ([(0, 0, SMALL)], "E_LIMIT"),
        ([(0, 16385, SMALL)], "E_LIMIT"),
        ([(4096, 1, SMALL)], "E_LIMIT"),
        ([(-1, 1, SMALL)], "E_LIMIT"),
    ],
)
def test_what_cannot_be_planned(layers: list[tuple[int, int, Layout]], code: str) -> None:
    with pytest.raises(KexpError) as caught:
        plan_shards(0, layers)
    assert caught.value.code == code


def test_a_shard_above_what_the_hub_takes() -> None:
    huge = Layout.build([Part("up", "weight", "u8", (1 << 15, 1 << 15))])
    with pytest.raises(KexpError, match=r"model-00002-of-00002\.kexp would be .*E_LIMIT"):
        plan_shards(0, [(0, 512, huge)])


def test_sections_are_placed_tightly() -> None:
    lengths = {META: 270, LAYT: 112, EXPT: 128, DENS: 131, BLKS: 2 * BLOCK_ALIGN}
    assert place_sections(0, 1, lengths) == {
        META: 4608, LAYT: 4992, EXPT: 5120, DENS: 16384, BLKS: 32768,
    }  # fmt: skip
    assert place_sections(0, 3, lengths) == {META: 4352, LAYT: 4736, DENS: 16384}
    assert place_sections(2, 3, lengths) == {LAYT: 4352, EXPT: 4480, BLKS: 16384}
