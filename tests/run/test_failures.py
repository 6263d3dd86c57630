"""What goes wrong: one line on stderr, and an exit code that says which kind."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from formats import open_set
from kandiga_command import KANDIGA_RUN, TIMEOUT_SECONDS, kandiga_run, ok
from kandiga_run.cli import main
from kandiga_run.terminal.exit_codes import ExitCode
from packed import ENDLESS, PackedModels, endless_copy
from wrong_bit import flip_bit


@pytest.fixture(scope="module")
def model(packed: PackedModels) -> Path:
    return packed("qwen3_moe").container


@pytest.fixture(scope="module")
def endless_model(packed: PackedModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_copy(packed("qwen3_moe").container, tmp_path_factory.mktemp("endless") / "model")


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
