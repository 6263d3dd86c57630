"""`kandiga-run tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kandiga_run.commands.model_argument import model_argument
from kandiga_run.commands.options import Invocation, quiet_options
from kandiga_run.commands.values import Size
from kandiga_run.errors import RunError
from kandiga_run.terminal.exit_codes import HELP
from kandiga_run.terminal.output import Output

if TYPE_CHECKING:
    from kandiga_run.bench.subject import Subject
    from kandiga_run.tune.outcome import Outcome

_SECONDS = 300.0


@click.command(
    "tune",
    short_help="Find the fastest memory settings of a model here.",
    epilog=f"""\b
Examples:
  kandiga-run tune ./model
  kandiga-run tune ./model --memory 8GB
  kandiga-run tune ./model --seconds 60 --dry-run
  kandiga-run tune ./model --json > tuned.json
  kandiga-run tune ./model --show
  kandiga-run tune ./model --forget

{HELP}""",
)
@model_argument
@click.option(
    "--memory",
    "limit_bytes",
    type=Size(),
    help="The most that may be taken, like 8GB. Default: most of what is available.",
)
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    default=_SECONDS,
    show_default=True,
    help="Begin nothing that would not be done after this time.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "native", "mlx"]),
    default="auto",
    show_default=True,
    help="native computes on the CPU, mlx on the Apple GPU.",
)
@click.option(
    "--arithmetic",
    type=click.Choice(["auto", "exact", "int16", "int8"]),
    default="auto",
    show_default=True,
    help="Of the runs that settings are tuned for.",
)
@click.option("--dry-run", is_flag=True, help="Measure, and keep nothing.")
@click.option("--show", is_flag=True, help="Measure nothing; print what is kept.")
@click.option("--forget", is_flag=True, help="Measure nothing; remove what is kept.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object instead of a table.")
@quiet_options
@click.pass_obj
def tune_command(
    invocation: Invocation,
    /,
    model: Path,
    limit_bytes: int | None,
    seconds: float,
    dry_run: bool,
    show: bool,
    forget: bool,
    is_json: bool,
    quiet: bool,
    **engine: Any,
) -> None:
    """Find the fastest residency settings of MODEL on this machine and keep them.

    Tries experts in the page cache and pools of several sizes, reads in flight, and threads, each
    in a process of its own. What makes a short exchange fastest is kept for this model on this
    machine; run, chat, bench and serve take it wherever you choose nothing else, and --stats says
    so. Do nothing else on the machine meanwhile.
    """
    if show + forget + dry_run > 1:
        raise click.UsageError("--show, --forget and --dry-run exclude each other")
    output = invocation.output = Output(is_json=is_json, is_quiet=quiet)
    from formats.published import local_set
    from kandiga_run.tune.keeping import check_writable

    folder = local_set(model, say=output.notice if output.stderr.isatty() else None)
    if show:
        _show(folder, output)
        return
    if forget:
        _forget(folder, output)
        return
    from kandiga_run.bench.subject import subject

    if not dry_run:
        check_writable()
    about = subject(folder)
    outcome, engine_name = _search(about, engine, limit_bytes, seconds, output)
    if outcome.best is None:
        failed = [trial.error for trial in outcome.trials if trial.error]
        raise RunError(f"nothing could be measured: {failed[0] if failed else 'no time'}")
    kept_in = None if dry_run else _keep(about, outcome, engine_name)
    if is_json:
        from kandiga_run.tune.summary import outcome_json

        output.json(outcome_json(outcome, model=str(model), kept_in=kept_in))
    elif kept_in:
        output.notice(f"kept in {kept_in}")


def _search(
    about: Subject, engine: dict[str, Any], limit_bytes: int | None, seconds: float, output: Output
) -> tuple[Outcome, str]:
    """Search, and print what was found, also when the search is interrupted."""
    import time

    from kandiga_run.bench.session import BUSY_SHARE
    from kandiga_run.machine.facts import busy_share
    from kandiga_run.tune.search import Search
    from kandiga_run.tune.summary import print_outcome, verdict
    from kandiga_run.tune.trial import Trials, room_for

    busy = busy_share() or 0.0
    started = time.monotonic()

    def say(what: str) -> None:
        output.progress(f"{what}; seconds", int(time.monotonic() - started), int(seconds))

    room = room_for(about, limit_bytes)
    trials = Trials(about, engine, room.can_map, say)
    search = Search(trials.measure, room, seconds)
    if busy > BUSY_SHARE:
        search.outcome.notes.append(
            f"others use {busy:.0%} of the processors: what is fastest now need not be later"
        )
    file = output.stderr if output.is_json else output.stdout
    try:
        search.run()
    finally:
        output.clear_progress()
        if search.outcome.trials and not (output.is_json and output.is_quiet):
            print_outcome(search.outcome, file)
    print(verdict(search.outcome), file=file, flush=True)
    return search.outcome, trials.engine_name


def _keep(about: Subject, outcome: Outcome, engine_name: str) -> str:
    from datetime import date

    from kandiga_run.tune.keeping import Tuned, keep_tuned, place_of
    from kandiga_run.tune.summary import measured_json

    best = outcome.best
    assert best is not None
    settings = best.settings
    is_mapped = settings.residency == "mapped"
    tuned = Tuned(
        place_of(about.folder),
        engine_name,
        settings,
        needs_bytes=about.total_bytes if is_mapped else settings.memory_bytes or 0,
        date=date.today().isoformat(),
        measured=measured_json(outcome),
    )
    return str(keep_tuned(tuned))


def _show(folder: Path, output: Output) -> None:
    from dataclasses import asdict

    from kandiga_run.tune.keeping import find_tuned, place_of, tuned_path

    tuned = find_tuned(place_of(folder))
    if output.is_json:
        output.json({"tuned": asdict(tuned) if tuned else None, "kept_in": str(tuned_path())})
    elif tuned is None:
        print(f"{tuned_path()}: nothing for this model on this machine", file=output.stdout)
    else:
        print(f"{tuned.settings} ({tuned.engine} engine, {tuned.date})", file=output.stdout)


def _forget(folder: Path, output: Output) -> None:
    from kandiga_run.tune.keeping import forget_tuned, place_of, tuned_path

    had = forget_tuned(place_of(folder))
    if output.is_json:
        output.json({"forgotten": had, "kept_in": str(tuned_path())})
    else:
        output.notice("forgotten" if had else "nothing was kept for this model on this machine")
