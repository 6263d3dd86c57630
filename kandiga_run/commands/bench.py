"""`kandiga-run bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kandiga_run.commands.engine_options import engine_options, tuned_arguments
from kandiga_run.commands.model_argument import model_argument
from kandiga_run.commands.options import Invocation, quiet_options
from kandiga_run.commands.values import Counts, Sizes
from kandiga_run.errors import RunError
from kandiga_run.terminal.exit_codes import HELP
from kandiga_run.terminal.output import Output

if TYPE_CHECKING:
    from kandiga_run.bench.request import Cache
    from kandiga_run.bench.session import Plan, Results

# What is measured unless told otherwise: (prefill tokens, depths, repeats, decode steps, seconds).
_DEFAULT = ((128, 512, 2048), (0, 4096, 32768), 3, 32, 15.0)
_QUICK = ((128,), (0,), 1, 16, 5.0)
# Of each of several memory caps: the curve, not everything about each.
_CURVE = ((512,), (0,), 3, 32, 15.0)


@click.command(
    "bench",
    short_help="Measure how fast a model runs here.",
    epilog=f"""\b
Examples:
  kandiga-run bench ./model
  kandiga-run bench ./model --quick
  kandiga-run bench ./model --only decode --depth 0,4K,32K --json figures.json
  kandiga-run bench ./model --memory-cap 2GB
  kandiga-run bench ./model --memory-cap 2GB,3GB,4GB,8GB --plot curve.png

{HELP}""",
)
@model_argument
@click.option("--only", type=click.Choice(["prefill", "decode"]), help="Leave the other out.")
@click.option("--quick", is_flag=True, help="One short prefill and decode, warm, one run each.")
@click.option(
    "--prefill", "prefill_tokens", type=Counts(1), help="Prompt lengths, like 128,512,2K."
)
@click.option(
    "--depth", "depths", type=Counts(0), help="Tokens before those decoded, like 0,4K,32K."
)
@click.option("--real-depth", is_flag=True, help="Prefill depths instead of making caches up.")
@click.option(
    "--decode-tokens", metavar="N", type=click.IntRange(min=1), help="Steps of a decode run."
)
@click.option("--repeats", metavar="N", type=click.IntRange(min=1), help="Warm runs of each kind.")
@click.option(
    "--cold-repeats",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Cold runs, each in a process of its own.",
)
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="Begin no further run of a kind after this time.",
)
@click.option(
    "--cache",
    type=click.Choice(["both", "cold", "warm"]),
    help="With an empty page cache and unused experts, after a warm-up, or both.",
)
@click.option(
    "--memory-cap",
    "caps",
    type=Sizes(),
    help="Measure inside control groups of these sizes, page cache included: 2GB,4GB,8GB.",
)
@click.option("--no-ceilings", is_flag=True, help="Leave the machine's own limits out.")
@engine_options
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, writable=True, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Write the figures as JSON; - prints them and the table goes to stderr.",
)
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Draw tokens a second over memory caps as a PNG.",
)
@quiet_options
@click.pass_obj
def bench_command(
    invocation: Invocation,
    /,
    model: Path,
    json_path: Path | None,
    plot_path: Path | None,
    quiet: bool,
    **choices: Any,
) -> None:
    """Measure MODEL on this machine: prefill and decode, cold and warm, beside the machine's own
    limits.

    A minute or two by default. Every figure is tokens over seconds; the last column says how much
    of what memory, disk or our kernels could do at best that was.
    """
    output = invocation.output = Output(is_json=str(json_path) == "-", is_quiet=quiet)
    if plot_path is not None and not choices["caps"]:
        raise click.UsageError("--plot draws speed over memory: give --memory-cap 2GB,4GB,8GB")
    if choices["caps"] and choices["memory_bytes"]:
        raise click.UsageError("--memory-cap chooses the engine's --memory: give one of them")
    from formats.published import local_set
    from kandiga_run.bench.plot import require_matplotlib
    from kandiga_run.bench.session import Session
    from kandiga_run.bench.subject import subject

    if plot_path is not None:
        require_matplotlib()
    for path in (json_path, plot_path):
        _check_folder(path)
    folder = local_set(model, say=output.notice if output.stderr.isatty() else None)
    about = subject(folder)
    engine, tuned = tuned_arguments(folder, choices, memory_is_chosen=bool(choices["caps"]))
    session = Session(about, _plan(choices, engine), output.progress)
    if tuned:
        session.results.notes.append(tuned)
    try:
        session.run()
    finally:
        output.clear_progress()
        _show(session.results, output, json_path, plot_path)
    failed = [each.error for each in session.results.measurements if each.error]
    if failed:
        raise RunError(f"{len(failed)} measurements failed; the first: {failed[0]}")


def _plan(choices: dict[str, Any], engine: dict[str, Any]) -> Plan:
    """Return what to measure: what was asked for, and defaults for the rest.

    engine: keyword arguments of `load_engine`.
    """
    from kandiga_run.bench.session import Plan

    caps: tuple[int, ...] = choices["caps"] or ()
    is_quick, is_curve = choices["quick"], len(caps) > 1
    defaults = _QUICK if is_quick else _CURVE if is_curve else _DEFAULT
    prefill_tokens, depths, repeats, decode_tokens, seconds = defaults
    only = choices["only"]
    cache = choices["cache"] or ("warm" if is_quick or is_curve else "both")
    both: tuple[Cache, ...] = ("cold", "warm")
    caches = tuple(each for each in both if cache in ("both", each))
    return Plan(
        prefill_tokens=() if only == "decode" else choices["prefill_tokens"] or prefill_tokens,
        depths=() if only == "prefill" else choices["depths"] or depths,
        caches=caches,
        caps=caps or (None,),
        decode_tokens=choices["decode_tokens"] or decode_tokens,
        repeats=choices["repeats"] or repeats,
        cold_repeats=choices["cold_repeats"],
        seconds=choices["seconds"] or seconds,
        real_depth=choices["real_depth"],
        ceilings=not choices["no_ceilings"],
        engine=engine,
    )


def _check_folder(path: Path | None) -> None:
    """RunError when a result could not be written: better before minutes of measuring."""
    if path is not None and str(path) != "-" and not path.parent.is_dir():
        raise RunError(f"{path}: there is no folder {path.parent} to write it to")


def _show(results: Results, output: Output, json_path: Path | None, plot_path: Path | None) -> None:
    from kandiga_run.bench.report import results_json
    from kandiga_run.bench.table import print_results

    print_results(results, output.stderr if output.is_json else output.stdout)
    if output.is_json:
        output.json(results_json(results))
        # It says itself what failed: the error of this command would be a second object.
        output.is_json = False
    elif json_path is not None:
        json_path.write_text(json.dumps(results_json(results), indent=2) + "\n")
    if plot_path is not None:
        from kandiga_run.bench.plot import save_plot

        save_plot(results, plot_path)
