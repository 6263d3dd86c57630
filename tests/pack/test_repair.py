"""`kandiga-pack repair`: every kind of damage, from every kind of source; and wrong sources."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from containers import section_entries
from formats import KexpError, open_set
from hub_stub import HubStub, run_with_hub, serve_hub
from kandiga_pack import PackError, Quantization, convert, repair, verify
from published import make_published

CHECKPOINT_ID = "someone/tiny-mixtral"
CONTAINER_ID = "someone/tiny-mixtral-kexp"
# Blocks of 160 kB, so that what is fetched beside a block is small against it.
SIZES = {"hidden_size": 256, "intermediate_size": 512}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "checkpoint"
    return make_checkpoint(folder, "mixtral", overrides=SIZES, dtype="float16")


@pytest.fixture(scope="module", params=["one shard", "several shards"])
def whole(request: pytest.FixtureRequest, checkpoint: Path) -> Path:
    """A container that stays as it is."""
    folder = checkpoint.with_name(request.param.replace(" ", "-"))
    shard_bytes = 1 << 30 if request.param == "one shard" else 2_000_000
    convert(checkpoint, folder, shard_bytes=shard_bytes)
    return folder


@pytest.fixture
def container(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "container"))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def first_shard(container: Path) -> Path:
    return min(container.glob("*.kexp"))


def expert_shard(container: Path) -> Path:
    return max(container.glob("*.kexp"))


def flip_in_section(shard: Path, tag: str, at: int) -> None:
    _, offset, length = section_entries(shard.read_bytes())[tag]
    flip(shard, offset + (at if at >= 0 else length + at))


def flip_block(container: Path) -> None:
    flip_in_section(expert_shard(container), "BLKS", 40_000)


def flip_two_blocks_and_dense(container: Path) -> None:
    flip_block(container)
    flip_in_section(expert_shard(container), "BLKS", -40_000)
    flip_dense(container)


def flip_dense(container: Path) -> None:
    flip_in_section(first_shard(container), "DENS", -5_000)


def flip_dense_header(container: Path) -> None:
    flip_in_section(first_shard(container), "DENS", 20)


def flip_superblock(container: Path) -> None:
    flip(expert_shard(container), 40)


def flip_set_root(container: Path) -> None:
    flip(first_shard(container), 80)


def flip_zeros_of_superblock(container: Path) -> None:
    flip(first_shard(container), 3000)


def flip_table(container: Path) -> None:
    flip(expert_shard(container), 4096 + 50)


def flip_layouts(container: Path) -> None:
    flip_in_section(expert_shard(container), "LAYT", 60)


def flip_index(container: Path) -> None:
    flip_in_section(expert_shard(container), "EXPT", 100)


def flip_padding_before_blocks(container: Path) -> None:
    shard = expert_shard(container)
    _, offset, _ = section_entries(shard.read_bytes())["BLKS"]
    flip(shard, offset - 1)


def flip_metadata(container: Path) -> None:
    flip_in_section(first_shard(container), "META", 30)


def cut_short(container: Path) -> None:
    shard = expert_shard(container)
    os.truncate(shard, shard.stat().st_size - 200_000)


def make_longer(container: Path) -> None:
    with expert_shard(container).open("ab") as stream:
        stream.write(b"more")


def remove_shard(container: Path) -> None:
    expert_shard(container).unlink()


def zero_the_start(container: Path) -> None:
    shard = expert_shard(container)
    data = shard.read_bytes()
    shard.write_bytes(bytes(100_000) + data[100_000:])


def change_config(container: Path) -> None:
    flip(container / "config.json", 5)


def remove_tokenizer(container: Path) -> None:
    (container / "tokenizer.json").unlink()


def flip_manifest(container: Path) -> None:
    flip(container / "kexp.json", 30)


def change_in_manifest(container: Path, key: str, old: str, new: str) -> None:
    """Change what stays valid JSON, so that only a comparison can tell."""
    path = container / "kexp.json"
    text = path.read_text()
    head, _, tail = text.partition(f'"{key}":')
    assert old in tail
    path.write_text(f'{head}"{key}":{tail.replace(old, new, 1)}')


def change_set_root_in_manifest(container: Path) -> None:
    root = json.loads((container / "kexp.json").read_bytes())["set_root"]
    change_in_manifest(container, "set_root", root, root[::-1])


def change_shard_root_in_manifest(container: Path) -> None:
    root = json.loads((container / "kexp.json").read_bytes())["shards"][-1]["shard_root"]
    change_in_manifest(container, "shards", root, root[::-1])


def change_shard_size_in_manifest(container: Path) -> None:
    size = json.loads((container / "kexp.json").read_bytes())["shards"][-1]["size"]
    change_in_manifest(container, "shards", f'"size":{size}', f'"size":{size - 16384}')


def change_file_digest_in_manifest(container: Path) -> None:
    digest = json.loads((container / "kexp.json").read_bytes())["files"][0]["sha256"]
    change_in_manifest(container, "files", digest, digest[::-1])


Damage = Callable[[Path], None]
# What the weights and the rest of the set tell between them.
BY_CHECKPOINT: list[Damage] = [
    flip_block,
    flip_two_blocks_and_dense,
    flip_dense,
    flip_dense_header,
    flip_superblock,
    flip_set_root,
    flip_zeros_of_superblock,
    flip_table,
    flip_layouts,
    flip_index,
    flip_padding_before_blocks,
    cut_short,
    make_longer,
    change_config,
    remove_tokenizer,
]
BY_COPY_ONLY: list[Damage] = [
    flip_metadata,
    flip_manifest,
    change_set_root_in_manifest,
    change_shard_root_in_manifest,
    change_shard_size_in_manifest,
    change_file_digest_in_manifest,
]
# An index that went with its blocks: from a checkpoint only when the metadata is elsewhere.
BY_CHECKPOINT_IN_SHARDS: list[Damage] = [remove_shard, zero_the_start]


def assert_whole(container: Path, whole: Path) -> None:
    assert verify(container).ok
    for path in whole.iterdir():
        assert (container / path.name).read_bytes() == path.read_bytes(), path.name
    assert {path.name for path in container.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize("damage", [*BY_CHECKPOINT, *BY_CHECKPOINT_IN_SHARDS, *BY_COPY_ONLY])
def test_from_another_copy(container: Path, whole: Path, damage: Damage) -> None:
    damage(container)
    assert not verify(container).ok
    summary = repair(container, str(whole))
    assert summary.is_damaged
    assert summary.bytes_written or damage is make_longer
    assert_whole(container, whole)


@pytest.mark.parametrize("damage", BY_CHECKPOINT)
def test_from_the_checkpoint(
    container: Path, whole: Path, checkpoint: Path, damage: Damage
) -> None:
    damage(container)
    assert repair(container, str(checkpoint)).is_damaged
    assert_whole(container, whole)


@pytest.mark.parametrize("damage", BY_CHECKPOINT_IN_SHARDS)
def test_a_lost_index(container: Path, whole: Path, checkpoint: Path, damage: Damage) -> None:
    damage(container)
    if len(list(whole.glob("*.kexp"))) > 1:
        repair(container, str(checkpoint))
        assert_whole(container, whole)
        return
    with pytest.raises(PackError, match="another copy of the container"):
        repair(container, str(checkpoint))


@pytest.mark.parametrize("damage", BY_COPY_ONLY)
def test_what_a_checkpoint_cannot_give_is_said(
    container: Path, checkpoint: Path, damage: Damage
) -> None:
    damage(container)
    before = {path.name: path.read_bytes() for path in container.iterdir()}
    wanted = "another copy of the container|other bytes than were packed"
    with pytest.raises((PackError, KexpError), match=wanted):
        repair(container, str(checkpoint))
    assert {path.name: path.read_bytes() for path in container.iterdir()} == before


def test_a_whole_container_is_left_alone(container: Path, whole: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in container.iterdir()}
    summary = repair(container, "no/such/source/anywhere")
    assert not summary.is_damaged
    assert not summary.bytes_written
    assert {path: path.stat().st_mtime_ns for path in container.iterdir()} == stamps


def test_a_dry_run_writes_nothing(container: Path, checkpoint: Path) -> None:
    flip_two_blocks_and_dense(container)
    before = expert_shard(container).read_bytes()
    summary = repair(container, str(checkpoint), dry_run=True)
    assert len(summary.blocks) == 2
    assert summary.dense == [first_shard(container).name]
    assert summary.bytes_fetched == summary.bytes_written == 0
    assert expert_shard(container).read_bytes() == before


@pytest.mark.parametrize("damage", [flip_block, flip_dense, change_config])
def test_a_wrong_source_is_refused(
    container: Path, checkpoint: Path, tmp_path: Path, damage: Damage
) -> None:
    wrong = make_checkpoint(tmp_path / "wrong", "mixtral", overrides=SIZES, dtype="float16", seed=1)
    (wrong / "config.json").write_text(
        json.dumps(json.loads((checkpoint / "config.json").read_text()) | {"rope_theta": 1.0})
    )
    damage(container)
    before = {path.name: path.read_bytes() for path in container.iterdir()}
    with pytest.raises(PackError, match="other bytes than were packed"):
        repair(container, str(wrong))
    assert {path.name: path.read_bytes() for path in container.iterdir()} == before


def test_a_copy_of_another_model_is_refused(
    container: Path, checkpoint: Path, tmp_path: Path
) -> None:
    wrong = make_checkpoint(tmp_path / "wrong", "mixtral", overrides=SIZES, dtype="float16", seed=1)
    convert(wrong, tmp_path / "other")
    flip_block(container)
    before = expert_shard(container).read_bytes()
    with pytest.raises(PackError, match="is another model, or another conversion"):
        repair(container, str(tmp_path / "other"))
    assert expert_shard(container).read_bytes() == before


def test_a_container_quantized_while_it_was_packed(tmp_path: Path) -> None:
    published = make_published(tmp_path / "published", "qwen3_moe")
    container = tmp_path / "container"
    convert(published, container, quantization=Quantization(4, 32))
    whole = Path(shutil.copytree(container, tmp_path / "whole"))
    flip_block(container)
    flip_dense(container)
    summary = repair(container, str(published))
    assert len(summary.blocks) == 1
    assert_whole(container, whole)


@pytest.fixture
def hub(checkpoint: Path, whole: Path) -> Iterator[HubStub]:
    with serve_hub() as stub:
        stub.add(CHECKPOINT_ID, checkpoint)
        stub.add(CONTAINER_ID, whole)
        yield stub


def block_bytes(container: Path) -> int:
    with open_set(container) as opened:
        return opened.layout(opened.layers[0]).payload_bytes


@pytest.mark.parametrize("source", [CHECKPOINT_ID, CONTAINER_ID])
def test_from_the_hub_by_ranges(
    hub: HubStub, container: Path, whole: Path, tmp_path: Path, source: str
) -> None:
    flip_block(container)
    arguments = ("repair", str(container), "--from", source, "--json")
    done = run_with_hub(hub, tmp_path / "hf", "kandiga_pack", *arguments)
    assert done.returncode == 0, done.stderr
    assert_whole(container, whole)
    summary = json.loads(done.stdout)
    assert len(summary["blocks"]) == 1
    assert summary["bytes_fetched"] == hub.sent_bytes()
    assert summary["requests"] == len(hub.requests)
    # Beside the block: kexp.json or its absence, and 32 KiB for the header of the one file.
    wanted = block_bytes(container)
    assert wanted * 0.99 <= hub.sent_bytes() <= wanted + 40_000


@pytest.mark.parametrize("damage", [flip_dense, flip_dense_header, change_config])
def test_other_damage_from_a_checkpoint_on_the_hub(
    hub: HubStub, container: Path, whole: Path, tmp_path: Path, damage: Damage
) -> None:
    damage(container)
    arguments = ("repair", str(container), "--from", CHECKPOINT_ID)
    done = run_with_hub(hub, tmp_path / "hf", "kandiga_pack", *arguments)
    assert done.returncode == 0, done.stderr
    assert_whole(container, whole)


def test_the_recorded_repository_at_its_commit(hub: HubStub, tmp_path: Path) -> None:
    container = tmp_path / "container"
    arguments = ("convert", CHECKPOINT_ID, str(container))
    done = run_with_hub(hub, tmp_path / "hf", "kandiga_pack", *arguments)
    assert done.returncode == 0, done.stderr
    whole = Path(shutil.copytree(container, tmp_path / "whole"))
    # What main holds later is another model.
    hub.repositories[CHECKPOINT_ID].commit({"model.safetensors": b"something else"})
    flip_block(container)
    done = run_with_hub(hub, tmp_path / "other", "kandiga_pack", "repair", str(container))
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
    assert_whole(container, whole)
