"""`kandiga-run run` as a user starts it: processes, pipes, exit codes, real tiny containers."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from formats import open_set
from greedy import direct_greedy
from kandiga_command import as_json, ok
from kandiga_run.engine import load_engine
from kandiga_run.tokenizer.prompts import Prompts
from packed import PackedModels


@pytest.fixture(scope="module")
def model(packed: PackedModels) -> Path:
    return packed("qwen3_moe").container


def num_moe_layers(model: Path) -> int:
    with open_set(model) as opened:
        return len(opened.layers)


class TestRun:
    """One prompt, one answer."""

    def test_text_is_the_text_of_the_json(self, model: Path) -> None:
        result = as_json("run", model, "Hello", "--max-tokens", "20")
        plain = ok("run", model, "Hello", "--max-tokens", "20")
        assert plain.stdout == result["text"] + ("" if result["text"].endswith("\n") else "\n")

    @pytest.mark.parametrize(
        ("family", "engine_name"),
        [
            ("mixtral", "native"),
            ("qwen3_moe", "native"),
            ("qwen3_next", "native"),
            ("qwen3_5_moe", "native"),
            ("qwen3_moe", "mlx"),
            ("olmoe", "mlx"),
        ],
    )
    def test_greedy_equals_a_direct_loop(
        self, packed: PackedModels, family: str, engine_name: Literal["native", "mlx"]
    ) -> None:
        """Template, encoding, prefill, decode and stop token add up to the bare engine's argmax."""
        container = packed(family).container
        options = ("--max-tokens", "24", "--temperature", "0", "--engine", engine_name)
        result = as_json("run", container, "Hello", *options)
        assert result["stats"]["engine"] == engine_name
        prompts = Prompts(container)
        prompt = prompts.encode(prompts.render([{"role": "user", "content": "Hello"}]))
        engine = load_engine(container, engine=engine_name)
        wanted = direct_greedy(engine, prompt, 24, prompts.stop_token_ids)
        engine.close()
        assert result["token_ids"] == wanted
        assert result["text"] == prompts.decode(wanted)
        assert result["usage"]["prompt_tokens"] == len(prompt)

    def test_json_says_what_was_run(self, model: Path) -> None:
        result = as_json("run", model, "Hello", "--max-tokens", "5")
        assert result["finish_reason"] in ("stop", "length")
        usage = result["usage"]
        assert usage["generated_tokens"] == len(result["token_ids"]) == 5
        assert usage["total_tokens"] == usage["prompt_tokens"] + 5
        stats = result["stats"]
        assert stats["engine"] == "native"
        assert stats["residency"] in ("mapped", "owned")
        assert stats["experts_per_token"] == {"native": 2, "used": 2}
        assert stats["is_lossy"] is False
        assert stats["kv"]["format"] == "f32"
        assert stats["prefill"]["tokens"] == usage["prompt_tokens"]
        assert stats["decode"]["tokens"] == 4
        assert stats["decode"]["tokens_per_second"] > 0
        assert stats["memory"]["resident_bytes"] > 0
        decode = stats["decode"]
        in_vain = decode["experts_read_ahead"] - decode["experts_read_ahead_used"]
        had = decode["experts_read"] - in_vain + decode["experts_reused"]
        assert had == decode["experts_requested"]
        assert decode["experts_requested"] == 4 * 2 * num_moe_layers(model)

    def test_owned_experts_are_read(self, model: Path) -> None:
        options = ("--max-tokens", "8", "--residency", "owned", "--memory", "1GB")
        result = as_json("run", model, "Hello", *options)
        assert result["stats"]["residency"] == "owned"
        with open_set(model) as opened:
            extent = opened.extent(opened.layers[0], 0)
        phases = [result["stats"]["prefill"], result["stats"]["decode"]]
        assert sum(phase["bytes_read"] for phase in phases) > 0
        assert all(
            phase["bytes_read"] == phase["experts_read"] * extent.block_bytes for phase in phases
        )
        mapped = as_json("run", model, "Hello", "--max-tokens", "8", "--residency", "mapped")
        assert mapped["token_ids"] == result["token_ids"]

    def test_figures_go_to_stderr(self, model: Path) -> None:
        result = ok("run", model, "Hello", "--max-tokens", "5", "--stats")
        assert "tokens/s" not in result.stdout
        names = ("prefill", "decode", "read a token", "memory charged", "KV cache", "engine")
        assert all(name in result.stderr for name in names)

    def test_prompt_from_standard_input(self, model: Path) -> None:
        options = ("--max-tokens", "5")
        given = as_json("run", model, "Hello\nthere", *options)["token_ids"]
        assert as_json("run", model, "-", *options, text="Hello\nthere")["token_ids"] == given
        assert as_json("run", model, *options, text="Hello\nthere")["token_ids"] == given

    def test_raw_text_has_no_template(self, model: Path) -> None:
        prompts = Prompts(model)
        usage = as_json("run", model, "Hello", "--raw", "--max-tokens", "2")["usage"]
        assert usage["prompt_tokens"] == len(prompts.encode_raw("Hello"))

    def test_system_message(self, model: Path) -> None:
        messages = [{"role": "system", "content": "Hi"}, {"role": "user", "content": "Hello"}]
        prompts = Prompts(model)
        usage = as_json("run", model, "Hello", "--system", "Hi", "--max-tokens", "2")["usage"]
        assert usage["prompt_tokens"] == len(prompts.encode(prompts.render(messages)))

    def test_stop_string(self, model: Path) -> None:
        whole = as_json("run", model, "Hello", "--max-tokens", "30")["text"]
        stop = re.findall("[a-z]{2,}", whole)[-1]
        result = as_json("run", model, "Hello", "--max-tokens", "30", "--stop", stop)
        assert result["text"] == whole[: whole.index(stop)]
        assert result["finish_reason"] == "stop"

    def test_seed(self, model: Path) -> None:
        options = ("--max-tokens", "20", "--temperature", "1.2", "--top-p", "0.95")

        def sample(*seed: str) -> dict[str, Any]:
            return as_json("run", model, "Hello", *options, *seed)

        first = sample("--seed", "1")
        assert sample("--seed", "1")["token_ids"] == first["token_ids"]
        assert sample("--seed", "2")["token_ids"] != first["token_ids"]
        drawn = sample()
        assert sample("--seed", str(drawn["seed"]))["token_ids"] == drawn["token_ids"]

    def test_sampling_as_the_model_recommends(self, model: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(model, folder)
        recommended = {"do_sample": True, "temperature": 1.2, "top_p": 0.95}
        (folder / "generation_config.json").write_text(json.dumps(recommended))
        options = ("--max-tokens", "20", "--seed", "1")
        explicit = ("--temperature", "1.2", "--top-p", "0.95")
        by_file = as_json("run", folder, "Hello", *options)["token_ids"]
        assert by_file == as_json("run", model, "Hello", *options, *explicit)["token_ids"]
        greedy = as_json("run", folder, "Hello", *options, "--temperature", "0")["token_ids"]
        assert greedy == as_json("run", model, "Hello", *options)["token_ids"] != by_file

    @pytest.mark.parametrize("option", [("--fast",), ("--experts", "1")])
    def test_lossy_choices_are_told(self, model: Path, option: tuple[str, ...]) -> None:
        result = ok("run", model, "Hello", "--max-tokens", "3", "--json", *option)
        assert result.stderr.startswith("lossy: experts a token 1 instead of the model's 2;")
        stats = json.loads(result.stdout)["stats"]
        assert stats["is_lossy"] is True
        assert stats["experts_per_token"] == {"native": 2, "used": 1}

    def test_more_experts_than_published_are_told(self, model: Path) -> None:
        result = ok("run", model, "Hello", "--max-tokens", "3", "--json", "--experts", "4")
        line = "not as published: experts a token 4 instead of the model's 2;"
        assert result.stderr.startswith(line)
        assert json.loads(result.stdout)["stats"]["experts_per_token"]["used"] == 4

    def test_quiet(self, model: Path) -> None:
        result = ok("run", model, "Hello", "--max-tokens", "3", "--fast", "--quiet")
        assert result.stderr == ""

    def test_length_is_told(self, model: Path) -> None:
        result = ok("run", model, "Hello", "--max-tokens", "3")
        assert result.stderr == "the answer ends at its limit of 3 tokens\n"

    def test_file_of_the_set_as_model(self, model: Path) -> None:
        (file,) = model.glob("*.kexp")
        by_file = as_json("run", file, "Hello", "--max-tokens", "5")["token_ids"]
        assert by_file == as_json("run", model, "Hello", "--max-tokens", "5")["token_ids"]


def test_native_run_loads_neither_mlx_nor_transformers(model: Path) -> None:
    code = (
        "import sys\n"
        "from kandiga_run.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "sys.exit(' '.join(n for n in ('mlx', 'transformers', 'torch') if n in sys.modules) or 0)"
    )
    arguments = ["run", model, "Hello", "--max-tokens", "3", "--stats"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
