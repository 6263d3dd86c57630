"""`kandiga-run serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kandiga_run.commands.engine_options import engine_options
from kandiga_run.commands.model_argument import model_argument
from kandiga_run.commands.opening import open_engine, open_tokenizer
from kandiga_run.commands.options import Invocation, quiet_options
from kandiga_run.commands.prefix_cache_options import prefix_cache, prefix_cache_options
from kandiga_run.commands.values import Size
from kandiga_run.errors import RunError
from kandiga_run.terminal.exit_codes import HELP
from kandiga_run.terminal.output import Output

if TYPE_CHECKING:
    from kandiga_run.server.settings import ServerSettings
    from kandiga_run.tokenizer.prompts import Prompts

_KEY_VARIABLE = "KANDIGA_API_KEY"
#: Without a choice, the tokens of prompt and answer: coding agents begin with some 20000.
_DEFAULT_CONTEXT = 32768


@click.command(
    "serve",
    short_help="Serve OpenAI's and Anthropic's APIs, and a page to chat.",
    epilog=f"""\b
Examples:
  kandiga-run serve ./model
  kandiga-run serve ./model --memory 4GB --port 9000
  kandiga-run serve ./model --alias gpt-4o-mini --context 16384
  {_KEY_VARIABLE}=secret kandiga-run serve ./model --host 0.0.0.0

\b
Then:
  open http://127.0.0.1:8080 in a browser
  OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=none python my_program.py
  ANTHROPIC_BASE_URL=http://127.0.0.1:8080 ANTHROPIC_API_KEY=none python my_program.py
  curl http://127.0.0.1:8080/metrics

Ctrl-C takes no further request, lets answers finish for --drain seconds and ends with 130; a
second Ctrl-C gives them up at once. SIGTERM does the same and ends with 0.

{HELP}""",
)
@model_argument
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Others than this machine's own need a key.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0 takes any free one.",
)
@click.option(
    "--api-key",
    metavar="KEY",
    help=f"Ask clients for this key. Other users of the machine can see it in the list of "
    f"processes: better set {_KEY_VARIABLE}.",
)
@click.option(
    "--insecure", is_flag=True, help="Listen on another address without a key, for everybody."
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let web pages from this origin use the server, like https://example.com, or * for all; "
    "may be given several times. Default: none.",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="NAME",
    help="Answer requests for a model of this name too, * for any; may be given several times.",
)
@click.option(
    "--context",
    metavar="N",
    type=click.IntRange(min=2),
    help="Tokens of prompt and answer of one request. Default: what the model was made for, at "
    f"most {_DEFAULT_CONTEXT}.",
)
@click.option(
    "--parallel",
    "max_running",
    metavar="N",
    type=click.IntRange(min=1),
    help="Answers computed together. Default: 4, or fewer if --memory has no room for as many full "
    "contexts.",
)
@click.option(
    "--queue",
    "max_waiting",
    metavar="N",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="Requests that may wait; further ones get 429 and Retry-After.",
)
@click.option(
    "--max-body",
    "max_body_bytes",
    type=Size(),
    default="16MiB",
    show_default=True,
    help="Longest body of a request.",
)
@click.option(
    "--drain",
    "drain_seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="How long answers may go on after Ctrl-C.",
)
@click.option(
    "--think/--no-think",
    "think",
    default=None,
    help="Ask the chat template for reasoning, or for none, unless a request says.",
)
@prefix_cache_options
@engine_options
@quiet_options
@click.pass_obj
def serve_command(
    invocation: Invocation,
    /,
    model: Path,
    host: str,
    port: int,
    max_running: int | None,
    max_waiting: int,
    drain_seconds: float,
    quiet: bool,
    **choices: Any,
) -> None:
    """Serve MODEL over HTTP: OpenAI's and Anthropic's APIs, and a page to chat in a browser.

    Without MODEL it is the one that `kandiga-run setup` remembers.
    """
    output = invocation.output = Output(is_quiet=quiet)
    api_key = _api_key(choices["api_key"])
    _check_exposure(host, api_key, is_insecure=choices["insecure"])
    _check_origins(choices["cors_origins"])
    from kandiga_run.server.running import listen, run

    with listen(host, port) as bound:
        folder, prompts = open_tokenizer(model, choices, output)
        context = _context(prompts, choices["context"])
        settings = _settings(model, host, api_key, choices)
        with open_engine(folder, choices, output, context) as engine:
            from kandiga_run.scheduler import Scheduler
            from kandiga_run.server.service import Service

            scheduler = Scheduler(
                engine,
                context_tokens=context,
                max_running=max_running,
                max_waiting=max_waiting,
                prefix_cache=prefix_cache(choices),
            )
            try:
                service = Service(scheduler, prompts, settings)
                run(service, bound, output, drain_seconds=drain_seconds)
            finally:
                scheduler.close()


def _settings(
    model: Path, host: str, api_key: str | None, choices: dict[str, Any]
) -> ServerSettings:
    from kandiga_run.server.settings import ServerSettings

    # A folder goes by its name, a published model by its id, which looks like a path as well.
    name = model.resolve().name if model.exists() else str(model)
    return ServerSettings(
        model=name,
        host=host,
        aliases=choices["aliases"],
        api_key=api_key,
        cors_origins=choices["cors_origins"],
        max_body_bytes=choices["max_body_bytes"],
        thinks=choices["think"],
    )


def _api_key(given: str | None) -> str | None:
    key = given if given is not None else os.environ.get(_KEY_VARIABLE)
    if key is not None and not key.strip():
        raise click.UsageError(f"the API key is empty (from --api-key or {_KEY_VARIABLE})")
    return key


def _check_exposure(host: str, api_key: str | None, *, is_insecure: bool) -> None:
    from kandiga_run.server.access import is_loopback

    if api_key is None and not is_insecure and not is_loopback(host):
        raise RunError(
            f"--host {host} is reachable from other machines: set {_KEY_VARIABLE} (or --api-key), "
            "or say --insecure to serve everybody"
        )


def _check_origins(origins: tuple[str, ...]) -> None:
    for origin in origins:
        scheme, separator, host = origin.partition("://")
        if origin != "*" and (scheme not in ("http", "https") or not separator or "/" in host):
            raise click.UsageError(
                f"--cors-origin {origin}: wanted * or an origin like https://example.com"
            )


def _context(prompts: Prompts, chosen: int | None) -> int:
    made_for = prompts.context_length or _DEFAULT_CONTEXT
    return chosen or min(made_for, _DEFAULT_CONTEXT)
