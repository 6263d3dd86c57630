"""A set is its shards together: missing, exchanged, foreign and surplus ones are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from containers import write_set
from formats import BLOCK_ALIGN, KexpError, open_set, verify_full, verify_index

SHARDS = [f"model-0000{number}-of-00004.kexp" for number in (1, 2, 3, 4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path / "model", shard_bytes=4 * BLOCK_ALIGN)
    return tmp_path / "model"


def refused(folder: Path) -> KexpError:
    with pytest.raises(KexpError) as caught:
        open_set(folder)
    # verification must come to the same verdict, and must not raise
    assert [finding.code for finding in verify_full(folder).findings] == [caught.value.code]
    return caught.value


@pytest.mark.parametrize("name", SHARDS)
def test_a_missing_shard_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    error = refused(folder)
    assert (error.code, error.file) == ("E_FILE_MISSING", name)


def test_exchanged_shards(folder: Path) -> None:
    first, second = folder / SHARDS[1], folder / SHARDS[2]
    aside = folder / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    error = refused(folder)
    assert (error.code, error.file) == ("E_SHARD_NAME", SHARDS[1])


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_of_another_set(folder: Path, tmp_path: Path, name: str) -> None:
    write_set(tmp_path / "other", shard_bytes=4 * BLOCK_ALIGN, seed=1)
    shutil.copy(tmp_path / "other" / name, folder / name)
    error = refused(folder)
    assert (error.code, error.file) == ("E_SET_ROOT", name)


def test_the_manifest_of_another_set(folder: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "other", shard_bytes=4 * BLOCK_ALIGN, seed=1)
    shutil.copy(tmp_path / "other" / "kexp.json", folder / "kexp.json")
    assert refused(folder).code == "E_SET_ROOT"


def test_a_surplus_shard(folder: Path) -> None:
    shutil.copy(folder / SHARDS[0], folder / "model.kexp")
    error = refused(folder)
    assert (error.code, error.file) == ("E_SHARD_EXTRA", "model.kexp")


def test_a_folder_without_a_manifest(folder: Path) -> None:
    (folder / "kexp.json").unlink()
    error = refused(folder)
    assert (error.code, error.file) == ("E_FILE_MISSING", "kexp.json")


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KexpError, match="E_FILE_MISSING"):
        open_set(tmp_path / "nowhere")
    with pytest.raises(KexpError, match="E_FILE_MISSING"):
        open_set(tmp_path / "model.kexp")


def test_a_pipe_is_refused_without_blocking(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()
    os.mkfifo(folder / SHARDS[1])
    assert refused(folder).code == "E_IO"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(folder: Path) -> None:
    (folder / SHARDS[1]).chmod(0)
    assert refused(folder).code == "E_IO"


def test_config_must_be_the_one_packed(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type":"mixtral","rope_theta":2e6}')
    with open_set(folder) as opened, pytest.raises(KexpError, match="E_FILE_SHA256"):
        _ = opened.config
    assert [finding.code for finding in verify_index(folder).findings] == ["E_FILE_SHA256"]
    (folder / "config.json").unlink()
    with open_set(folder) as opened, pytest.raises(KexpError, match="E_FILE_MISSING"):
        _ = opened.config
    assert [finding.code for finding in verify_index(folder).findings] == ["E_FILE_MISSING"]


@pytest.mark.parametrize(
    "text",
    ["[]", "{", "\xff", "\xef\xbb\xbf{}", "[" * 100_000, '{"a":' + "[" * 64 + "]" * 64 + "}"],
)
def test_config_that_is_not_an_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    change_manifest(folder, lambda manifest: manifest.update(files=[]))
    with open_set(folder) as opened, pytest.raises(KexpError, match="E_CONFIG"):
        _ = opened.config


def change_manifest(folder: Path, change: object) -> None:
    manifest = json.loads((folder / "kexp.json").read_text())
    change(manifest)  # type: ignore[operator]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    (folder / "kexp.json").write_text(text)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(format="safetensors"),
        lambda manifest: manifest.update(version=True),
        lambda manifest: manifest.update(comment=""),
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.update(set_root="0" * 63),
        lambda manifest: manifest.update(set_root=manifest["set_root"].upper()),
        lambda manifest: manifest.update(shards=[]),
        lambda manifest: manifest.update(shards={}),
        lambda manifest: manifest["shards"].pop(),
        lambda manifest: manifest["shards"].reverse(),
        lambda manifest: manifest["shards"][0].update(name="../model.kexp"),
        lambda manifest: manifest["shards"][0].update(size=-1),
        lambda manifest: manifest["shards"][0].update(size="1"),
        lambda manifest: manifest["shards"][0].update(shard_root=""),
        lambda manifest: manifest["shards"][0].update(sha256="0" * 64),
        lambda manifest: manifest["shards"][0].pop("shard_root"),
        lambda manifest: manifest["files"][0].update(name="../config.json"),
        lambda manifest: manifest["files"][0].update(name="/etc/passwd"),
        lambda manifest: manifest["files"][0].update(name="config.json\n"),
        lambda manifest: manifest["files"][0].update(name="model-old.kexp"),
        lambda manifest: manifest["files"][0].update(name="README.md"),
        lambda manifest: manifest["files"].append(manifest["files"][0]),
        lambda manifest: manifest["files"].append(7),
    ],
)
def test_bad_manifests(folder: Path, change: object) -> None:
    change_manifest(folder, change)
    assert refused(folder).code == "E_MANIFEST"


def test_a_later_version_of_the_manifest(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest.update(version=2, later=[]))
    assert refused(folder).code == "E_VERSION"


def test_sizes_in_the_manifest_are_compared(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest["shards"][2].update(size=5))
    error = refused(folder)
    assert (error.code, error.file) == ("E_FILE_SIZE", SHARDS[2])


def test_shard_roots_in_the_manifest_are_compared(folder: Path) -> None:
    change_manifest(folder, lambda manifest: manifest["shards"][2].update(shard_root="0" * 64))
    error = refused(folder)
    assert (error.code, error.file) == ("E_SHARD_ROOT", SHARDS[2])


def test_other_files_may_stand_beside(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "model.safetensors.index.json").write_text("{}")
    open_set(folder).close()
    assert verify_full(folder).ok


def test_progress_adds_up_to_the_shards(folder: Path) -> None:
    steps: list[int] = []
    report = verify_full(folder, progress=steps.append)
    total = sum((folder / name).stat().st_size for name in SHARDS)
    assert sum(steps) == report.num_bytes == total
    assert (report.num_shards, report.num_experts) == (4, 8)


def test_verification_stops_when_its_progress_raises(folder: Path) -> None:
    def interrupted(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_full(folder, progress=interrupted)


def test_no_descriptor_is_left_open(folder: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        open_set(folder).close()
        verify_full(folder)
    (folder / SHARDS[3]).write_bytes(b"damaged")
    for _ in range(3):
        with pytest.raises(KexpError):
            open_set(folder)
    assert len(os.listdir("/dev/fd")) == before
