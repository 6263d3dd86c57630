"""Writing: all or nothing, the same bytes every time, and only what was planned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from containers import LAYERS, SPECS, make_meta, plain_layout, write_set
from formats import (
    BLOCK_ALIGN,
    DenseSpec,
    KexpError,
    Layout,
    Part,
    SetWriter,
    open_set,
    plan_shards,
)


def make_writer(dest: Path, **options: Any) -> SetWriter:
    plan = plan_shards(0, LAYERS, shard_bytes=options.pop("shard_bytes", 1 << 30))
    meta = options.pop("meta", make_meta(LAYERS))
    return SetWriter(dest, plan, meta, options.pop("specs", SPECS), **options)


def write_all(writer: SetWriter) -> None:
    for spec in SPECS:
        writer.write_dense(spec.name, bytes(spec.length_bytes))
    for layer, num_experts, layout in LAYERS:
        for expert in range(num_experts):
            writer.write_expert(layer, expert, zeros(layout))


def zeros(layout: Layout) -> dict[tuple[str, str], Any]:
    return {part.key: bytes(part.length_bytes) for part in layout.parts}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_set(tmp_path / name / "model", shard_bytes=4 * BLOCK_ALIGN)
    one = {file.name: file.read_bytes() for file in (tmp_path / "one" / "model").iterdir()}
    two = {file.name: file.read_bytes() for file in (tmp_path / "two" / "model").iterdir()}
    assert one == two
    assert len(one) == 6


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("after", ["nothing", "dense", "all"])
def test_leaving_without_a_commit_leaves_nothing(tmp_path: Path, error: type, after: str) -> None:
    def interrupted() -> None:
        with make_writer(tmp_path / "model") as writer:
            assert len(list(tmp_path.iterdir())) == 1
            if after == "dense":
                writer.write_dense("embed.weight", bytes(SPECS[0].length_bytes))
            elif after == "all":
                write_all(writer)
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from test_writer import make_writer, write_all
with make_writer(Path({str(tmp_path / "model")!r})) as writer:
    write_all(writer)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert ".partial-" in left.name
    with pytest.raises(KexpError, match=r"kexp\.json.*E_FILE_MISSING"):
        open_set(left)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    script = f"""
import resource
from pathlib import Path
from test_writer import make_writer
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
from formats import KexpError
try:
    with make_writer(Path({str(tmp_path / "model")!r})):
        pass
except KexpError as error:
    print(error)
