"""Files that change under a running model: no killed process, no answer from missing pages.

Each case runs in a process of its own, since what it guards against is the process being killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from packed import PackedModels

PRELUDE = """
import json, os, sys
from pathlib import Path
import numpy as np
from formats import KexpError
from kandiga_run.engine import load_engine

folder, arguments = Path(sys.argv[1]), json.loads(sys.argv[2])
shards = sorted(folder.glob("*.kexp"))

def answer(engine, tokens=(5, 9, 2)):
    logits = engine.forward(np.array(tokens, np.int32), engine.new_state(8), logits="all")
    return logits.tobytes()

def refused(engine):
    try:
        answer(engine)
    except KexpError as error:
        return error
    raise SystemExit("an answer came")
"""


@pytest.fixture
def folder(packed: PackedModels, tmp_path: Path) -> Path:
    """A container of one shard that a case may damage."""
    return shutil.copytree(packed("mixtral").container, tmp_path / "model")


def run(code: str, folder: Path, *options: str, **arguments: object) -> str:
    """Run a case and return what it printed; it must end by itself and well."""
    done = start(code, folder, *options, **arguments)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
    return done.stdout.strip()


def start(
    code: str, folder: Path, *options: str, **arguments: object
) -> subprocess.CompletedProcess[str]:
    program = PRELUDE + textwrap.dedent(code)
    command = [sys.executable, *options, "-c", program, str(folder), json.dumps(arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


LENGTHS = {"nothing is left": 0.0, "in the dense weights": 0.2, "in the blocks": 0.7}


@pytest.mark.parametrize("check", ["first-touch", "off"])
@pytest.mark.parametrize("residency", ["mapped", "owned"])
@pytest.mark.parametrize("share", LENGTHS.values(), ids=LENGTHS.keys())
def test_cut_short_between_two_tokens(
    folder: Path, residency: str, check: str, share: float
) -> None:
    code = """
    engine = load_engine(
        folder, engine="native", residency=arguments["residency"], check=arguments["check"]
    )
    before = answer(engine)
    size = shards[0].stat().st_size
    os.truncate(shards[0], int(size * arguments["share"]))
    for _ in range(2):
        print(refused(engine))
    engine.close()
    """
    lines = run(code, folder, residency=residency, check=check, share=share).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("model.kexp: ")
        assert "when it was opened" in line
        assert f"kandiga-pack verify {folder}" in line
        assert line.endswith("(E_FILE_SIZE)")


@pytest.mark.parametrize("engine", ["native", "mlx"])
def test_cut_short_while_the_experts_are_computed(folder: Path, engine: str) -> None:
    """The pages go after the store has found them resident: the kernels themselves fault."""
    code = """
    from contextlib import contextmanager
    from kandiga_run.experts.store import Arrivals

    engine = load_engine(
        folder, engine=arguments["engine"], residency="mapped", num_experts_per_token=8
    )
    answer(engine)
    store = engine._store

    def then_cut_short(find):
        def found(layer, *rest):
            addresses = find(layer, *rest)
            assert addresses is not None
            if layer == 1:
                os.truncate(shards[0], 4096)
            return addresses

        return found

    store.addresses = then_cut_short(store.addresses)
    if arguments["engine"] == "mlx":
        fetch = store.fetch

        @contextmanager
        def cut_short(layer, experts):
            with fetch(layer, experts) as arrivals:
                batches = list(arrivals.batches())
                if layer == 1:
                    os.truncate(shards[0], 4096)
                yield Arrivals(batches)

        store.fetch = cut_short
    guards = [guard for _, guard in engine._model.files._guarded]
    assert [guard.fault_offset_bytes for guard in guards] == [None]
    print(refused(engine))
    assert guards[0].fault_offset_bytes > 4096
    """
    line = run(code, folder, engine=engine)
    assert line.startswith("model.kexp: 4096 bytes, ")
    assert line.endswith("(E_FILE_SIZE)")


def test_cut_short_inside_a_page_gives_zeros_without_a_fault(folder: Path) -> None:
    """No SIGBUS tells of the end of the last page: the file's size does."""
    code = """
    engine = load_engine(folder, engine="native", residency="mapped", check="off")
    answer(engine)
    os.truncate(shards[0], shards[0].stat().st_size - 1)
    print(refused(engine).code)
    """
    assert run(code, folder) == "E_FILE_SIZE"


