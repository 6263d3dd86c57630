"""The command `kandiga-pack`: parse, call the library, print."""

from __future__ import annotations

import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

from formats.published import local_set
from kandiga_pack import show
from kandiga_pack.convert import DEFAULT_SHARD_BYTES, convert
from kandiga_pack.errors import Interrupted, UsageError, describe
from kandiga_pack.exit_codes import ExitCode
from kandiga_pack.export import export
from kandiga_pack.inspect import inspect
from kandiga_pack.output import Output
from kandiga_pack.publish import publish
from kandiga_pack.repair import repair
from kandiga_pack.sources.converted import Quantization
from kandiga_pack.sources.synthetic.presets import PRESETS
from kandiga_pack.synth import synth
from kandiga_pack.verify import verify

# Blocks marked \b keep their lines.
EXIT_CODES_HELP = "\b\nExit codes:\n" + "\n".join(
    f"  {code.value:>3}  {code.meaning}" for code in ExitCode
)


def _epilog(*examples: str) -> str:
    lines = "\n".join(f"  {example}" for example in examples)
    return f"\b\nExamples:\n{lines}\n\n{EXIT_CODES_HELP}"


CONVERT_EPILOG = _epilog(
    "kandiga-pack convert mlx-community/Qwen3-30B-A3B-4bit qwen3-30b",
    "kandiga-pack convert ./Mixtral-8x7B-Instruct-v0.1 mixtral --quantize 4 --group-size 64",
    "kandiga-pack convert qwen3-30b-a3b-q4_0.gguf qwen3-30b --json",
    "kandiga-pack convert ./Qwen3-235B-A22B-4bit qwen3-235b --consume",
)
VERIFY_EPILOG = _epilog(
    "kandiga-pack verify qwen3-30b",
    "kandiga-pack verify qwen3-30b --level index",
    "kandiga-pack verify qwen3-30b --against mlx-community/Qwen3-30B-A3B-4bit",
)
VALIDATE_EPILOG = _epilog(
    "kandiga-pack validate qwen3-30b",
    "kandiga-pack validate qwen3-30b --level semantics --json",
    "kandiga-pack validate qwen3-30b --against ./Qwen3-30B-A3B-4bit",
)
INSPECT_EPILOG = _epilog(
    "kandiga-pack inspect qwen3-30b",
    "kandiga-pack inspect someone/Qwen3-30B-A3B-kexp --json",
)
REPAIR_EPILOG = _epilog(
    "kandiga-pack repair qwen3-30b --from mlx-community/Qwen3-30B-A3B-4bit",
    "kandiga-pack repair qwen3-30b --from /mnt/backup/qwen3-30b",
    "kandiga-pack repair qwen3-30b --from someone/Qwen3-30B-A3B-kexp --dry-run",
)
PUBLISH_EPILOG = _epilog(
    "kandiga-pack publish qwen3-30b me/Qwen3-30B-A3B-kexp --dry-run",
    "kandiga-pack publish qwen3-30b me/Qwen3-30B-A3B-kexp --private",
)
SYNTH_HELP = f"""Write a model of a published shape with made-up weights into a new DEST.

Names, shapes and bits are those of the published model, the numbers random: for measuring speed
and memory at full size without a download. What it says makes no sense.

PRESET is one of {", ".join(PRESETS)}. Or give a CONFIG: a config.json, or the folder it is in, of
any mixture of experts that mlx-lm knows.

The same command writes the same bytes on every machine. An interrupted one goes on when it is run
again.
"""
SYNTH_EPILOG = _epilog(
    "kandiga-pack synth qwen3.5-35b-a3b synth-35b",
    "kandiga-pack synth qwen3.5-397b-a17b synth-397b --layers 4",
    "kandiga-pack synth ./Qwen3-235B-A22B/config.json synth-235b --bits 3 --layers 8",
)
EXPORT_EPILOG = _epilog("kandiga-pack export qwen3-30b qwen3-30b-mlx")


def _output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --json, --quiet and --debug, and pass them on as one Output."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
    @click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @click.pass_context
    @wraps(command)
    def wrapped(
        context: click.Context, /, as_json: bool, quiet: bool, debug: bool, **options: Any
    ) -> None:
        output = Output(json=as_json, quiet=quiet)
        context.obj.update(output=output, debug=debug)
        command(output, **options)

    return wrapped


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES_HELP,
)
@click.version_option(package_name="kandiga-kexp")
def cli() -> None:
    """Pack mixture-of-experts checkpoints into .kexp containers, whose experts are read one at a
    time from disk."""


