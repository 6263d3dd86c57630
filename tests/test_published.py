"""A container on the Hub: looked at, downloaded, run; the real client on a loopback Hub."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from formats.constants import EXPERT_ENTRY_BYTES
from hub_stub import HubStub, hub_environment, run_with_hub, serve_hub
from kandiga_pack.convert import convert
from sparse_set import write_sparse_set

REPOSITORY = "someone/tiny-mixtral-kexp"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "checkpoint"
    # Blocks of several pages each, so that weights are most of the container.
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    return make_checkpoint(folder, "mixtral", overrides=sizes)


@pytest.fixture(scope="module")
def container(checkpoint: Path) -> Path:
    """A set of several shards."""
    folder = checkpoint.with_name("container")
    convert(checkpoint, folder, shard_bytes=400_000)
    assert len(list(folder.glob("*.kexp"))) > 2
    return folder


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with serve_hub() as stub:
        yield stub


@pytest.fixture
def published(hub: HubStub, container: Path) -> HubStub:
    """A Hub that holds the container."""
    hub.add(REPOSITORY, container)
    return hub


Done = subprocess.CompletedProcess[str]


def pack(hub: HubStub, home: Path, *arguments: str, token: bool = True, **variables: str) -> Done:
    return run_with_hub(hub, home, "kandiga_pack", *arguments, token=token, **variables)


def run(hub: HubStub, home: Path, *arguments: str, token: bool = True, **variables: str) -> Done:
    return run_with_hub(hub, home, "kandiga_run.cli", *arguments, token=token, **variables)


def answer(hub: HubStub, home: Path, model: str, **variables: str) -> str:
    done = run(hub, home, "run", model, "hello", "--max-tokens", "8", "--json", **variables)
    assert done.returncode == 0, done.stderr
    text: str = json.loads(done.stdout)["text"]
    return text


def one_line(done: Done, code: int) -> str:
    """Check a refusal and return its message."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_run_by_id_answers_as_the_folder_does(
    published: HubStub, container: Path, tmp_path: Path
) -> None:
    local = answer(published, tmp_path, str(container))
    assert answer(published, tmp_path, REPOSITORY) == local
    fetched = published.sent_bytes()
    assert answer(published, tmp_path, REPOSITORY) == local
    assert published.sent_bytes() == fetched
    requests = len(published.requests)
    assert answer(published, tmp_path, REPOSITORY, HF_HUB_OFFLINE="1") == local
    assert len(published.requests) == requests
    commit = published.repositories[REPOSITORY].head
    assert answer(published, tmp_path, f"{REPOSITORY}@{commit}") == local


def test_inspect_fetches_the_index_alone(
    published: HubStub, container: Path, tmp_path: Path
) -> None:
    done = pack(published, tmp_path, "inspect", REPOSITORY, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    counted = facts.pop("published")
    assert counted["commit"] == published.repositories[REPOSITORY].head
    assert counted["bytes"] == published.sent_bytes()
    assert counted["requests"] == len(published.requests)
    local = json.loads(pack(published, tmp_path, "inspect", str(container), "--json").stdout)
    assert facts.pop("path") == REPOSITORY
    local.pop("path")
    assert facts == local
    # kexp.json, and each shard in one range: its index and no whole weights.
    shards = sorted(container.glob("*.kexp"))
    ranged = [each for each in published.requests if each.path.endswith(".kexp")]
    assert sum(each.status == 206 for each in ranged) == len(shards)
    for shard in shards[1:]:
        assert published.sent_bytes(shard.name) < 25_000 < shard.stat().st_size / 4
    assert not list(tmp_path.rglob("*.kexp"))


def test_a_damaged_download_is_not_used(
    published: HubStub, container: Path, tmp_path: Path
) -> None:
    name = sorted(container.glob("*.kexp"))[-1].name
    published.damage[name] = (container / name).stat().st_size - 30_000
    line = one_line(run(published, tmp_path, "run", REPOSITORY, "hello"), 1)
    assert f"{name}: layer" in line
    assert "E_BLOCK_CRC" in line
    assert "run the command again" in line
    assert not list(tmp_path.rglob(name))
    published.damage.clear()
    fetched = published.sent_bytes(".kexp")
    answer(published, tmp_path, REPOSITORY)
    # The others were kept: besides this one shard only heads were fetched.
    again = published.sent_bytes(".kexp") - fetched
    size = (container / name).stat().st_size
    total = sum(each.stat().st_size for each in container.glob("*.kexp"))
    assert size <= again < total


def test_a_damaged_index_is_seen_before_the_weights_come(
    published: HubStub, container: Path, tmp_path: Path
) -> None:
    name = sorted(container.glob("*.kexp"))[-1].name
    published.damage[name] = 4200  # in the section table
    assert "E_TABLE_CRC" in one_line(run(published, tmp_path, "run", REPOSITORY, "hello"), 1)
    assert published.sent_bytes(name) < (container / name).stat().st_size / 4


def test_a_private_repository_without_a_token(
    hub: HubStub, container: Path, tmp_path: Path
) -> None:
    hub.add(REPOSITORY, container, private=True)
    for program, arguments in (
        (run, ("run", REPOSITORY, "hello")),
        (pack, ("inspect", REPOSITORY)),
    ):
        line = one_line(program(hub, tmp_path, *arguments, token=False), 3)
        assert f"{REPOSITORY}: no such file or folder here" in line
        assert "if it is private, log in with `hf auth login`" in line
    assert pack(hub, tmp_path, "inspect", REPOSITORY).returncode == 0


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("someone/else", "someone/else: no such file or folder here, and the Hub has no such"),
        (f"{REPOSITORY}@v9", f"{REPOSITORY}@v9: the Hub has no revision v9 of it"),
        (
            "someone/checkpoint",
            "no kexp.json, so it is no .kexp model; a checkpoint is",
        ),
    ],
)
def test_ids_that_lead_nowhere(
    published: HubStub, checkpoint: Path, tmp_path: Path, model: str, wanted: str
) -> None:
    published.add("someone/checkpoint", checkpoint)
    assert wanted in one_line(run(published, tmp_path, "run", model, "hello"), 3)
    assert wanted in one_line(pack(published, tmp_path, "inspect", model), 3)


