"""`kandiga-pack publish`: the real client against a Hub on this machine."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from checkpoints import make_checkpoint
from hub_stub import HubStub, run_with_hub, serve_hub
from kandiga_pack import Quantization, convert
from kandiga_pack import publish as publish_container
from kandiga_pack.model_card import read_source_card
from published import make_published

REPOSITORY = "me/tiny-mixtral-kexp"
SOURCE_CARD = """---
license: apache-2.0
language: [en, fr]
pipeline_tag: text-generation
base_model:
- mistralai/Mixtral-8x7B-v0.1
library_name: mlx
tags: [mlx, chat]
---
# A tiny model
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A container of three shards, from a checkpoint with a card."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint = make_checkpoint(folder / "checkpoint", "mixtral")
    (checkpoint / "README.md").write_text(SOURCE_CARD)
    (checkpoint / "LICENSE").write_text("Do what you like.")
    convert(checkpoint, folder / "container", shard_bytes=100_000)
    return folder / "container"


@pytest.fixture
def container(packed: Path, tmp_path: Path) -> Path:
    """A copy to be damaged, or to have things put beside."""
    return Path(shutil.copytree(packed, tmp_path / "container"))


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with serve_hub() as stub:
        yield stub


def publish(hub: HubStub, container: Path, *options: str, token: bool = True):
    home = container.parent / "hf"
    arguments = ("publish", str(container), REPOSITORY, *options)
    return run_with_hub(hub, home, "kandiga_pack", *arguments, token=token)


def num_puts(hub: HubStub) -> int:
    return sum(each.method == "PUT" and each.status == 200 for each in hub.requests)


def test_published_and_run_by_id(hub: HubStub, container: Path, tmp_path: Path) -> None:
    (container / "notes.txt").write_text("not part of the set")
    done = publish(hub, container, "--private", "--json")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories[REPOSITORY]
    summary = json.loads(done.stdout)
    assert summary["commit"] == repository.head
    assert repository.private
    # One commit beside the one that creation makes: nobody ever saw half a set.
    assert len(repository.commits) == 2
    pinned = json.loads((container / "kexp.json").read_bytes())
    names = {each["name"] for key in ("shards", "files") for each in pinned[key]}
    assert repository.files.keys() == names | {
        ".gitattributes",
        "LICENSE",
        "README.md",
        "kexp.json",
    }
    for name in names:
        assert repository.files[name] == (container / name).read_bytes(), name

    answers = []
    for model in (str(container), REPOSITORY):
        arguments = ("run", model, "hello", "--max-tokens", "8", "--json")
        done = run_with_hub(hub, tmp_path / "hf", "kandiga_run.cli", *arguments)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout)["text"])
    assert answers[0] == answers[1]

    puts = num_puts(hub)
    again = publish(hub, container, "--private", "--json")
    assert again.returncode == 0, again.stderr
    assert num_puts(hub) == puts
    assert len(repository.commits) == 2


def test_the_card(hub: HubStub, container: Path) -> None:
    done = publish(hub, container, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert not hub.requests
    text = json.loads(done.stdout)["card"]
    card = ModelCard(text)
    assert card.data.library_name == "kandiga"
    assert card.data.base_model == "mistralai/Mixtral-8x7B-v0.1"
    assert card.data.base_model_relation == "quantized"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.language == ["en", "fr"]
    assert set(card.data.tags) == {"kexp", "moe", "mlx"}
    manifest = json.loads((container / "kexp.json").read_bytes())
    assert manifest["set_root"] in text
    for shard in manifest["shards"]:
        assert f"| `{shard['name']}` | {shard['size']} | `{shard['shard_root']}` |" in text
    assert f"kandiga-run run {REPOSITORY}" in text
    assert (container / "README.md").read_text() == SOURCE_CARD
    named = publish(hub, container, "--dry-run", "--base-model", "one/other")
    assert named.returncode == 0, named.stderr
    assert "base_model: one/other" in named.stdout


def test_the_card_of_converted_weights(tmp_path: Path) -> None:
    published = make_published(tmp_path / "published", "qwen3_moe")
    convert(published, tmp_path / "container", quantization=Quantization(4, 32))
    card = publish_container(tmp_path / "container", REPOSITORY, dry_run=True).card
    assert "that `mlx_lm.convert` makes of the checkpoint, quantized to 4 bits." in card


@pytest.mark.parametrize("text", ["", "no front matter", "---\n: : :\n---\n", "---\n- 1\n---\n"])
def test_cards_that_say_nothing(text: str) -> None:
    assert read_source_card(text).data == {}


def test_an_interrupted_upload_goes_on(hub: HubStub, container: Path) -> None:
    hub.allowed_puts = 2
    done = publish(hub, container)
    assert done.returncode == 1, done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    assert "could not be uploaded" in done.stderr
    assert "run the same command again" in done.stderr
    assert "kexp.json" not in hub.repositories[REPOSITORY].files
    hub.allowed_puts = None
    done = publish(hub, container)
    assert done.returncode == 0, done.stderr
    shards = list(container.glob("*.kexp"))
    assert len(shards) == 3
    assert num_puts(hub) == len(shards), "a file that was there was sent again"


def test_an_edited_card_stays_and_stale_shards_go(hub: HubStub, container: Path) -> None:
    assert publish(hub, container).returncode == 0
    repository = hub.repositories[REPOSITORY]
    edited = repository.files["README.md"] + b"\nA word of mine.\n"
    old = {"README.md": edited, "model-00001-of-00099.kexp": b"of another conversion"}
    repository.commit(repository.files | old)
    done = publish(hub, container, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["card_was_kept"]
    assert summary["removed"] == ["model-00001-of-00099.kexp"]
    assert repository.files["README.md"] == edited
    assert "model-00001-of-00099.kexp" not in repository.files


def test_a_damaged_container_is_not_published(hub: HubStub, container: Path) -> None:
    shard = max(container.glob("*.kexp"))
    data = bytearray(shard.read_bytes())
    data[-20_000] ^= 1
    shard.write_bytes(data)
    done = publish(hub, container)
    assert done.returncode == 1
    assert "E_BLOCK_CRC" in done.stderr
    assert "kandiga-pack repair" in done.stderr
    assert not hub.requests


def test_refusals(hub: HubStub, container: Path) -> None:
    done = publish(hub, container, token=False)
    assert done.returncode == 3
    assert "log in with `hf auth login`" in done.stderr
    assert not hub.requests
    assert publish(hub, container).returncode == 0
    done = publish(hub, container, "--private")
    assert done.returncode == 1
    assert "exists and is public" in done.stderr
    wrong = run_with_hub(hub, container.parent, "kandiga_pack", "publish", str(container), "name")
    assert wrong.returncode == 2
    assert "wanted user/name" in wrong.stderr