"""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "model.kexp: cannot be created: File too large (E_IO)\n"
    assert list(tmp_path.iterdir()) == []


def test_an_existing_destination_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(KexpError, match="E_EXISTS"):
        make_writer(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(KexpError, match="E_EXISTS"):
        make_writer(tmp_path / "link")
    with make_writer(tmp_path / "late") as writer:
        write_all(writer)
        (tmp_path / "late").write_text("mine")
        with pytest.raises(KexpError, match="E_EXISTS"):
            writer.commit()
    assert (tmp_path / "late").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late", "link", "model"]


def test_experts_come_in_order(tmp_path: Path) -> None:
    pattern = r"layer 1 expert 1: .*wanted layer 1 expert 0.*E_PLAN"
    with make_writer(tmp_path / "model") as writer, pytest.raises(KexpError, match=pattern):
        writer.write_expert(1, 1, zeros(LAYERS[0][2]))


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda parts: parts.pop(("up", "scales")), r"layer 1 expert 0: .*up\.scales.*E_PLAN"),
        (lambda parts: parts.update({("up", "bias"): b""}), r"up\.bias.*E_PLAN"),
        (
            lambda parts: parts.update({("up", "weight"): bytes(7)}),
            r"part up\.weight .*7 bytes given, 3072 wanted",
        ),
    ],
)
def test_experts_come_complete(tmp_path: Path, change: Any, pattern: str) -> None:
    parts = zeros(LAYERS[0][2])
    change(parts)
    with make_writer(tmp_path / "model") as writer, pytest.raises(KexpError, match=pattern):
        writer.write_expert(1, 0, parts)


def test_nothing_more_than_planned(tmp_path: Path) -> None:
    with make_writer(tmp_path / "model") as writer:
        write_all(writer)
        with pytest.raises(KexpError, match=r"layer 5 expert 2.*E_PLAN"):
            writer.write_expert(5, 2, zeros(plain_layout()))
        with pytest.raises(KexpError, match=r"'other'.*E_PLAN"):
            writer.write_dense("other", b"")
        with pytest.raises(KexpError, match="'scale': 4 bytes given, 0 wanted"):
            writer.write_dense("scale", bytes(4))
        writer.commit()


def test_a_commit_wants_everything(tmp_path: Path) -> None:
    with make_writer(tmp_path / "model") as writer:
        for layer, num_experts, layout in LAYERS:
            for expert in range(num_experts):
                writer.write_expert(layer, expert, zeros(layout))
        with pytest.raises(KexpError, match=r"'embed\.weight': 2560 bytes not written"):
            writer.commit()
    with make_writer(tmp_path / "model", specs=[]) as writer:
        writer.write_expert(1, 0, zeros(LAYERS[0][2]))
        with pytest.raises(KexpError, match="layer 1 expert 1: was not written"):
            writer.commit()
    assert list(tmp_path.iterdir()) == []


def test_dense_chunks_do_not_overrun(tmp_path: Path) -> None:
    with make_writer(tmp_path / "model") as writer:
        writer.write_dense_chunk("norm.weight", bytes(200))
        with pytest.raises(KexpError, match=r"'norm\.weight': 57 bytes given, 56 left"):
            writer.write_dense_chunk("norm.weight", bytes(57))


def test_numpy_parts_are_written_as_their_bytes(tmp_path: Path) -> None:
    layout = Layout.build([Part("up", "weight", "bf16", (2, 3))])
    weight = np.arange(6, dtype=np.uint16).reshape(2, 3)
    meta = make_meta([(0, 1, layout)], top_k=1)
    with SetWriter(tmp_path / "model", plan_shards(0, [(0, 1, layout)]), meta, []) as writer:
        writer.write_expert(0, 0, {("up", "weight"): weight})
        writer.commit()
    with open_set(tmp_path / "model") as opened:
        assert bytes(opened.block(0, 0)) == weight.tobytes()


def test_files_beside_the_shards(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    files = []
    for name in ("config.json", "README.md", "tokenizer.json"):
        files.append(tmp_path / "source" / name)
        files[-1].write_text(f"{{}} {name}")
    with make_writer(tmp_path / "model", files=files) as writer:
        writer.add_file("LICENSE", b"Apache-2.0")
        for name in (
            "config.json",
            "kexp.json",
            "a.kexp",
            "a.safetensors",
            "a/b",
            "..",
            ".hidden",
            "",
        ):
            with pytest.raises(KexpError, match="E_FILE_NAME"):
                writer.add_file(name, b"")
        write_all(writer)
        writer.commit()
    manifest = json.loads((tmp_path / "model" / "kexp.json").read_text())
    # README and LICENSE are edited after publishing, so they are copied and not pinned
    assert [record["name"] for record in manifest["files"]] == ["config.json", "tokenizer.json"]
    for file in files:
        assert (tmp_path / "model" / file.name).read_bytes() == file.read_bytes()
    assert (tmp_path / "model" / "LICENSE").read_bytes() == b"Apache-2.0"


def test_a_missing_file_to_copy(tmp_path: Path) -> None:
    with pytest.raises(KexpError, match=r"config\.json.*E_FILE_MISSING"):
        make_writer(tmp_path / "model", files=[tmp_path / "config.json"]).__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"layers": []},
        {"layers": "all"},
        {"top_k": 9},
        {"hidden_size": None},
        {"Extra": 1},
    ],
)
def test_metadata_is_checked_before_anything_is_written(tmp_path: Path, change: Any) -> None:
    with pytest.raises(KexpError) as caught:
        make_writer(tmp_path / "model", meta=make_meta(LAYERS, **change))
    assert caught.value.code == "E_META"


def test_metadata_that_contradicts_the_plan(tmp_path: Path) -> None:
    meta = make_meta(LAYERS)
    meta["layers"][1]["num_experts"] = 4
    with pytest.raises(KexpError, match="not those of the plan"):
        make_writer(tmp_path / "model", meta=meta)
    meta = make_meta(LAYERS)
    meta["layers"][2]["layout"] = 0
    with pytest.raises(KexpError, match=r"layer 5: .*wanted layout 1"):
        make_writer(tmp_path / "model", meta=meta)
    with pytest.raises(KexpError, match=r"write fractions as strings.*E_JSON_VALUE"):
        make_writer(tmp_path / "model", meta=make_meta(LAYERS, alpha=1.702))


def test_memory_is_one_block_whatever_the_model(tmp_path: Path) -> None:
    layout = Layout.build([Part("up", "weight", "u8", (1024, 1024))])
    layers = [(0, 24, layout)]
    weight = np.zeros(1024 * 1024, dtype=np.uint8)
    dense = np.zeros(1 << 20, dtype=np.uint8)
    specs = [DenseSpec(f"dense.{index}", "u8", (1 << 20,)) for index in range(8)]
    plan = plan_shards(8 << 20, layers)
    with SetWriter(tmp_path / "model", plan, make_meta(layers), specs) as writer:
        tracemalloc.start()
        for spec in specs:
            writer.write_dense(spec.name, dense)
        for expert in range(24):
            writer.write_expert(0, expert, {("up", "weight"): weight})
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        writer.commit()
    assert peak_bytes < 2 * layout.block_bytes
