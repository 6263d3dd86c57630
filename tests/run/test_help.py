"""Help answers at once and tells the exit codes."""

import subprocess
import sys

import pytest

from kandiga_command import kandiga_run, ok
from kandiga_run.terminal.exit_codes import ExitCode


class TestHelp:
    """Help answers at once and tells the exit codes."""

    @pytest.mark.parametrize("arguments", [[], ["run"], ["chat"]])
    def test_exit_codes_are_listed(self, arguments: list[str]) -> None:
        text = " ".join(ok(*arguments, "--help").stdout.split())
        for code in ExitCode:
            assert f" {int(code)} " in text

    def test_sizes_are_explained(self) -> None:
        text = " ".join(ok("run", "--help").stdout.split())
        assert "2GB (1000-based) or 2GiB (1024-based)" in text

    def test_no_command(self) -> None:
        result = kandiga_run()
        assert result.returncode == ExitCode.USAGE
        assert "Usage: kandiga-run" in result.stderr

    def test_heavy_libraries_wait_for_a_command(self) -> None:
        """numpy, rich, jinja2 and the engines cost more than the whole rest of the start."""
        heavy = ("numpy", "rich", "jinja2", "tokenizers", "prompt_toolkit", "formats", "mlx")
        code = (
            "import sys, kandiga_run.cli\n"
            "try: kandiga_run.cli.main(['run', '--help'])\n"
            "except SystemExit: pass\n"
            f"sys.exit(' '.join(name for name in {heavy} if name in sys.modules) or 0)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
