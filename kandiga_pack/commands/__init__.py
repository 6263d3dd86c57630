"""The verbs of `kandiga-pack`, a file each: options, help, and the call of the library."""

from __future__ import annotations

import click

from kandiga_pack.commands.convert import convert_command
from kandiga_pack.commands.export import export_command
from kandiga_pack.commands.inspect import inspect_command
from kandiga_pack.commands.publish import publish_command
from kandiga_pack.commands.repair import repair_command
from kandiga_pack.commands.synth import synth_command
from kandiga_pack.commands.validate import validate_command
from kandiga_pack.commands.verify import verify_command

COMMANDS: tuple[click.Command, ...] = (
    convert_command,
    verify_command,
    validate_command,
    inspect_command,
    synth_command,
    export_command,
    repair_command,
    publish_command,
)
