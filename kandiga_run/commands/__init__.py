"""The verbs of `kandiga-run`, a file each: options, help, and the call of what does the work."""

from __future__ import annotations

import click

from kandiga_run.commands.bench import bench_command
from kandiga_run.commands.chat import chat_command
from kandiga_run.commands.completion import completion_command
from kandiga_run.commands.doctor import doctor_command
from kandiga_run.commands.plan import plan_command
from kandiga_run.commands.run import run_command
from kandiga_run.commands.serve import serve_command
from kandiga_run.commands.setup import setup_command
from kandiga_run.commands.tune import tune_command
from kandiga_run.commands.update import update_command

COMMANDS: tuple[click.Command, ...] = (
    setup_command,
    run_command,
    chat_command,
    serve_command,
    plan_command,
    bench_command,
    tune_command,
    doctor_command,
    update_command,
    completion_command,
)
