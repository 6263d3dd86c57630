"""A Hub id: downloaded, packed and removed file by file, against a Hub on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hub_stub import HubStub, hub_environment, run_with_hub, serve_hub
from kandiga_pack import convert
from kandiga_pack.cli import run
from kandiga_pack.exit_codes import ExitCode
from published import make_published
from split_checkpoint import make_split_checkpoint, weight_files

REPOSITORY = "someone/split"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """24 MB in six files."""
    return make_split_checkpoint(
        tmp_path / "published", num_layers=8, num_experts=8, hidden_size=256, layers_per_file=1.4
    )


@pytest.fixture
def hub(published: Path) -> Iterator[HubStub]:
    with serve_hub() as stub:
        stub.add(REPOSITORY, published)
        yield stub


def pack(hub: HubStub, tmp_path: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    arguments = ("convert", REPOSITORY, str(tmp_path / "packed"), *more)
    return run_with_hub(hub, tmp_path / "hf", "kandiga_pack", *arguments)


def command_to_pack(tmp_path: Path) -> list[str]:
    command = [sys.executable, "-m", "kandiga_pack", "convert"]
    return [*command, REPOSITORY, str(tmp_path / "packed")]


def assert_packed(tmp_path: Path, published: Path) -> None:
    packed = str(tmp_path / "packed")
    assert run(["verify", packed, "--against", str(published), "--quiet"]) == ExitCode.OK
    assert not (tmp_path / "packed.partial").exists()


def downloads(hub: HubStub) -> dict[str, int]:
    """How often each weight file was fetched from its first byte to its last."""
    counts: dict[str, int] = {}
    for each in hub.requests:
        if each.method == "GET" and each.status == 200 and each.path.endswith(".safetensors"):
            name = each.path.rpartition("/")[2]
            counts[name] = counts.get(name, 0) + 1
    return counts


def test_the_cache_holds_no_weights(hub: HubStub, published: Path, tmp_path: Path) -> None:
    done = pack(hub, tmp_path)
    assert done.returncode == ExitCode.OK, done.stderr
    assert_packed(tmp_path, published)
    cached = [path.name for path in (tmp_path / "hf").rglob("*") if path.suffix == ".safetensors"]
    assert cached == []
    assert downloads(hub) == {path.name: 1 for path in weight_files(published)}


def test_the_same_bytes_as_from_a_folder(hub: HubStub, published: Path, tmp_path: Path) -> None:
    """Except for META, which tells where it is from."""
    assert pack(hub, tmp_path, "--shard-size", "0.004").returncode == ExitCode.OK
    convert(published, tmp_path / "local", shard_bytes=int(0.004 * 2**30))
    names = sorted(path.name for path in (tmp_path / "local").glob("*.kexp"))
    assert len(names) > 4
    for name in names[1:]:  # the superblock has the set root
        ours = (tmp_path / "packed" / name).read_bytes()[4096:]
        assert ours == (tmp_path / "local" / name).read_bytes()[4096:]


def start_packing(hub: HubStub, tmp_path: Path) -> subprocess.Popen[bytes]:
    """Start `kandiga-pack convert` of the repository into tmp_path / "packed"."""
    packed = str(tmp_path / "packed")
    command = [sys.executable, "-m", "kandiga_pack", "convert", REPOSITORY, packed]
    return subprocess.Popen(command, env=hub_environment(hub, tmp_path / "hf"))


def test_few_files_are_here_at_a_time(hub: HubStub, published: Path, tmp_path: Path) -> None:
    """Two, since a layer may lie in two, and the one that is being downloaded meanwhile."""
    process = start_packing(hub, tmp_path)
    most = 0
    while process.poll() is None:
        with suppress(FileNotFoundError):  # a folder that goes while it is looked into
            most = max(most, len(list(tmp_path.glob("packed.partial/downloads/*/*.safetensors"))))
    assert process.returncode == ExitCode.OK
    assert 1 <= most <= 3 < len(weight_files(published))


def test_a_cached_file_is_used_and_stays(hub: HubStub, published: Path, tmp_path: Path) -> None:
    first = weight_files(published)[0].name
    code = f"from huggingface_hub import hf_hub_download as get; get({REPOSITORY!r}, {first!r})"
    environment = hub_environment(hub, tmp_path / "hf")
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert downloads(hub) == {first: 1}
    assert pack(hub, tmp_path).returncode == ExitCode.OK
    assert_packed(tmp_path, published)
    assert downloads(hub)[first] == 1
    assert len(list((tmp_path / "hf").rglob(first))) == 1


def test_killed_and_taken_up(hub: HubStub, published: Path, tmp_path: Path) -> None:
    """What was packed is not downloaded again."""
    process = start_packing(hub, tmp_path)
    journal = tmp_path / "packed.partial" / "journal"
    while process.poll() is None and not (journal.exists() and b'"free"' in journal.read_bytes()):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "packed").exists()
    freed = [json.loads(line[9:]) for line in journal.read_bytes().splitlines()]
    names = [each["file"] for each in freed if each["kind"] == "free"]
    before = downloads(hub)
    done = pack(hub, tmp_path)
    assert done.returncode == ExitCode.OK
    assert f"going on with what is in {tmp_path / 'packed.partial'}" in done.stderr
    assert_packed(tmp_path, published)
    assert names
    for name in names:
        assert downloads(hub)[name] == before[name] == 1


def test_a_file_served_damaged(hub: HubStub, published: Path, tmp_path: Path) -> None:
    """The Hub states each file's SHA-256; what was downloaded is held to it."""
    victim = weight_files(published)[1]
    hub.damage[victim.name] = victim.stat().st_size - 5
    done = pack(hub, tmp_path)
    assert done.returncode == ExitCode.FAILED
    assert f"{victim.name} came with sha256" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "packed").exists()
    hub.damage.clear()
    assert pack(hub, tmp_path).returncode == ExitCode.OK
    assert_packed(tmp_path, published)