def test_no_network(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"  # the discard port: nothing listens
    for program, arguments in (
        ("kandiga_run.cli", ("run", REPOSITORY, "hello")),
        ("kandiga_pack", ("inspect", REPOSITORY)),
    ):
        line = one_line(run_with_hub(closed, tmp_path, program, *arguments), 3)
        assert "no such file or folder here, and the Hub cannot be reached" in line


def test_a_folder_goes_before_an_id(published: HubStub, container: Path, tmp_path: Path) -> None:
    shutil.copytree(container, tmp_path / "someone" / "tiny-mixtral-kexp")
    done = run_with_hub(
        published, tmp_path, "kandiga_pack", "inspect", REPOSITORY, "--json", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert not published.requests


def test_inspect_of_a_397b_shape(hub: HubStub, tmp_path: Path) -> None:
    """60 layers of 512 experts, over 200 GB: a few requests for each shard, and the index."""
    write_sparse_set(tmp_path / "large")
    shards = list((tmp_path / "large").glob("*.kexp"))
    hub.add(REPOSITORY, tmp_path / "large")
    done = pack(hub, tmp_path, "inspect", REPOSITORY, "--json")
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)["published"]
    index_bytes = 60 * 512 * EXPERT_ENTRY_BYTES
    # The guess of the first shard is 1 MiB, and those of the others an eighth above what they need.
    assert counted["bytes"] < index_bytes * 9 / 8 + (1 << 20) + len(shards) * 24_000
    # kexp.json, and for each shard a redirection and a range.
    assert counted["requests"] <= 1 + 2 * len(shards)


def test_a_head_longer_than_was_guessed(published: HubStub, container: Path) -> None:
    """Small first ranges: the rest comes in more of them, and is the same."""
    code = f"""
import sys, tempfile
from pathlib import Path
import formats.remote_index as remote_index
from formats import open_set
from formats.hub import HubFiles, HubId
remote_index._FIRST_GUESS_BYTES = 4096
remote_index._guess_bytes = lambda first, manifest: lambda record: 4096
with tempfile.TemporaryDirectory() as folder:
    files = HubFiles(HubId({REPOSITORY!r}))
    remote_index.fetch_index(files, Path(folder))
    with open_set(folder) as remote, open_set(sys.argv[1]) as local:
        assert remote.meta == local.meta and remote.dense.keys() == local.dense.keys()
        for ours, theirs in zip(remote.shards, local.shards):
            assert ours.sections == theirs.sections and ours.index == theirs.index
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(container)],
        env=hub_environment(published, container.parent / "hf"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ranged = [each for each in published.requests if each.status == 206]
    assert len(ranged) > 2 * len(list(container.glob("*.kexp")))


def test_a_server_without_ranges(published: HubStub, container: Path, tmp_path: Path) -> None:
    """Such as a proxy that drops the header: what is not a range is not taken for one."""
    published.ignores_ranges = True
    done = pack(published, tmp_path, "inspect", REPOSITORY, "--json")
    assert done.returncode == 0, done.stderr
    shard = max(container.glob("*.kexp"))
    copy = Path(shutil.copytree(container, tmp_path / "copy"))
    data = bytearray(shard.read_bytes())
    data[-40_000] ^= 1
    (copy / shard.name).write_bytes(data)
    line = one_line(pack(published, tmp_path, "repair", str(copy), "--from", REPOSITORY), 1)
    assert "answers 200 to a request for a range of bytes" in line


@pytest.mark.parametrize(
    ("program", "verb"),
    [("kandiga_run", "run"), ("kandiga_pack", "verify"), ("kandiga_pack", "export")],
)
def test_an_interrupted_download_says_what_stays(
    published: HubStub, tmp_path: Path, program: str, verb: str
) -> None:
    published.latency_seconds = 0.2
    process = subprocess.Popen(
        [sys.executable, "-m", program, verb, REPOSITORY, *([] if verb == "verify" else ["out"])],
        cwd=tmp_path,
        env=hub_environment(published, tmp_path / "hf"),
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not published.sent_bytes("kexp.json") and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    name = program.replace("_", "-")
    cache = tmp_path / "hf" / "hub"
    wanted = f"what was downloaded stays in {cache}, and the same command goes on"
    assert said == f"{name}: interrupted; {wanted}\n"
    assert list(cache.iterdir())
