"""This package as a user has it: a wheel, installed into an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with meson and ninja in reach, which are beside the interpreter."""
    command = [str(argument) for argument in arguments]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def install_wheel(folder: Path) -> Path:
    """Build a wheel, install it into an environment in `folder`; return the folder of commands.

    Other libraries are those of the environment of the tests.
    """
    # The build folder of `make env`: the kernels are compiled there already.
    build = f"build-dir=build/cp{sys.version_info.major}{sys.version_info.minor}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--quiet", "--no-deps", "--no-build-isolation"]
    built = run(*pip, "wheel", *options, f"-C{build}", "-w", folder, ROOT, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    installed = run(*pip, "--python", python, "install", "--no-deps", wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    # click and the others; the editable install's own hook is not followed from here.
    (site_packages(folder / "env") / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


def site_packages(environment: Path) -> Path:
    """Return where an environment has its packages."""
    return next((environment / "lib").glob("python*")) / "site-packages"