def test_a_page_that_could_not_be_read_is_placed(folder: Path) -> None:
    """As when the disk fails: the file has its size and time, and a page raised SIGBUS."""
    code = """
    import ctypes
    from kandiga_run.container import Model
    from kandiga_run.experts.pages import address_of

    model = Model.open(folder)
    status = shards[0].stat()
    extent = model.container.extent(1, 3)
    os.truncate(shards[0], 4096)
    address = address_of(memoryview(model.container.shards[0].mmap)) + extent.offset_bytes
    assert ctypes.string_at(address + 5000, 100) == bytes(100)
    os.truncate(shards[0], status.st_size)
    os.utime(shards[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    try:
        model.files.check()
    except KexpError as error:
        print(error)
    model.close()
    """
    line = run(code, folder)
    assert "model.kexp: layer 1 expert 3 at 0x" in line
    assert "a page could not be read from the disk" in line
    assert line.endswith("(E_IO)")


@pytest.mark.parametrize("residency", ["mapped", "owned"])
def test_a_deleted_container_goes_on_working(folder: Path, residency: str) -> None:
    code = """
    engine = load_engine(folder, engine="native", residency=arguments["residency"])
    for shard in shards:
        shard.unlink()
    first = answer(engine)
    assert answer(engine) == first
    engine.close()
    """
    run(code, folder, residency=residency)


@pytest.mark.parametrize("residency", ["mapped", "owned"])
def test_a_name_that_goes_to_another_file_changes_nothing(folder: Path, residency: str) -> None:
    """As after `git pull` or a second download: whoever has the old file open keeps it."""
    code = """
    engine = load_engine(folder, engine="native", residency=arguments["residency"])
    first = answer(engine)
    other = folder / "other"
    other.write_bytes(bytes(shards[0].stat().st_size))
    other.rename(shards[0])
    assert answer(engine) == first
    """
    run(code, folder, residency=residency)


def test_a_name_that_changes_hands_while_the_stores_open(folder: Path) -> None:
    """Files are opened a second time, past the page cache: the same file, whatever its name."""
    code = """
    from kandiga_run.container import Model
    from kandiga_run.experts.store import open_store

    model = Model.open(folder)
    for action in arguments["actions"]:
        if action == "replaced":
            other = folder / "other"
            other.write_bytes(bytes(shards[0].stat().st_size))
            other.rename(shards[0])
        else:
            shards[0].unlink()
        for residency, budget in (("mapped", None), ("owned", 64 << 20)):
            store = open_store(model, residency=residency, budget_bytes=budget, check="always")
            with store.fetch(0, np.arange(8, dtype=np.int32)) as arrivals:
                assert len(list(arrivals)) == 8
            store.close()
    """
    run(code, folder, actions=["replaced", "deleted"])


@pytest.mark.parametrize("residency", ["mapped", "owned"])
def test_a_container_written_to_while_it_runs(folder: Path, residency: str) -> None:
    code = """
    engine = load_engine(folder, engine="native", residency=arguments["residency"])
    answer(engine)
    with shards[0].open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    os.utime(shards[0])
    print(refused(engine))
    with shards[0].open("ab") as file:
        file.write(b"x")
    print(refused(engine).code)
    """
    first, second = run(code, folder, residency=residency).splitlines()
    assert first.startswith("model.kexp: was written to while in use")
    assert second == "E_FILE_SIZE"


def test_cut_short_while_the_engine_is_built(folder: Path) -> None:
    code = """
    from kandiga_run.native import builder

    take = builder.Weights.norm
    def cut_short(self, name, size):
        os.truncate(shards[0], 4096)
        return take(self, name, size)
    builder.Weights.norm = cut_short
    try:
        load_engine(folder, engine="native")
    except KexpError as error:
        print(error.code)
    """
    assert run(code, folder) == "E_FILE_SIZE"


