"""A Hub id: the real client against a small server on this machine."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from hub_stub import HubStub, run_with_hub, serve_hub

REPOSITORY = "someone/tiny-mixtral"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubStub]:
    """A Hub with one repository, which holds a checkpoint."""
    folder = make_checkpoint(tmp_path / "published", "mixtral", dtype="float16")
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    with serve_hub() as stub:
        stub.add(REPOSITORY, folder)
        yield stub


def run_command(
    hub: HubStub | str, tmp_path: Path, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    return run_with_hub(hub, tmp_path / "hf", "kandiga_pack", *arguments)


def test_convert_from_the_hub(hub: HubStub, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    commit = hub.repositories[REPOSITORY].head
    done = run_command(hub, tmp_path, "convert", REPOSITORY, str(packed), "--json")
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "hf").rglob("*.bin"))
    facts = json.loads(run_command(hub, tmp_path, "inspect", str(packed), "--json").stdout)
    assert facts["source"]["repository"] == REPOSITORY
    assert facts["source"]["revision"] == commit
    weights = tmp_path / "published" / "model.safetensors"
    recorded = facts["source"]["files"]["model.safetensors"]
    assert recorded["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    pinned = ("verify", str(packed), "--against", REPOSITORY, "--revision", commit)
    assert run_command(hub, tmp_path, *pinned).returncode == 0
    local = ("verify", str(packed), "--against", str(tmp_path / "published"))
    assert run_command(hub, tmp_path, *local).returncode == 0


def test_a_repository_that_is_not_there(hub: HubStub, tmp_path: Path) -> None:
    done = run_command(hub, tmp_path, "convert", "someone/else", str(tmp_path / "packed"))
    assert done.returncode == 3
    assert done.stderr.startswith("kandiga-pack: someone/else: no such file or folder here, and")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "packed").exists()


def test_no_network(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"  # the discard port: nothing listens
    done = run_command(closed, tmp_path, "convert", REPOSITORY, str(tmp_path / "packed"))
    assert done.returncode == 3
    assert "the Hub cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
