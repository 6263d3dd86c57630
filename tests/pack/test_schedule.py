"""The order of a conversion and its peak on the disk: pure functions."""

from formats import Part
from kandiga_pack.schedule import WHOLE, Stage, make_schedule, peak_bytes, without_done
from kandiga_pack.sources.base import TensorInfo
from kandiga_pack.stacks import ExpertStack, StackPart

EXPERT_BYTES = 16384  # a whole block, so that padding does not blur the figures
NUM_EXPERTS = 4
LAYER_BYTES = NUM_EXPERTS * EXPERT_BYTES


def layer(number: int, *files: str) -> ExpertStack:
    """A layer whose three tensors lie in these files."""
    names = ("gate", "up", "down")
    rows = (4096, 4096, 8192)  # of one byte: together EXPERT_BYTES
    parts = [
        StackPart(
            TensorInfo(f"layers.{number}.{name}", "u8", (NUM_EXPERTS, count), file),
            Part(name, "weight", "u8", (count, 1)),
        )
        for name, count, file in zip(names, rows, files * 3, strict=False)
    ]
    return ExpertStack(number, f"layers.{number}", NUM_EXPERTS, tuple(parts))


def dense(name: str, file: str, length: int = 100) -> TensorInfo:
    return TensorInfo(name, "u8", (length,), file)


def shape(stages: list[Stage]) -> list[tuple[tuple[str, ...], int | None, tuple[str, ...]]]:
    return [(each.opens, each.stack and each.stack.layer, each.closes) for each in stages]


def test_files_open_when_needed_and_close_when_done() -> None:
    stages = make_schedule(
        ["a", "b", "c", "d"],
        [layer(0, "a"), layer(1, "a", "b"), layer(2, "b"), layer(5, "c")],
        [dense("embed", "a"), dense("norm", "c"), dense("head", "d")],
        {1, 5},
    )
    assert shape(stages) == [
        (("a",), 0, ()),
        (("b",), 1, ("a",)),
        ((), 2, ("b",)),
        (("c",), 5, ("c",)),
        (("d",), None, ("d",)),
    ]
    assert [[info.name for info in each.dense] for each in stages] == [
        ["embed"],
        [],
        [],
        ["norm"],
        ["head"],
    ]
    assert [each.is_last_of_shard for each in stages] == [False, True, False, True, False]


def test_layers_that_do_not_ascend_over_the_files() -> None:
    """Every file is open to the end: correct, and the promise about the disk does not hold."""
    stages = make_schedule(["a", "b"], [layer(0, "b"), layer(1, "a"), layer(2, "b")], [], set())
    assert [each.closes for each in stages] == [(), ("a",), ("b",), ()]
    sizes = {"a": LAYER_BYTES, "b": 2 * LAYER_BYTES}
    assert peak_bytes(stages, {}, sizes) == 2 * LAYER_BYTES


def test_a_source_of_which_no_file_can_be_told() -> None:
    stages = make_schedule([], [layer(0, "a"), layer(1, "b")], [dense("x", "a")], set())
    assert shape(stages) == [((WHOLE,), 0, ()), ((), 1, (WHOLE,)), ((), None, ())]
    assert [len(each.dense) for each in stages] == [1, 0, 0]


def test_a_source_of_dense_tensors_beside_the_layers() -> None:
    stages = make_schedule([], [layer(0, "a")], [], set())
    assert shape(stages) == [((WHOLE,), 0, (WHOLE,)), ((), None, ())]


def test_peak_of_consuming() -> None:
    """A file and the layer that goes over its end."""
    stacks = [layer(0, "a"), layer(1, "a", "b"), layer(2, "b"), layer(3, "c")]
    stages = make_schedule(["a", "b", "c"], stacks, [], set())
    sizes = {"a": 3 * LAYER_BYTES // 2, "b": 3 * LAYER_BYTES // 2, "c": LAYER_BYTES}
    assert peak_bytes(stages, {}, sizes) == 2 * LAYER_BYTES
    assert peak_bytes(stages, {}, {}) == 4 * LAYER_BYTES  # nothing freed


def test_peak_of_streaming() -> None:
    """Two files, since a layer lies in both, and what is packed by then."""
    stacks = [layer(0, "a"), layer(1, "a", "b"), layer(2, "b")]
    stages = make_schedule(["a", "b"], stacks, [], set())
    sizes = dict.fromkeys("ab", 3 * LAYER_BYTES // 2)
    assert peak_bytes(stages, sizes, sizes) == 2 * 3 * LAYER_BYTES // 2 + 2 * LAYER_BYTES


def test_what_is_done_is_left_out() -> None:
    stages = make_schedule(
        ["a", "b"],
        [layer(0, "a"), layer(1, "b")],
        [dense("x", "a"), dense("y", "b")],
        set(),
    )
    left = without_done(stages, {"a"}, {0})
    assert shape(left) == [(("a",), None, ("a",)), (("b",), 1, ("b",)), ((), None, ())]
    assert [[info.name for info in each.dense] for each in left] == [[], ["y"], []]
    assert peak_bytes(left, {}, {}) == LAYER_BYTES + 100
