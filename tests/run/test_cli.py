"""`kandiga-run` as a user starts it: processes, pipes, exit codes, real tiny containers."""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from formats import open_set
from kandiga_command import KANDIGA_RUN, TIMEOUT_SECONDS, kandiga_run
from kandiga_run.cli import main
from kandiga_run.engine import load_engine
from kandiga_run.terminal.exit_codes import ExitCode
from kandiga_run.tokenizer.prompts import Prompts
from packed import PackedModels
from wrong_bit import flip_bit

ENDLESS = ("--max-tokens", "1000000", "--context", "2000000")


def ok(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    result = kandiga_run(*arguments, text=text)
    assert result.returncode == 0, result.stderr
    return result


def as_json(*arguments: str | Path, text: str = "") -> dict[str, Any]:
    result: dict[str, Any] = json.loads(ok(*arguments, "--json", text=text).stdout)
    return result


@pytest.fixture(scope="module")
def model(packed: PackedModels) -> Path:
    return packed("qwen3_moe").container


@pytest.fixture(scope="module")
def endless_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model without a stop token: it answers until it is stopped."""
    folder = tmp_path_factory.mktemp("endless") / "model"
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": []}')
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


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
        state = engine.new_state(len(prompt) + 24)
        logits = engine.forward(np.array(prompt, np.int32), state)
        wanted: list[int] = []
        while len(wanted) < 24 and (not wanted or wanted[-1] not in prompts.stop_token_ids):
            wanted.append(int(logits[-1].argmax()))
            logits = engine.forward(np.array(wanted[-1:], np.int32), state)
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


def num_moe_layers(model: Path) -> int:
    with open_set(model) as opened:
        return len(opened.layers)


class TestFailures:
    """One line on stderr, and an exit code that says which kind."""

    def check(self, code: ExitCode, line: str, *arguments: str | Path, text: str = "") -> None:
        result = kandiga_run(*arguments, text=text)
        assert result.returncode == code, result.stderr
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("kandiga-run: ")
        assert line in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["run"], "no MODEL named and none remembered"),
            (["walk"], "no command 'walk': one of"),
            (["run", "m", "p", "--bogus"], "No such option"),
            (["run", "m", "p", "--top-p", "2"], "Invalid value for '--top-p'"),
            (["run", "m", "p", "--memory", "2"], "wanted a number and a unit, like 2GB"),
            (["run", "m", "p", "--memory", "2XB"], "size '2XB'"),
            (["run", "m", "p", "--fast", "--experts", "2"], "give one of them"),
            (["run", "m", "p", "--raw", "--system", "s"], "no place for --system"),
            (["run", "m", "  "], "the prompt is empty"),
            (["run", "m", "-"], "the prompt is empty"),
            (["chat", "m", "p"], "unexpected extra argument"),
        ],
    )
    def test_usage(self, arguments: list[str], line: str) -> None:
        self.check(ExitCode.USAGE, line, *arguments)

    @pytest.mark.parametrize("command", ["run", "chat"])
    def test_missing_model(self, command: str, tmp_path: Path) -> None:
        self.check(ExitCode.UNREADABLE, "nowhere", command, tmp_path / "nowhere", text="Hello")

    def test_folder_without_container(self, tmp_path: Path) -> None:
        self.check(ExitCode.UNREADABLE, str(tmp_path), "run", tmp_path, "Hello")

    def test_missing_tokenizer(self, model: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(model, folder)
        (folder / "tokenizer.json").unlink()
        line = "tokenizer.json: missing"
        self.check(ExitCode.UNREADABLE, line, "run", folder, "Hello")

    def test_base_model_in_chat(self, model: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(model, folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        del settings["chat_template"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        self.check(ExitCode.FAILED, "no chat template", "run", folder, "Hello")
        self.check(ExitCode.FAILED, "no chat template", "chat", folder, text="Hello\n")
        ok("run", folder, "Hello", "--raw", "--max-tokens", "2")

    def test_damaged_expert(self, model: Path, tmp_path: Path) -> None:
        """The line names file, layer, expert and offset; --check off computes on regardless."""
        folder = tmp_path / "model"
        shutil.copytree(model, folder)
        damage_every_expert(folder)
        result = kandiga_run("run", folder, "Hello", "--max-tokens", "2")
        assert result.returncode == ExitCode.FAILED
        assert "(E_BLOCK_CRC)" in result.stderr
        assert ".kexp: layer 0 expert " in result.stderr
        assert result.stderr.count("\n") == 1
        assert (
            kandiga_run("run", folder, "Hello", "--max-tokens", "2", "--check", "off").returncode
            == 0
        )

    def test_impossible_choices(self, model: Path) -> None:
        self.check(ExitCode.FAILED, "1 to 8 experts", "run", model, "Hello", "--experts", "9")
        line = "the smallest that works is"
        self.check(ExitCode.FAILED, line, "run", model, "Hello", "--memory", "1MB")

    @pytest.mark.parametrize("command", ["run", "chat"])
    def test_the_smallest_budget_named_is_one_that_works(self, command: str, model: Path) -> None:
        arguments = (model, "--max-tokens", "100", "--engine", "native")
        refused = kandiga_run(command, *arguments, "--memory", "1MB", text="Hello\n")
        assert refused.returncode == ExitCode.FAILED
        smallest = re.search(r"the smallest that works is (\d+MiB)$", refused.stderr.strip())
        assert smallest, refused.stderr
        ok(command, *arguments, "--memory", smallest[1], text="Hello\n")

    def test_an_instruction_set_that_is_not_here(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KANDIGA_ISA", "sse9")
        line = "KANDIGA_ISA: 'sse9' cannot run here; available: scalar"
        self.check(ExitCode.FAILED, line, "run", model, "Hello")

    def test_a_checkpoint_that_is_not_packed(self, packed: PackedModels) -> None:
        line = "so this is no .kexp container; kandiga-pack convert makes one of a checkpoint"
        self.check(ExitCode.UNREADABLE, line, "run", packed("qwen3_moe").checkpoint, "Hello")

    def test_prompt_longer_than_the_model(self, model: Path) -> None:
        line = "tokens and the context 512: shorten the prompt"
        self.check(ExitCode.FAILED, line, "run", model, "Hello " * 600)

    @pytest.mark.parametrize("command", ["run", "chat"])
    def test_input_that_is_not_text(self, command: str, model: Path) -> None:
        result = subprocess.run(
            [*KANDIGA_RUN, command, model], input=b"Hell\xf6\n", capture_output=True, check=False
        )
        assert result.returncode == ExitCode.FAILED
        line = b"kandiga-run: standard input is not UTF-8 text: byte 0xf6 at offset 4\n"
        assert result.stderr == line

    def test_locale_without_the_characters(self, model: Path) -> None:
        result = subprocess.run(
            [*KANDIGA_RUN, "run", model, "Hello", "--max-tokens", "20"],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert result.returncode == ExitCode.OK, result.stderr
        assert b"?" in result.stdout

    def test_context_beyond_the_model_is_told(self, model: Path) -> None:
        result = ok("run", model, "Hello", "--max-tokens", "1", "--context", "1000")
        assert "--context 1000: the model was made for 512" in result.stderr

    def test_debug_shows_the_traceback(self, tmp_path: Path) -> None:
        result = kandiga_run("run", tmp_path, "Hello", "--debug")
        assert result.returncode == ExitCode.UNREADABLE
        assert result.stderr.startswith("Traceback")
        assert result.stderr.splitlines()[-1].startswith("kandiga-run: ")

    def test_bugs_are_one_line_too(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise LookupError("two\nlines")

        monkeypatch.setattr("kandiga_run.engine.load_engine", fail)
        assert main(["run", str(model), "Hello"]) == ExitCode.FAILED
        message = capsys.readouterr().err
        assert message.startswith("kandiga-run: internal error: LookupError: two lines (--debug")

    def test_interrupt(self, endless_model: Path) -> None:
        arguments = ["run", endless_model, "Hello", *ENDLESS, "--quiet"]
        process = subprocess.Popen(
            [*KANDIGA_RUN, *arguments], bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.read(1), "the answer has begun"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
        assert process.returncode == ExitCode.INTERRUPTED
        assert stdout.endswith(b"\n")
        assert stderr == b"kandiga-run: interrupted\n"

    def test_reader_that_leaves(self, endless_model: Path) -> None:
        """`| head` is no failure, and the generation stops."""
        arguments = ["run", endless_model, "Hello", *ENDLESS, "--quiet"]
        process = subprocess.Popen(
            [*KANDIGA_RUN, *arguments], bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(TIMEOUT_SECONDS) == ExitCode.OK
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()


def damage_every_expert(folder: Path) -> None:
    with open_set(folder) as opened:
        extents = [
            opened.extent(layer, expert)
            for layer in opened.layers
            for expert in range(opened.num_experts(layer))
        ]
        paths = [shard.path for shard in opened.shards]
    for extent in extents:
        flip_bit(paths[extent.shard], extent.offset_bytes)


class TestHelp:
    """Help answers at once and tells the exit codes."""

    @pytest.mark.parametrize("arguments", [[], ["run"], ["chat"]])
    def test_exit_codes_are_listed(self, arguments: list[str]) -> None:
        text = " ".join(ok(*arguments, "--help").stdout.split())
        for code in ExitCode:
            assert f" {int(code)} " in text

    def test_sizes_are_explained(self) -> None:
        text = " ".join(ok("run", "--help").stdout.split())
        assert "2GB (1000-based) or 2GiB (1024-based)" in text

    def test_no_command(self) -> None:
        result = kandiga_run()
        assert result.returncode == ExitCode.USAGE
        assert "Usage: kandiga-run" in result.stderr

    def test_heavy_libraries_wait_for_a_command(self) -> None:
        """numpy, rich, jinja2 and the engines cost more than the whole rest of the start."""
        heavy = ("numpy", "rich", "jinja2", "tokenizers", "prompt_toolkit", "formats", "mlx")
        code = (
            "import sys, kandiga_run.cli\n"
            "try: kandiga_run.cli.main(['run', '--help'])\n"
            "except SystemExit: pass\n"
            f"sys.exit(' '.join(name for name in {heavy} if name in sys.modules) or 0)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


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


class TestChatThroughPipes:
    """Each line is answered; nothing but answers on stdout."""

    def test_turns_share_a_history(self, model: Path) -> None:
        result = ok("chat", model, "--max-tokens", "8", "--quiet", text="Hello\nAnd?\n")
        prompts = Prompts(model)
        engine = load_engine(model)
        first = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        second = "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
        tokens: list[int] = []
        wanted = ""
        for new in (first, second):
            tokens += prompts.encode(new)
            answer = direct_greedy(engine, tokens, 8, prompts.stop_token_ids)
            text = prompts.decode(answer)
            wanted += text if text.endswith("\n") else f"{text}\n"
            tokens += [token for token in answer if token not in prompts.stop_token_ids]
        engine.close()
        assert result.stdout == wanted
        assert result.stderr == ""

    def test_state_is_kept(self, model: Path) -> None:
        result = ok("chat", model, "--max-tokens", "8", text="Hello\nAnd?\n/stats\n")
        assert "more reused" in result.stderr

    def test_commands(self, model: Path) -> None:
        text = "/help\n/system Be brief.\n/reset\n/nonsense\n/exit\nHello\n"
        result = ok("chat", model, text=text)
        assert result.stdout == ""
        assert "system prompt: Be brief." in result.stderr
        assert "conversation forgotten" in result.stderr
        assert "/nonsense: no such command" in result.stderr

    def test_last_line_without_newline(self, model: Path) -> None:
        assert ok("chat", model, "--max-tokens", "4", text="Hello").stdout

    def test_failure_ends_it(self, model: Path) -> None:
        result = kandiga_run("chat", model, "--context", "40", text="Hello " * 60 + "\nHello\n")
        assert result.returncode == ExitCode.FAILED
        assert "context 40: start over (/reset)" in result.stderr


def direct_greedy(engine: Any, prompt: list[int], count: int, stops: frozenset[int]) -> list[int]:
    state = engine.new_state(len(prompt) + count)
    logits = engine.forward(np.array(prompt, np.int32), state)
    answer: list[int] = []
    while len(answer) < count and (not answer or answer[-1] not in stops):
        answer.append(int(logits[-1].argmax()))
        logits = engine.forward(np.array(answer[-1:], np.int32), state)
    return answer


class Terminal:
    """A process on a pseudo-terminal of its own, as a person has it."""

    def __init__(self, *arguments: str | Path) -> None:
        main_end, other_end = pty.openpty()
        self._fd = main_end
        #: What the screen was told and no `wait_for` has passed.
        self.unread = ""
        # The terminal of a test answers no questions about the cursor.
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self._process = subprocess.Popen(
            [*KANDIGA_RUN, *map(str, arguments)],
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(other_end)

    def wait_for(self, text: str) -> None:
        """Read up to the next `text`."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while text not in self.unread:
            piece = self._read(deadline - time.monotonic())
            assert piece, f"waited for {text!r}, seen {self.unread!r}"
            self.unread += piece
        self.unread = self.unread.partition(text)[2]

    def wait_for_answer(self) -> None:
        """Wait until Ctrl-C is a signal again, not a key of the line editor, and text comes."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not termios.tcgetattr(self._fd)[LOCAL_MODES] & termios.ISIG:
            assert time.monotonic() < deadline, "the line editor still has the terminal"
            time.sleep(0.001)
        while self._read(0):  # what the line editor has written
            pass
        assert self._read(TIMEOUT_SECONDS), "no answer"

    def enter(self, text: str) -> None:
        """Type at the next prompt; before it the keys would reach a terminal in another mode."""
        self.wait_for(LINE_BEGINS)
        self.press(text)

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def exit_code(self) -> int:
        while piece := self._read(TIMEOUT_SECONDS):
            self.unread += piece
        return self._process.wait(TIMEOUT_SECONDS)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def _read(self, seconds: float) -> str:
        """Return what comes within some seconds, or "" when nothing does or nothing more can."""
        ready, _, _ = select.select([self._fd], [], [], max(0, seconds))
        try:
            return os.read(self._fd, 65536).decode(errors="replace") if ready else ""
        except OSError:  # the process has closed its end
            return ""


def _take_terminal() -> None:
    """Make the pseudo-terminal the controlling one, so that pressing Ctrl-C sends the signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


CTRL_C, CTRL_D, BACKSPACE, ARROW_UP = "\x03", "\x04", "\x7f", "\x1b[A"
LOCAL_MODES = 3  # in what termios.tcgetattr returns
# What prompt_toolkit writes when a line begins and when it is done: bracketed paste on and off.
LINE_BEGINS, LINE_DONE = "\x1b[?2004h", "\x1b[?2004l"


class TestChatOnATerminal:
    """What a person sees and can press."""

    @pytest.fixture
    def terminal(self, endless_model: Path) -> Iterator[Terminal]:
        terminal = Terminal("chat", endless_model, *ENDLESS)
        terminal.wait_for("/help lists commands")
        yield terminal
        terminal.close()

    def test_answers_until_ctrl_c_and_leaves_at_ctrl_d(self, terminal: Terminal) -> None:
        terminal.enter("/stats\r")
        terminal.wait_for("no answer yet")
        for _ in range(2):
            terminal.enter("Hello\r")
            terminal.wait_for(LINE_DONE)
            terminal.wait_for_answer()
            terminal.press(CTRL_C)
            terminal.wait_for("stopped")
        terminal.enter("/stats\r")
        terminal.wait_for("more reused")
        terminal.wait_for("tokens/s")
        terminal.enter(CTRL_D)
        assert terminal.exit_code() == ExitCode.OK

    def test_exit_command(self, terminal: Terminal) -> None:
        terminal.enter("/exit\r")
        assert terminal.exit_code() == ExitCode.OK

    def test_line_editing(self, terminal: Terminal) -> None:
        """Ctrl-C drops a line, backspace corrects it, arrow up brings back the one before."""
        terminal.enter("nonsense" + CTRL_C)
        terminal.enter(f"/helq{BACKSPACE}p\r")
        terminal.wait_for("forget the conversation")
        terminal.enter(ARROW_UP + "\r")
        terminal.wait_for("forget the conversation")
