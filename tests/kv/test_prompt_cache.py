"""Prompt caches on disk: saved, loaded, trimmed, reused; refused when they do not fit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from kandiga_run.cli import main
from kandiga_run.engine import Engine, load_engine
from kandiga_run.errors import RunError
from packed import PackedModels

TOKENS = np.random.default_rng(1).integers(3, 300, 360).astype(np.int32)
KEY = "kandiga_prompt_cache"
Open = Callable[..., Engine]


@pytest.fixture
def open_engine(packed: PackedModels) -> Iterator[Open]:
    engines = []

    def open_one(family: str = "qwen3_moe", **options: Any) -> Engine:
        engines.append(load_engine(packed(family).container, engine="native", **options))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


def saved(engine: Engine, path: Path, count: int = 300) -> Path:
    state = engine.new_state(400)
    engine.forward(TOKENS[:count], state)
    engine.save_state(state, TOKENS[:count].tolist(), path)
    return path


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_next"])
@pytest.mark.parametrize("kv", ["fp16", "k4v3", "auto"])
def test_a_loaded_state_goes_on_as_the_saved_one(
    open_engine: Open, tmp_path: Path, family: str, kv: str
) -> None:
    engine = open_engine(family, kv=kv)
    state = engine.new_state(400)
    engine.forward(TOKENS[:300], state)
    engine.save_state(state, TOKENS[:300].tolist(), tmp_path / "state")
    want = engine.forward(TOKENS[300:], state)
    other = open_engine(family, kv=kv)
    loaded, tokens = other.load_state(tmp_path / "state", 400)
    assert (loaded.position, tokens) == (300, TOKENS[:300].tolist())
    assert (loaded.kv_format, loaded.can_trim) == (state.kv_format, state.can_trim)
    np.testing.assert_array_equal(other.forward(TOKENS[300:], loaded), want)


def test_a_loaded_state_can_be_trimmed(open_engine: Open, tmp_path: Path) -> None:
    engine = open_engine(kv="kv4")
    saved(engine, tmp_path / "state")
    first, _ = engine.load_state(tmp_path / "state", 400)
    second, _ = engine.load_state(tmp_path / "state", 400)
    for state in (first, second):
        state.trim(170)
    assert first.position == 130
    np.testing.assert_array_equal(
        engine.forward(TOKENS[130:], first), engine.forward(TOKENS[130:], second)
    )


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Write the file anew after `change(document, arrays)`."""
    with safe_open(path, "np") as file:
        document = json.loads(file.metadata()[KEY])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(document, arrays)
    save_file(arrays, path, metadata={KEY: json.dumps(document)})


def flip(document: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["0.blocks"][0, 1000] ^= 1


def set_version(document: dict[str, Any], arrays: dict[str, Any]) -> None:
    document["version"] = 9


def drop_tokens(document: dict[str, Any], arrays: dict[str, Any]) -> None:
    document["tokens"] = document["tokens"][:7]


def other_model(document: dict[str, Any], arrays: dict[str, Any]) -> None:
    document["model"] = "0" * 64


def other_format(document: dict[str, Any], arrays: dict[str, Any]) -> None:
    document["layers"][0]["format"] = "kv3"


def fewer_layers(document: dict[str, Any], arrays: dict[str, Any]) -> None:
    document["layers"].pop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, r"damaged \(SHA-256 differs\)"),
        (set_version, "of version 9, this program knows 2"),
        (drop_tokens, "layers of .300. tokens, wanted 7"),
        (other_model, "a prompt cache of model '0000"),
        (other_format, "layer 0 does not fit: held as kv3, wanted k4v3"),
        (fewer_layers, "layers, the model has"),
    ],
)
def test_files_that_do_not_fit(
    open_engine: Open, tmp_path: Path, change: Callable[..., None], message: str
) -> None:
    engine = open_engine(kv="k4v3")
    path = saved(engine, tmp_path / "state")
    rewritten(path, change)
    with pytest.raises(RunError, match=message):
        engine.load_state(path, 400)


def test_files_that_are_none(open_engine: Open, tmp_path: Path) -> None:
    engine = open_engine()
    path = tmp_path / "state"
    with pytest.raises(RunError, match="cannot read the prompt cache"):
        engine.load_state(path, 400)
    path.write_bytes(b"not a prompt cache")
    with pytest.raises(RunError, match="cannot read the prompt cache"):
        engine.load_state(path, 400)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(RunError, match="not a prompt cache of kandiga"):
        engine.load_state(path, 400)


def test_settings_must_agree(open_engine: Open, tmp_path: Path) -> None:
    path = saved(open_engine(kv="k4v3"), tmp_path / "state")
    with pytest.raises(RunError, match="kv 'k4v3', this run has 'kv3'"):
        open_engine(kv="kv3").load_state(path, 400)
    with pytest.raises(RunError, match=r"of num_experts_per_token [2-9], this run has 1"):
        open_engine(kv="k4v3", num_experts_per_token=1).load_state(path, 400)
    with pytest.raises(RunError, match="of model"):
        open_engine("qwen3_next", kv="k4v3").load_state(path, 400)
    with pytest.raises(RunError, match="300 tokens, there is room for 299"):
        open_engine(kv="k4v3").load_state(path, 299)


def test_a_failed_write_leaves_the_file_there_was(open_engine: Open, tmp_path: Path) -> None:
    engine = open_engine(kv="k4v3")
    state = engine.new_state(10)
    engine.forward(TOKENS[:5], state)
    with pytest.raises(RunError, match="cannot write the prompt cache"):
        engine.save_state(state, TOKENS[:5].tolist(), tmp_path / "missing" / "state")
    with pytest.raises(ValueError, match="4 tokens, the state has seen 5"):
        engine.save_state(state, TOKENS[:4].tolist(), tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_command_line_reuses_the_prompt(
    packed: PackedModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = str(packed("qwen3_moe").container), tmp_path / "state"
    options = ["--max-tokens", "4", "--engine", "native", "--json", "--temperature", "0", "--raw"]

    def answer(prompt: str, *more: str) -> tuple[dict[str, Any], str]:
        assert main(["run", folder, prompt, *options, *more]) == 0
        captured = capsys.readouterr()
        return json.loads(captured.out), captured.err

    first, _ = answer("a b c d e", "--prompt-cache", str(path))
    assert path.exists()
    again, notice = answer("a b c d e", "--prompt-cache", str(path))
    assert again["token_ids"] == first["token_ids"]
    reused = again["usage"]["reused_prompt_tokens"]
    assert reused == again["usage"]["prompt_tokens"] - 1 > 0
    assert f"{reused} of {reused + 1} prompt tokens from {path}" in notice
    other, _ = answer("a b f", "--prompt-cache", str(path))
    assert other["token_ids"] == answer("a b f")[0]["token_ids"]
    assert 0 < other["usage"]["reused_prompt_tokens"] < other["usage"]["prompt_tokens"]
