"""The validator comes with the wheel, and the command finds it there."""

from __future__ import annotations

from pathlib import Path

import pytest

from installed import ROOT, run, site_packages

VECTORS = ROOT / "specs" / "vectors"


@pytest.mark.slow
def test_from_an_installed_wheel(wheel_commands: Path, tmp_path: Path) -> None:
    python, site = wheel_commands / "python", site_packages(wheel_commands.parent)
    where = run(python, "-c", "import specs; print(specs.__file__)", cwd=tmp_path)
    assert where.stdout.strip() == str(site / "specs" / "__init__.py")
    for vector, code in (("valid/single", 0), ("invalid/magic", 1), ("missing", 3)):
        command = wheel_commands / "kandiga-pack"
        done = run(command, "validate", VECTORS / vector, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
    alone = run(python, site / "specs" / "validate_kexp.py", VECTORS / "valid/single", cwd=tmp_path)
    assert alone.returncode == 0
