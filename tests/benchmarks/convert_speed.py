"""Speed of `kandiga-pack convert` next to `cp` of the same files. A program, not a test.

    python tests/benchmarks/convert_speed.py FOLDER [--gigabytes 3] [--rounds 3]

FOLDER lies on the disk to be measured; twice the gigabytes must be free there. Both commands start
with cold caches where the system lets them be dropped, and both end with the data on the disk: cp
is followed by sync of what it wrote. They take turns, since disks have moods; the ratio is that of
the medians. Expert shapes are those of Qwen3-30B-A3B in 4 bits: blocks of 2.65 MB in nine parts.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from safetensors.numpy import save_file

NUM_EXPERTS, HIDDEN_SIZE, MOE_SIZE, GROUP_SIZE = 128, 2048, 768, 64
LAYER_BYTES = NUM_EXPERTS * 3 * HIDDEN_SIZE * MOE_SIZE * 9 // 16
SHAPES = {
    "gate_proj": (MOE_SIZE, HIDDEN_SIZE),
    "up_proj": (MOE_SIZE, HIDDEN_SIZE),
    "down_proj": (HIDDEN_SIZE, MOE_SIZE),
}


def make_checkpoint(folder: Path, total_bytes: int) -> None:
    """Write an MLX checkpoint of about `total_bytes` in files of three layers."""
    folder.mkdir()
    num_layers = max(1, total_bytes // LAYER_BYTES)
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": HIDDEN_SIZE,
        "moe_intermediate_size": MOE_SIZE,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": 8,
        "num_hidden_layers": num_layers,
        "quantization": {"group_size": GROUP_SIZE, "bits": 4},
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    # Bytes that no disk can compress; each file begins somewhere else in them.
    noise = rng.integers(0, 1 << 32, (LAYER_BYTES >> 2) + (1 << 20), np.uint32)
    layers = range(num_layers)
    for number in range(0, num_layers, 3):
        tensors = {
            name: array
            for layer in layers[number : number + 3]
            for name, array in layer_tensors(layer, noise[layer * 1024 :]).items()
        }
        save_file(tensors, folder / f"model-{number:05d}.safetensors", {"format": "mlx"})


def layer_tensors(layer: int, noise: np.ndarray) -> dict[str, np.ndarray]:
    """Return a layer's stacks and some dense weights, views of `noise`."""
    prefix = f"model.layers.{layer}"
    tensors = {f"{prefix}.self_attn.q_proj.weight": noise[: 4 << 20].reshape(-1, 256)}
    at = 0
    for name, (rows, columns) in SHAPES.items():
        for role, words in (("weight", columns // 8), ("scales", columns // GROUP_SIZE // 2)):
            for each in (role, "biases") if role == "scales" else (role,):
                count = NUM_EXPERTS * rows * words
                piece = noise[at : at + count]
                at += count
                if role == "scales":
                    piece = piece.view(np.float16)
                stacked = piece.reshape(NUM_EXPERTS, rows, -1)
                tensors[f"{prefix}.mlp.switch_mlp.{name}.{each}"] = stacked
    return tensors


def drop_caches() -> bool:
    """Write out and forget what the kernel holds of files; False where it may not be told to."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def time_copy(source: Path, dest: Path) -> float:
    """Return the seconds of cp and sync."""
    drop_caches()
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(dest)], check=True)
    subprocess.run(["sync", *map(str, dest.iterdir())], check=True)
    return time.perf_counter() - started


# wait4's ru_maxrss would be this process's own: a child starts with it.
CONVERT = """
import os, sys
from kandiga_pack.cli import run
code = run(["convert", *sys.argv[1:], "--quiet"])
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(peak * 1024, sum(os.times()[:2]))
sys.exit(code)
"""


def time_convert(source: Path, dest: Path) -> tuple[float, int, float]:
    """Return the seconds of the whole command, its peak memory in bytes, its processor seconds."""
    drop_caches()
    command = [sys.executable, "-c", CONVERT, str(source), str(dest), "--shard-size", "1"]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    peak, processor = done.stdout.split()
    return seconds, int(peak), float(processor)


def measure(folder: Path, total_bytes: int, rounds: int) -> dict[str, Any]:
    """Return every figure; the files made are removed."""
    source, dest = folder / "benchmark-source", folder / "benchmark-dest"
    copies, packs, peaks, processors = [], [], [], []
    try:
        make_checkpoint(source, total_bytes)
        size = sum(path.stat().st_size for path in source.iterdir())
        for _ in range(rounds):
            copies.append(time_copy(source, dest))
            shutil.rmtree(dest)
            seconds, peak, processor = time_convert(source, dest)
            shutil.rmtree(dest)
            packs.append(seconds)
            peaks.append(peak)
            processors.append(processor)
    finally:
        for path in (source, dest, dest.with_name(f"{dest.name}.partial")):
            shutil.rmtree(path, ignore_errors=True)
    return {
        "bytes": size,
        "caches_dropped": drop_caches(),
        "copy_seconds": copies,
        "convert_seconds": packs,
        "convert_processor_seconds": processors,
        "copy_gb_per_second": size / statistics.median(copies) / 1e9,
        "convert_gb_per_second": size / statistics.median(packs) / 1e9,
        "ratio": statistics.median(copies) / statistics.median(packs),
        "peak_memory_bytes": max(peaks),
    }


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--gigabytes", default=3.0, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(folder: Path, gigabytes: float, rounds: int) -> None:
    """Print the figures as JSON."""
    print(json.dumps(measure(folder, int(gigabytes * 1e9), rounds), indent=2))


if __name__ == "__main__":
    main()