@cli.command("convert", epilog=CONVERT_EPILOG)
@click.argument("source")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option(
    "--quantize",
    "bits",
    type=click.Choice(["2", "3", "4", "5", "6", "8"]),
    help="Quantize an unquantized checkpoint to this many bits, as mlx_lm.convert does.",
)
@click.option(
    "--group-size",
    type=click.Choice(["16", "32", "64", "128"]),
    help="Weights that share a scale.  [default: 64 for affine]",
)
@click.option(
    "--mode",
    type=click.Choice(["affine", "mxfp4", "mxfp8", "nvfp4"]),
    default="affine",
    show_default=True,
    help="Kind of quantization.",
)
@click.option(
    "--shard-size",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_SHARD_BYTES / 2**30,
    show_default=True,
    help="Size of a .kexp file in GiB, about.",
)
@click.option(
    "--consume",
    is_flag=True,
    help="REMOVE each safetensors file of the folder SOURCE once it is packed and on the disk.",
)
@click.option("--restart", is_flag=True, help="Forget what an interrupted conversion has done.")
@_output_options
def convert_command(
    output: Output,
    source: str,
    dest: Path,
    revision: str | None,
    bits: str | None,
    group_size: str | None,
    mode: str,
    shard_size: float,
    consume: bool,
    restart: bool,
) -> None:
    """Pack SOURCE into a new folder DEST.

    SOURCE is a folder with safetensors files and config.json, a GGUF file, or the id of a
    repository on the Hugging Face Hub. The weights are carried bit for bit unless --quantize is
    given. Memory stays small whatever the size of the model, and DEST appears only when it is
    complete.

    A conversion that was interrupted goes on when the same command is run again: what is done is in
    DEST.partial, which may be removed to give it up. The files of a Hub repository are downloaded,
    packed and removed one by one.
    """
    summary = convert(
        source,
        dest,
        revision=revision,
        quantization=_quantization(bits, group_size, mode),
        shard_bytes=_shard_bytes(shard_size),
        consume=consume,
        restart=restart,
        progress=output.progress(),
        say=output.note,
    )
    output.result(summary.as_dict(), lambda console: show.show_convert(summary, console))


def _shard_bytes(gibibytes: float) -> int:
    if not math.isfinite(gibibytes):  # click lets both pass
        raise UsageError(f"--shard-size {gibibytes}: a size in GiB is wanted")
    return int(gibibytes * 2**30)


def _quantization(bits: str | None, group_size: str | None, mode: str) -> Quantization | None:
    if bits is None and mode == "affine":
        if group_size is not None:
            raise UsageError("--group-size needs --quantize")
        return None
    return Quantization(int(bits) if bits else None, int(group_size) if group_size else None, mode)


@cli.command("verify", epilog=VERIFY_EPILOG)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--level",
    type=click.Choice(["index", "full"]),
    default="full",
    show_default=True,
    help="index: everything but the weights. full: every byte.",
)
@click.option("--against", metavar="SOURCE", help="Also compare every tensor with this source.")
@click.option("--revision", help="Branch, tag or commit, when SOURCE is a Hub id.")
@_output_options
def verify_command(
    output: Output, path: Path, level: Any, against: str | None, revision: str | None
) -> None:
    """Check the container at PATH, and say what is wrong with it.

    PATH may be the id of a published one, which is downloaded.
    """
    if revision is not None and against is None:
        raise UsageError("--revision needs --against")
    report = verify(
        local_set(path, say=output.say()),
        level=level,
        against=against,
        revision=revision,
        progress=output.progress(),
    )
    for finding in report.findings:
        output.finding(str(finding))
    if report.ok or output.json:
        output.result(report.as_dict(), lambda console: show.show_verify(report, console))
    if not report.ok:
        _, code = describe(report.findings[0])
        raise click.exceptions.Exit(code)


