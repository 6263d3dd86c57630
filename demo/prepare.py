"""Make the demo's model: GGUF -> mixture of experts -> an ordinary MLX checkpoint folder.

    python -m demo.prepare [--work .demo]

prints the folder, which mlx_lm.load accepts as well as `kandiga-pack convert` does.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from demo.download import GGUF_SHA256, fetch_gguf
from demo.records import code_digest, forget, is_complete, record
from demo.upcycle import Upcycling, upcycle, upcycled_bytes
from kandiga_pack.sources.gguf import GgufSource

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = Upcycling()
INTERRUPTED = 130
CHECKPOINT_NAME = f"smollm2-{OPTIONS.num_experts}x135m-mlx"


def prepare(work: Path) -> Path:
    """Return the checkpoint folder under `work`, made unless it is there already."""
    work.mkdir(parents=True, exist_ok=True)
    folder = work / CHECKPOINT_NAME
    inputs = {
        "gguf_sha256": GGUF_SHA256,
        "options": asdict(OPTIONS),
        "code": code_digest([ROOT / "demo", ROOT / "kandiga_pack" / "sources" / "gguf"]),
    }
    if is_complete(folder, inputs):
        return folder
    forget(folder)
    gguf = fetch_gguf(work)
    partial = folder.with_name(f"{folder.name}.partial")
    forget(partial)
    partial.mkdir()
    try:
        with GgufSource(gguf) as dense:
            _upcycle(dense, partial)
        partial.rename(folder)
    except BaseException:
        forget(partial)
        raise
    record(folder, inputs)
    return folder


def _upcycle(dense: GgufSource, folder: Path) -> None:
    total = upcycled_bytes(dense, OPTIONS)
    with tqdm(total=total, unit="B", unit_scale=True, desc="upcycling", disable=None) as bar:
        upcycle(dense, folder, OPTIONS, on_bytes=bar.update)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=ROOT / ".demo", help="default: %(default)s")
    work = parser.parse_args().work
    try:
        print(prepare(work))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
