"""Makes specs/vectors/: sets that must be read, and sets that must be refused.

    python specs/make_vectors [FOLDER]

Written from kexp-v1.md with struct, zlib, hashlib and json alone. It imports nothing of this
project, so that the files are a witness of their own and not an echo of the writer they test.

contents.py, sets.py     what goes into a set, and its files; zstd_frames.py
models.py                the models that most cases are made of
changes.py               a case, and sets in which something is other than it should be
valid.py, bad_*.py       the cases
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

from bad_dense import dense_cases
from bad_files import file_cases, manifest_cases
from bad_headers import superblock_cases, table_cases
from bad_index import index_cases
from bad_json import json_cases, meta_cases
from bad_layouts import layout_cases
from bad_zstd import zstd_cases
from changes import Case
from valid import valid_cases


def invalid_cases() -> list[Case]:
    return [
        *file_cases(),
        *manifest_cases(),
        *superblock_cases(),
        *table_cases(),
        *zstd_cases(),
        *json_cases(),
        *meta_cases(),
        *layout_cases(),
        *index_cases(),
        *dense_cases(),
    ]


WITHOUT_VECTOR = {
    "E_IO": "what the system cannot read depends on the system",
    "E_FILE_CHANGED": "needs a file that changes while it is open",
    "E_FILE_NAME": "refused by a writer",
    "E_EXISTS": "refused by a writer",
    "E_PLAN": "refused by a writer",
    "E_NO_EXPERT": "the caller's mistake",
    "E_NO_TENSOR": "the caller's mistake",
}


def all_files() -> dict[str, bytes]:
    """Return path beneath the folder -> content."""
    out: dict[str, bytes] = {}
    lines = []
    for verdict, cases in (("valid", valid_cases()), ("invalid", invalid_cases())):
        for case in cases:
            path = f"{verdict}/{case.name}"
            if any(name.startswith(path + "/") for name in out):
                raise ValueError(f"two cases are called {path}")
            for name, data in case.files.items():
                out[f"{path}/{name}"] = bytes(data)
            record = {"path": path, "verdict": verdict, "level": case.level, "code": case.code}
            lines.append(json.dumps(record | {"writer": case.writer, "note": case.note}))
    text = ",\n  ".join(lines)
    codes = json.dumps(WITHOUT_VECTOR, indent=2)
    out["cases.json"] = f'{{"cases": [\n  {text}\n],\n"codes_without_vector": {codes}}}\n'.encode()
    sums = (f"{hashlib.sha256(out[path]).hexdigest()}  {path}\n" for path in sorted(out))
    out["SHA256SUMS"] = "".join(sums).encode()
    return out


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "vectors"
    for verdict in ("valid", "invalid"):
        shutil.rmtree(folder / verdict, ignore_errors=True)
    for path, data in all_files().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


if __name__ == "__main__":
    main()
