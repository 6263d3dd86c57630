"""The validator comes with the wheel, and the command finds it there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "specs" / "vectors"


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(argument) for argument in arguments]
    # meson and ninja are beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_from_an_installed_wheel(tmp_path: Path) -> None:
    # The build folder of `make env`: the kernels are compiled there already.
    build = f"build-dir=build/cp{sys.version_info.major}{sys.version_info.minor}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--quiet", "--no-deps", "--no-build-isolation"]
    built = run(*pip, "wheel", *options, f"-C{build}", "-w", tmp_path, ROOT, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    installed = run(*pip, "--python", python, "install", "--no-deps", wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    # click and the others; the editable install's own hook is not followed from here.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))

    where = run(python, "-c", "import specs; print(specs.__file__)", cwd=tmp_path)
    assert where.stdout.strip() == str(site / "specs" / "__init__.py")
    command = python.with_name("kandiga-pack")
    for vector, code in (("valid/single", 0), ("invalid/magic", 1), ("missing", 3)):
        done = run(command, "validate", VECTORS / vector, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
    alone = run(python, site / "specs" / "validate_kexp.py", VECTORS / "valid/single", cwd=tmp_path)
    assert alone.returncode == 0
