"""The pool of threads: any number of them, changed at any time, from any thread, across a fork."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import cython_kernels
from cython_kernels import _kernels

F32 = NDArray[np.float32]


@pytest.fixture(autouse=True)
def restore_num_threads() -> Iterator[None]:
    before = cython_kernels.num_threads()
    yield
    cython_kernels.set_num_threads(before)


def product(seed: int, rows: int = 300, columns: int = 512, tokens: int = 3) -> tuple[F32, F32]:
    """(what matmul gives, what it should be nearly) for random numbers."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, columns)).astype(np.float32)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    matrix = cython_kernels.Matrix.dense(w, out_features=rows, in_features=columns, dtype="f32")
    out = np.empty((tokens, rows), dtype=np.float32)
    cython_kernels.matmul(matrix, x, out)
    return out, x @ w.T


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5, 16])
def test_result_does_not_depend_on_the_number_of_threads(num_threads: int) -> None:
    cython_kernels.set_num_threads(1)
    alone, _ = product(1)
    cython_kernels.set_num_threads(num_threads)
    assert cython_kernels.num_threads() == num_threads
    for _ in range(20):
        together, _ = product(1)
        assert together.tobytes() == alone.tobytes()


def test_sleeping_threads_wake_up() -> None:
    cython_kernels.set_num_threads(3)
    for _ in range(3):
        out, near = product(2)
        np.testing.assert_allclose(out, near, atol=1e-3)
        time.sleep(0.02)  # far longer than the threads spin


def test_callers_take_turns() -> None:
    cython_kernels.set_num_threads(3)
    wanted = {seed: product(seed)[0].tobytes() for seed in range(4)}
    seen: dict[int, set[bytes]] = {}

    def call(seed: int) -> None:
        seen[seed] = {product(seed)[0].tobytes() for _ in range(50)}

    callers = [threading.Thread(target=call, args=(seed,)) for seed in wanted]
    for caller in callers:
        caller.start()
    for count in (1, 4, 2):  # and the number of threads may change meanwhile
        cython_kernels.set_num_threads(count)
    for caller in callers:
        caller.join()
    assert seen == {seed: {result} for seed, result in wanted.items()}


def test_kernels_release_the_gil() -> None:
    isa = cython_kernels.isa()
    _kernels._force_isa("scalar")
    started, done = threading.Event(), threading.Event()

    def call() -> None:
        started.set()
        product(3, rows=4000, columns=2048, tokens=32)
        done.set()

    thread = threading.Thread(target=call)
    thread.start()
    started.wait()
    turns = 0
    while not done.is_set():
        time.sleep(0.002)
        turns += 1
    thread.join()
    _kernels._force_isa(isa)
    # Holding the GIL, the call would leave this thread the moments before and after it.
    assert turns > 5


FORK = """
import os, signal, sys
import numpy as np
import cython_kernels

def product():
    w = np.ones((600, 512), dtype=np.float32)
    matrix = cython_kernels.Matrix.dense(w, out_features=600, in_features=512, dtype="f32")
    out = np.empty((2, 600), dtype=np.float32)
    cython_kernels.matmul(matrix, np.ones((2, 512), dtype=np.float32), out)
    return bool((out == 512).all())

cython_kernels.set_num_threads(3)
assert product()
child = os.fork()
signal.alarm(30)  # a child that waits for the parent's threads would wait for ever
if child == 0:
    os._exit(0 if product() and product() else 1)
assert product()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_child_of_a_fork_has_its_own_threads() -> None:
    folder = Path(__file__).parents[2]
    # In Python 3.12 and later a fork next to threads warns; that it works is what is tested.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_threads_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_threads: 0, expected at least 1"):
        cython_kernels.set_num_threads(0)


def test_default_is_what_the_process_may_use() -> None:
    program = "import cython_kernels as k; assert k.num_threads() == k.cpu_count() >= 1"
    folder = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
