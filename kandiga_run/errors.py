"""The error of this package: something the user asked for cannot be done, and why."""


class RunError(Exception):
    """One line for the user: what, the value seen, the value wanted, what to do next.

    The command prints it after `error: ` and exits with code 1. A damaged container is not a
    RunError but a `formats.KexpError`, which knows file, layer, expert and offset.
    """
