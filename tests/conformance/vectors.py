"""The vectors of specs/, for tests of anything that reads or writes containers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "specs" / "vectors"


@dataclass(frozen=True)
class Vector:
    """A case of cases.json. level: "open" or "full", when its fault must be found."""

    path: Path
    verdict: str
    level: str
    code: str | None
    writer: bool
    note: str

    @property
    def name(self) -> str:
        return str(self.path.relative_to(VECTORS))


def load_cases() -> dict[str, Any]:
    """Return cases.json as it is."""
    document: dict[str, Any] = json.loads((VECTORS / "cases.json").read_text())
    return document


def load_vectors(verdict: str | None = None) -> list[Vector]:
    """Return the vectors with that verdict, or all."""
    return [
        Vector(**case | {"path": VECTORS / case["path"]})
        for case in load_cases()["cases"]
        if verdict in (None, case["verdict"])
    ]
