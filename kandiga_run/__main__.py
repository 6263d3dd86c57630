"""`python -m kandiga_run` is `kandiga-run`."""

from kandiga_start import run

run()
