"""`python -m kandiga_run` is `kandiga-run`."""

import sys

from kandiga_run.cli import main

sys.exit(main())