class TestTheHandler:
    """The handler of SIGBUS itself, on a plain file of a matrix."""

    MATRIX = """
    import faulthandler, mmap, signal, threading
    from cython_kernels import MapGuard, Matrix, arm_map_guards, matmul, set_num_threads

    path = folder / "matrix"
    ROWS, COLUMNS = 4096, 1024
    path.write_bytes(np.ones((ROWS, COLUMNS), np.float32).tobytes())
    file = path.open("r+b")
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def compute():
        weight = np.frombuffer(mapping, np.float32).reshape(ROWS, COLUMNS)
        matrix = Matrix.dense(weight, out_features=ROWS, in_features=COLUMNS, dtype="f32")
        out = np.empty((1, ROWS), np.float32)
        matmul(matrix, np.ones((1, COLUMNS), np.float32), out)
        return out[0]

    def unguarded_fault():
        other = folder / "other"
        other.write_bytes(bytes(8192))
        with other.open("r+b") as stream:
            lost = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        os.truncate(other, 0)
        return lost[5000]
    """

    def test_every_thread_of_the_pool_survives(self, folder: Path) -> None:
        code = (
            self.MATRIX
            + """
    set_num_threads(4)
    guard = MapGuard(mapping)
    assert (compute() == COLUMNS).all() and guard.fault_offset_bytes is None
    kept = 300 * COLUMNS * 4  # whole rows and whole pages
    os.ftruncate(file.fileno(), kept)
    out = compute()
    assert (out[:300] == COLUMNS).all() and (out[300:] == 0).all()
    assert guard.fault_offset_bytes >= kept and guard.fault_offset_bytes % mmap.PAGESIZE == 0
    guard.close()
    """
        )
        run(code, folder)

    def test_other_threads_of_python_survive(self, folder: Path) -> None:
        code = (
            self.MATRIX
            + """
    guard = MapGuard(mapping)
    os.ftruncate(file.fileno(), 0)
    sums = []
    threads = [
        threading.Thread(target=lambda: sums.append(sum(mapping[0 : 1 << 20]))) for _ in range(4)
    ]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert sums == [0] * 4 and guard.fault_offset_bytes is not None
    """
        )
        run(code, folder)

    @pytest.mark.parametrize("options", [(), ("-X", "faulthandler")], ids=["plain", "faulthandler"])
    @pytest.mark.parametrize("cause", ["unguarded_fault()", "os.kill(os.getpid(), signal.SIGBUS)"])
    def test_other_causes_of_the_signal_still_end_the_process(
        self, folder: Path, options: tuple[str, ...], cause: str
    ) -> None:
        code = self.MATRIX + f"\n    guard = MapGuard(mapping)\n    {cause}\n"
        done = start(code, folder, *options)
        assert done.returncode == -signal.SIGBUS
        assert ("Fatal Python error: Bus error" in done.stderr) == bool(options)

    @pytest.mark.parametrize("cause", ["unguarded_fault()", "os.kill(os.getpid(), signal.SIGBUS)"])
    def test_a_handler_installed_later(self, folder: Path, cause: str) -> None:
        """Ours is put in front again; faulthandler still reports what is not ours, once."""
        code = (
            self.MATRIX
            + f"""
    guard = MapGuard(mapping)
    faulthandler.enable()
    arm_map_guards()
    os.ftruncate(file.fileno(), 0)
    assert not compute().any()
    print("survived", flush=True)
    {cause}
    """
        )
        done = start(code, folder)
        assert done.stdout == "survived\n"
        assert done.returncode == -signal.SIGBUS
        assert done.stderr.count("Fatal Python error: Bus error") == 1

    def test_a_closed_guard_guards_nothing(self, folder: Path) -> None:
        code = (
            self.MATRIX
            + """
    for _ in range(3):
        guard = MapGuard(mapping)
        guard.close()
        guard.close()
    os.ftruncate(file.fileno(), 0)
    compute()
    """
        )
        assert start(code, folder).returncode == -signal.SIGBUS

    def test_a_guard_keeps_its_mapping(self, folder: Path) -> None:
        code = (
            self.MATRIX
            + """
    guard = MapGuard(mapping)
    try:
        mapping.close()
    except BufferError:
        guard.close()
        mapping.close()
        print("kept")
    """
        )
        assert run(code, folder) == "kept"

    def test_many_guards_come_and_go_while_pages_fault(self, folder: Path) -> None:
        code = (
            self.MATRIX
            + """
    guard = MapGuard(mapping)
    os.ftruncate(file.fileno(), 0)
    stop = threading.Event()
    def come_and_go():
        while not stop.is_set():
            guards = [MapGuard(mmap.mmap(-1, 4096)) for _ in range(50)]
            for each in guards: each.close()
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(20):
            os.ftruncate(file.fileno(), ROWS * COLUMNS * 4)
            fresh = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            watched = MapGuard(fresh)
            os.ftruncate(file.fileno(), 0)
            assert sum(fresh[:: 4096]) == 0 and watched.fault_offset_bytes == 0
            watched.close()
    finally:
        stop.set()
        thread.join()
    """
        )
        run(code, folder)


def test_no_answer_is_printed_by_the_command(folder: Path) -> None:
    """The whole program: a container cut short while it answers."""
    shard = folder / "model.kexp"
    code = """
    import threading
    from kandiga_run import cli
    from kandiga_run.native import engine as native

    forward = native.NativeEngine.forward
    calls = []
    def cut_short(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.truncate(shards[0], 4096)
        return forward(self, *args, **kwargs)
    native.NativeEngine.forward = cut_short
    sys.exit(cli.main(["run", str(folder), "--raw", "Hello there", "--engine", "native"]))
    """
    done = start(code, folder)
    assert done.returncode == 1, done.stderr
    assert "model.kexp: 4096 bytes, " in done.stderr
    assert "Traceback" not in done.stderr
    assert os.path.getsize(shard) == 4096