@cli.command("validate", epilog=VALIDATE_EPILOG)
@click.argument("path")
@click.option(
    "--level",
    type=click.Choice(["framing", "structure", "semantics", "integrity"]),
    default="integrity",
    show_default=True,
    help="How far to go; integrity reads every byte.",
)
@click.option("--against", metavar="FOLDER", help="Also compare with these safetensors files.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="Print findings only.")
def validate_command(
    path: str, level: str, against: str | None, as_json: bool, quiet: bool
) -> NoReturn:
    """Hold the set, or the one .kexp file, at PATH to the written format, and list all findings.

    This is specs/validate_kexp.py: a program that shares no code with the reader behind `verify`,
    so the two together also find what one of them misunderstands.
    """
    from specs.validate_kexp import main as validate

    arguments = ["--level", level]
    arguments += ["--against", against] if against is not None else []
    arguments += ["--json"] if as_json else []
    arguments += ["--quiet"] if quiet else []
    raise click.exceptions.Exit(validate([*arguments, "--", path]))


@cli.command("inspect", epilog=INSPECT_EPILOG)
@click.argument("path", type=click.Path(path_type=Path))
@_output_options
def inspect_command(output: Output, path: Path) -> None:
    """Show what is in the container at PATH.

    PATH may be the id of a published one, user/name or user/name@revision: its index is then read
    by range requests, and no weights are fetched.
    """
    facts = inspect(path)
    output.result(facts, lambda console: show.show_inspect(facts, console))


@cli.command("synth", help=SYNTH_HELP, epilog=SYNTH_EPILOG)
@click.argument("model", metavar="PRESET|CONFIG")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--layers", type=click.IntRange(min=1), help="Only the first so many layers.")
@click.option(
    "--bits",
    type=click.Choice(["2", "3", "4", "5", "6", "8", "16"]),
    default="4",
    show_default=True,
    help="Of a weight; 16 is bf16.",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    help="Weights that share a scale.  [default: 64]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Other seeds give other weights.",
)
@click.option("--restart", is_flag=True, help="Forget what an interrupted run has done.")
@_output_options
def synth_command(
    output: Output,
    model: str,
    dest: Path,
    layers: int | None,
    bits: str,
    group_size: str | None,
    seed: int,
    restart: bool,
) -> None:
    if bits == "16" and group_size is not None:
        raise UsageError("--group-size is for quantized weights, and --bits 16 are not")
    quantization = None if bits == "16" else Quantization(int(bits), int(group_size or 64))
    summary = synth(
        model,
        dest,
        num_layers=layers,
        quantization=quantization,
        seed=seed,
        restart=restart,
        progress=output.progress(),
        say=output.note,
    )
    output.result(summary.as_dict(), lambda console: show.show_synth(summary, console))


@cli.command("export", epilog=EXPORT_EPILOG)
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_output_options
def export_command(output: Output, path: Path, out: Path) -> None:
    """Write the checkpoint that the container at PATH was made from into a new folder OUT.

    Every tensor comes back bit for bit, in the same files. PATH may be the id of a published
    container, which is downloaded.
    """
    folder = local_set(path, say=output.say())
    summary = export(folder, out, progress=output.progress())
    output.result(summary.as_dict(), lambda console: show.show_export(summary, console))


@cli.command("repair", epilog=REPAIR_EPILOG)
@click.argument("path", metavar="DEST", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    help="Another copy of the container, or the checkpoint: folder, GGUF file or Hub id.  "
    "[default: the repository that DEST records]",
)
@click.option("--revision", help="Branch, tag or commit, when SOURCE is a Hub id.")
@click.option("--dry-run", is_flag=True, help="Find the damage; write nothing.")
@_output_options
def repair_command(
    output: Output, path: Path, source: str | None, revision: str | None, dry_run: bool
) -> None:
    """Find what is damaged in the container DEST and write just that again, in place.

    From a Hub id only the ranges of bytes that are needed are fetched. Nothing is written whose
    SHA-256 is not the recorded one, so a wrong SOURCE does no harm. DEST is verified at the end.
    """
    summary = repair(path, source, revision=revision, dry_run=dry_run, progress=output.progress())
    output.result(summary.as_dict(), lambda console: show.show_repair(summary, console))


@cli.command("publish", epilog=PUBLISH_EPILOG)
@click.argument("path", metavar="DEST", type=click.Path(path_type=Path))
@click.argument("repository", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--base-model", metavar="USER/NAME", help="Model the checkpoint was made from.")
@click.option("--dry-run", is_flag=True, help="Verify and show the model card; send nothing.")
@_output_options
def publish_command(
    output: Output,
    path: Path,
    repository: str,
    private: bool,
    base_model: str | None,
    dry_run: bool,
) -> None:
    """Upload the container DEST to the repository USER/NAME on the Hugging Face Hub.

    DEST is verified first. A model card is written, with the license of the checkpoint's card.
    Everything appears in one commit; after an interruption, run the same command again.
    """
    summary = publish(
        path,
        repository,
        private=private,
        base_model=base_model,
        dry_run=dry_run,
        progress=output.progress(),
    )
    output.result(summary.as_dict(), lambda console: show.show_publish(summary, console))


def run(arguments: list[str] | None = None) -> ExitCode:
    """Run a command line and return its exit code; nothing is raised."""
    state: dict[str, Any] = {"output": Output(), "debug": False}
    try:
        with cli.make_context("kandiga-pack", list(arguments or []), obj=state) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        return ExitCode(done.exit_code)
    except BrokenPipeError:  # `| head` has read enough; the interpreter would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED  # verify may not have told what it found
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except (Exception, KeyboardInterrupt) as error:
        if state["debug"]:
            traceback.print_exception(error, file=sys.stderr)
        message, code = describe(error)
        state["output"].error(message, code)
        return code
    return ExitCode.OK


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise Interrupted


def main() -> NoReturn:
    """Entry point of `kandiga-pack`."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup set it to be ignored
        signal.signal(signal.SIGHUP, _interrupt)
    sys.exit(run(sys.argv[1:]))
