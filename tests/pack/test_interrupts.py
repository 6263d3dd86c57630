"""A signal stops the program at any moment, and leaves no lock taken."""

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from containers import write_set
from kandiga_pack.cli import run
from kandiga_pack.exit_codes import ExitCode
from kandiga_pack.interrupts import interrupt_on

COMMAND = Path(sys.executable).with_name("kandiga-pack")

# Nearly all of the time of the loop goes by between taking the lock and saying so, and back.
LOCKING = """
import signal, sys, threading, time
from kandiga_pack.errors import Interrupted
from kandiga_pack.interrupts import interrupt_on

interrupt_on(signal.SIGTERM)
main = threading.main_thread().ident
for number in range(400):
    condition = threading.Condition()
    killer = threading.Timer(0.0002, signal.pthread_kill, (main, signal.SIGTERM))
    try:
        killer.start()
        while True:
            with condition:
                pass
    except Interrupted:
        pass
    killer.join()
    free = []
    other = threading.Thread(target=lambda: free.append(condition.acquire(timeout=5)))
    other.start()
    other.join()
    if free != [True]:
        sys.exit(f"signal {number} left the lock taken")
print("free")
"""


def test_no_lock_is_left_taken() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOCKING], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == ("free\n", "")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see a moment")
def test_ctrl_c_while_python_still_imports() -> None:
    process = subprocess.Popen(
        [COMMAND, "inspect", "nowhere/at-all"], stderr=subprocess.PIPE, text=True
    )
    while "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.0005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert stderr in (
        "kandiga-pack: interrupted\n",
        "kandiga-pack: interrupted; nothing was left behind\n",  # when that was quick
    )


def test_an_ignored_signal_stays_ignored() -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGALRM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        interrupt_on(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGHUP)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@pytest.mark.parametrize(
    ("arguments", "place", "line"),
    [
        (
            ["repair", "--from", "nowhere"],
            ("kandiga_pack.repair.repair", "scan_shard"),
            "what is mended stays: run the same command to go on",
        ),
        (
            ["publish", "someone/tiny"],
            ("kandiga_pack.publish", "progress_bars"),
            "nobody sees what is uploaded before all of it is: run the same command to go on",
        ),
    ],
    ids=["repair", "publish"],
)
def test_what_stays_after_ctrl_c(
    arguments: list[str],
    place: tuple[str, str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    class Upload:
        def __init__(self, *_: object) -> None:
            pass

        def has_card_of(self, _set_root: str) -> bool:
            return False

    write_set(tmp_path / "set")
    # By module: the package calls its functions by the names of their modules.
    monkeypatch.setattr(import_module("kandiga_pack.publish"), "_Upload", Upload)
    monkeypatch.setattr(import_module(place[0]), place[1], interrupted)
    verb, *others = arguments
    assert run([verb, str(tmp_path / "set"), *others]) == ExitCode.INTERRUPTED
    assert capsys.readouterr().err == f"kandiga-pack: interrupted; {line}\n"