def test_a_push_meanwhile(hub: HubStub, published: Path, tmp_path: Path) -> None:
    """A revision that moved between two runs is another source."""
    (published / "config.json").write_text((published / "config.json").read_text() + " ")
    moved = hub.add(REPOSITORY, published)
    assert pack(hub, tmp_path, "--json").returncode == ExitCode.OK
    facts = json.loads((tmp_path / "packed" / "kexp.json").read_text())
    assert facts["version"] == 1
    described = run_with_hub(
        hub, tmp_path / "hf", "kandiga_pack", "inspect", str(tmp_path / "packed"), "--json"
    )
    assert json.loads(described.stdout)["source"]["revision"] == moved


def test_no_network_half_way(hub: HubStub, published: Path, tmp_path: Path) -> None:
    """The line names the repository, what is done stays, and the next run goes on."""
    command = [
        sys.executable,
        "-m",
        "kandiga_pack",
        "convert",
        REPOSITORY,
        str(tmp_path / "packed"),
    ]
    last = weight_files(published)[-1].name
    files = hub.repositories[REPOSITORY].files
    missing = files.pop(last)
    files[last] = missing[:-1000]  # ends early: the client gives up
    process = subprocess.run(
        command,
        env=hub_environment(hub, tmp_path / "hf"),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert process.returncode != ExitCode.OK
    assert process.stderr.splitlines()[-1].startswith("kandiga-pack: ")
    files[last] = missing
    assert pack(hub, tmp_path).returncode == ExitCode.OK
    assert_packed(tmp_path, published)


def test_a_published_layout_is_downloaded_whole(tmp_path: Path) -> None:
    """Experts one by one, as their makers publish them: a line says so, and it is packed."""
    folder = make_published(tmp_path / "published", "mixtral")
    with serve_hub() as stub:
        stub.add(REPOSITORY, folder)
        done = pack(stub, tmp_path)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "the whole checkpoint is downloaded first" in done.stderr
    assert run(["verify", str(tmp_path / "packed"), "--against", str(folder)]) == ExitCode.OK
    assert not (tmp_path / "packed.partial").exists()
    assert os.path.isdir(tmp_path / "hf")
