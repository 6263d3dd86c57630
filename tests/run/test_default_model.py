"""The model that is taken when none is named, and a sentence in the place of a command."""

import json
import os
from pathlib import Path

import pytest

from kandiga_command import kandiga_run
from kandiga_run.commands.model_argument import reads_like_a_prompt
from kandiga_run.default_model import config_file, default_model, remember_default_model
from kandiga_run.errors import RunError
from packed import PackedModels

SHORT = ("--max-tokens", "4", "--json")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def model(packed: PackedModels) -> Path:
    return packed("qwen3_moe").container


def test_nothing_is_remembered_at_first(home: Path) -> None:
    assert default_model() is None
    for arguments in (["chat"], ["run"], ["bench"], ["What is it?"]):
        done = kandiga_run(*arguments)
        assert done.returncode == 2
        assert "no MODEL named and none remembered" in done.stderr
        assert "`kandiga-run setup`" in done.stderr
    assert not list(home.iterdir())


def test_remembering_keeps_other_choices(home: Path) -> None:
    config_file().parent.mkdir()
    config_file().write_text('{"other": [1]}')
    remember_default_model("someone/model")
    assert default_model() == "someone/model"
    assert json.loads(config_file().read_text())["other"] == [1]
    assert [each.name for each in config_file().parent.iterdir()] == ["config.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"default_model": 3}', "\udcff"])
def test_a_damaged_file_is_named(home: Path, text: str) -> None:
    config_file().parent.mkdir()
    config_file().write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match=r"config\.json: .*(JSON|wanted|UTF-8)"):
        default_model()


def test_a_sentence_is_answered_by_the_default_model(home: Path, model: Path) -> None:
    named = json.loads(kandiga_run("run", str(model), "Who are you?", *SHORT).stdout)
    remember_default_model(str(model))
    for arguments in (["Who are you?"], ["run", "Who are you?"]):
        done = kandiga_run(*arguments, *SHORT)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["token_ids"] == named["token_ids"]
    # Options may stand before it, and what echo adds to a piped one is no part of it.
    for arguments, text in ((["Who are you?"], ""), (["-"], "Who are you?\n")):
        done = kandiga_run(*SHORT, *arguments, text=text)
        assert json.loads(done.stdout)["token_ids"] == named["token_ids"]
    done = kandiga_run("--fast", "Who are you?", *SHORT)
    assert json.loads(done.stdout)["stats"]["is_lossy"] is True
    piped = kandiga_run("-", *SHORT, text="Who are you?")
    assert json.loads(piped.stdout)["token_ids"] == named["token_ids"]
    assert kandiga_run("chat", text="Hello\n").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--json", "chat"], "options stand behind the command: kandiga-run chat --json"),
        (["--memory", "2GB", "serve"], "kandiga-run serve --memory"),
        (["--nonsense", "Who are you?"], "No such option '--nonsense'"),
        (["--fast"], "no MODEL named"),
    ],
)
def test_options_before_a_command(home: Path, arguments: list[str], line: str) -> None:
    done = kandiga_run(*arguments)
    assert done.returncode == 2
    assert line in done.stderr


def test_the_variable_goes_first(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember_default_model("/nowhere")
    monkeypatch.setenv("KANDIGA_MODEL", str(model))
    assert kandiga_run("Who are you?", *SHORT).returncode == 0


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("chta", "did you mean 'chat'?"),
        ("Bench", "did you mean 'bench'?"),
        ("./somewhere", "`kandiga-run chat ./somewhere`"),
        ("user/model", "`kandiga-run chat user/model`"),
        ("qwerty", "a question of several words in quotes"),
    ],
)
def test_a_mistyped_command_is_not_a_prompt(
    home: Path, model: Path, word: str, wanted: str
) -> None:
    remember_default_model(str(model))
    done = kandiga_run(word)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"no command '{word}'" in done.stderr
    assert wanted in done.stderr


def test_a_path_with_a_blank_is_a_path(home: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    os.symlink(model, folder)
    assert not reads_like_a_prompt(str(folder))
    assert kandiga_run("run", str(folder), *SHORT, text="Hello").returncode == 0


def test_what_reads_like_a_prompt() -> None:
    prompts = ["Hi there", "Why?", "-", "你好", "Bonjour à tous", "Stop!", "tell me\nmore"]
    names = ["chta", "Qwen3.5-35B-A3B", "a/b", "/x/y", "--bogus", "serve", "model.kexp"]
    assert all(map(reads_like_a_prompt, prompts))
    assert not any(map(reads_like_a_prompt, names))
