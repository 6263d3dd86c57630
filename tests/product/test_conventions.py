"""What holds for every command of both programs: help, options, exit codes, ways to start them."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from kandiga_pack.cli import cli as pack_cli
from kandiga_pack.exit_codes import ExitCode as PackExitCode
from kandiga_run.cli import cli as run_cli
from kandiga_run.commands.model_argument import reads_like_a_prompt
from kandiga_run.terminal.exit_codes import ExitCode
from packed import Packed

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PROGRAMS = {"kandiga-run": run_cli, "kandiga-pack": pack_cli}
COMMANDS = [
    pytest.param(program, name, id=f"{program} {name}")
    for program, group in PROGRAMS.items()
    for name in group.commands
]
# What one kind of command has no use for: a script, an answer that is always text or always JSON.
WITHOUT = {
    ("kandiga-run completion", "--quiet"),
    ("kandiga-run completion", "--json"),
    ("kandiga-run completion", "--verbose"),
    ("kandiga-run completion", "--debug"),
    ("kandiga-run serve", "--json"),
    ("kandiga-pack validate", "--verbose"),
    ("kandiga-pack validate", "--debug"),
}


def start(*command: str | Path, text: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)


def examples(command: click.Command) -> list[str]:
    found = (command.epilog or "").partition("Examples:\n")[2].partition("\n\n")[0]
    return [line.strip() for line in found.splitlines()]


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_help_has_examples_that_parse_and_exit_codes(program: str, name: str) -> None:
    command = PROGRAMS[program].commands[name]
    assert command.help
    assert "Exit codes:" in (command.epilog or "")
    shown = [line for line in examples(command) if line]
    assert shown
    for line in shown:
        inner = re.search(r"\$\((.*?)\)", line)
        words = shlex.split((inner[1] if inner else line).partition(" | ")[0], comments=True)
        if program not in words:
            continue  # the other side of a pipe
        arguments = words[words.index(program) + 1 :]
        arguments = arguments[
            : min((arguments.index(x) for x in "<>" if x in arguments), default=None)
        ]
        if reads_like_a_prompt(arguments[0]):
            arguments.insert(0, "run")
        subject = PROGRAMS[program].commands[arguments[0]]
        with click.Context(subject, resilient_parsing=True, obj=None) as context:
            subject.parse_args(context, arguments[1:])


@pytest.mark.parametrize(("program", "name"), COMMANDS)
@pytest.mark.parametrize("option", ["--json", "--quiet", "--verbose", "--debug", "--help"])
def test_the_same_options_everywhere(program: str, name: str, option: str) -> None:
    command = PROGRAMS[program].commands[name]
    with click.Context(command, help_option_names=["-h", "--help"]) as context:
        known = {spelling for each in command.get_params(context) for spelling in each.opts}
    assert (option in known) != ((f"{program} {name}", option) in WITHOUT)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_says_what_it_does(program: str) -> None:
    silent = [
        f"{name} {option.opts[0]}"
        for name, command in PROGRAMS[program].commands.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert not silent


def test_the_readme_has_every_exit_code() -> None:
    section = (ROOT / "README.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", section, re.MULTILINE))
    assert {int(code) for code in rows} == {*map(int, ExitCode), *map(int, PackExitCode)}


def test_the_same_numbers_mean_the_same() -> None:
    for code in ExitCode:
        assert PackExitCode(int(code)).name == code.name


@pytest.mark.parametrize("program", PROGRAMS)
def test_python_m_is_the_script(program: str) -> None:
    module = program.replace("-", "_")
    for arguments in (["--help"], ["--version"], ["nonsense"], []):
        script = start(BIN / program, *arguments)
        by_module = start(sys.executable, "-m", module, *arguments)
        assert script.returncode == by_module.returncode
        assert (script.stdout, script.stderr) == (by_module.stdout, by_module.stderr)
    assert start(BIN / program, "--version").stdout.startswith(f"{program}, version ")


@pytest.mark.parametrize("entry", ["run", "pack"])
def test_ctrl_c_while_python_imports_is_one_line(entry: str) -> None:
    verb = {"run": "chat", "pack": "inspect"}[entry]
    code = (
        "import sys, kandiga_start\n"
        "print('ready', flush=True)\n"
        f"sys.argv = ['kandiga-{entry}', '{verb}', '/nowhere']\n"
        f"kandiga_start.{entry}()"
    )
    for delay in (0.01, 0.05, 0.1, 0.15, 0.2):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        # It may have told already that there is no such model. Python on its way out has given the
        # handler back, and the signal ends it: 130 to a shell, as a handler's would be.
        assert said.count("\n") == 1, said
        ends = (ExitCode.UNREADABLE, ExitCode.INTERRUPTED, -signal.SIGINT)
        assert process.returncode in ends


def test_errors_as_json(tiny: Packed, tmp_path: Path) -> None:
    """A program that asked for JSON gets JSON, and the same exit code."""
    for program, arguments in (
        ("kandiga_run", ["run", str(tmp_path / "nowhere"), "Hello", "--json"]),
        ("kandiga_run", ["plan", "nonsense", "--json"]),
        ("kandiga_run", ["setup", "--model", "nonsense", "--json"]),
        ("kandiga_pack", ["inspect", str(tmp_path / "nowhere"), "--json"]),
    ):
        done = start(sys.executable, "-m", program, *arguments)
        told = json.loads(done.stdout)
        assert told["ok"] is False
        assert told["exit_code"] == done.returncode != 0
        assert done.stderr == f"{program.replace('_', '-')}: {told['error']}\n"


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("kandiga_run", ["run", "--json", "--bogus"]),
        ("kandiga_run", ["serf", "--json"]),
        ("kandiga_run", ["--json", "chat"]),
        ("kandiga_run", ["bench", "m", "--json", "-", "--memory-cap", "2"]),
        ("kandiga_pack", ["inspect", "--json", "--bogus"]),
        ("kandiga_pack", ["convert", "--json"]),
    ],
)
def test_a_wrong_command_line_as_json(program: str, arguments: list[str]) -> None:
    """Also where the option had not been read when another was found to be wrong."""
    done = start(sys.executable, "-m", program, *arguments)
    told = json.loads(done.stdout)
    assert (told["ok"], told["exit_code"]) == (False, ExitCode.USAGE)
    assert done.stderr == f"{program.replace('_', '-')}: {told['error']}\n"


@pytest.mark.parametrize("arguments", [["run", "--bogus"], ["bench", "--json", "f", "--bogus"]])
def test_a_wrong_command_line_without_json(arguments: list[str]) -> None:
    done = start(sys.executable, "-m", "kandiga_run", *arguments)
    assert (done.stdout, done.returncode) == ("", ExitCode.USAGE)


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_a_command_does_fits_into_its_line(program: str) -> None:
    said = start(sys.executable, "-m", program.replace("-", "_"), "--help").stdout
    lines = said.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) == len(PROGRAMS[program].commands)
    assert not [line for line in lines if line.endswith("...")]


def test_quiet_and_verbose(tiny: Packed) -> None:
    short = ("run", str(tiny.container), "Hello", "--max-tokens", "3", "--temperature", "0")
    usual, quiet, verbose = (
        start(sys.executable, "-m", "kandiga_run", *short, *more)
        for more in ([], ["--quiet"], ["--verbose"])
    )
    assert usual.stdout == quiet.stdout == verbose.stdout != ""
    assert quiet.stderr == ""
    assert f"model in {tiny.container}" in verbose.stderr
    assert "native engine" in verbose.stderr
    assert "model in" not in usual.stderr


def test_progress_in_a_log(tiny: Packed, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kandiga_pack", "convert", str(tiny.checkpoint)]
    silent = start(*command, str(tmp_path / "a"))
    assert silent.stderr == ""
    told = start(*command, str(tmp_path / "b"), "--verbose")
    assert re.search(r"^kandiga-pack: .* 100% of \d+ bytes$", told.stderr, re.MULTILINE)
