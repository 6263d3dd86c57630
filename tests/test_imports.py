"""Rooms depend on one another in one direction only, and the native path starts light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ROOMS = {"cython_kernels", "formats", "kandiga_pack", "kandiga_run", "specs"}
ALLOWED = {
    "cython_kernels": set(),
    "formats": set(),
    "kandiga_pack": {"cython_kernels", "formats", "specs"},
    "kandiga_run": {"cython_kernels", "formats"},
    "specs": set(),
}
HEAVY = ("mlx", "mlx_lm", "transformers", "torch", "matplotlib")


def imported_packages(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, top-level package) of each absolute import in a source file."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_only_what_they_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room} has no Python files: is the path right?"
    forbidden = ROOMS - ALLOWED[room] - {room}
    found = [
        f"{file.relative_to(ROOT)}:{line} imports {package}"
        for file in files
        for line, package in imported_packages(file)
        if package in forbidden or package == "tests"
    ]
    assert not found, "\n".join(found)


def rooms_imported(file: Path) -> Iterator[str]:
    """Yield the rooms of kandiga_run that a file of it imports when it is imported itself."""
    for node in ast.parse(file.read_text(), str(file)).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kandiga_run."):
            yield str(node.module).split(".")[1]


def test_rooms_of_the_runtime_import_one_another_in_one_direction() -> None:
    root = ROOT / "kandiga_run"
    above: dict[str, set[str]] = {}
    for file in sorted(root.rglob("*.py")):
        room = file.relative_to(root).parts[0].removesuffix(".py")
        above.setdefault(room, set()).update(set(rooms_imported(file)) - {room})
    assert len(above) > 20
    TopologicalSorter(above).prepare()  # CycleError names a circle


def test_a_package_names_no_file_that_it_has_not() -> None:
    missing = [
        f"{init.relative_to(ROOT)}: {name}"
        for room in ROOMS
        for init in sorted((ROOT / room).rglob("__init__.py"))
        for name in re.findall(r"\b\w+\.py\b", ast.get_docstring(ast.parse(init.read_text())) or "")
        if not (init.parent / name).is_file()
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("package", ["formats", "cython_kernels", "kandiga_run", "kandiga_pack"])
def test_importing_a_package_leaves_the_heavy_ones_alone(package: str) -> None:
    code = f"import sys, {package}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
