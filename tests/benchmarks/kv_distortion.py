"""How well the KV code keeps vectors: the papers' numbers, and other codes beside it.

    PYTHONPATH=tests python tests/benchmarks/kv_distortion.py [--plot FILE.png]

Prints two markdown tables. Vectors are random directions, as a rotation makes of any; what real
keys are like beyond that (a common offset) is what tests/benchmarks/kv_quality.py measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from cython_kernels.reference import turboquant as tq

F64 = NDArray[np.float64]
NUM_VECTORS = 2048
#: As printed in the TurboQuant paper (arXiv 2504.19874), and exact for N(0, 1).
PAPER_MSE = {1: 0.36, 2: 0.117, 3: 0.03, 4: 0.009}
EXACT_MSE = {bits: tq.gaussian_distortion(tq.lloyd_max(bits)) for bits in PAPER_MSE}
PAPER_INNER_PRODUCT = {1: 1.57, 2: 0.56, 3: 0.18, 4: 0.047}
EXACT_INNER_PRODUCT = {
    bits: math.pi / 2 * (EXACT_MSE[bits - 1] if bits > 1 else 1.0) for bits in PAPER_MSE
}


def unit_vectors(seed: int, count: int, dim: int) -> F64:
    """Return rows (count, dim) of length 1, of uniform directions."""
    x = np.random.default_rng(seed).standard_normal((count, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def paper_code(x: F64, bits: int) -> F64:
    """Return x after the paper's MSE code: rotation, nearest centroid over sqrt(d), and back."""
    signs = tq.rotation_signs(9, x.shape[1])
    centroids = tq.lloyd_max(bits) / math.sqrt(x.shape[1])
    borders = (centroids[:-1] + centroids[1:]) / 2
    return tq.unrotate(centroids[np.searchsorted(borders, tq.rotate(x, signs))], signs)


def paper_figures(bits: int, dim: int = 1024, rounds: int = 8) -> tuple[float, float]:
    """Return the squared error of the MSE code and d times that of the inner product (with QJL)."""
    x, queries = unit_vectors(1, 500, dim), unit_vectors(2, 500, dim)
    mse = float(np.sum((x - paper_code(x, bits)) ** 2, axis=1).mean())
    first = paper_code(x, bits - 1) if bits > 1 else np.zeros_like(x)
    rng, errors = np.random.default_rng(3), []
    for _ in range(rounds):
        projection = rng.standard_normal((dim, dim))
        estimate = first + tq.qjl_decode(*tq.qjl_encode(x - first, projection), projection)
        errors.append(np.mean((queries @ (estimate - x).T) ** 2))
    return mse, float(np.mean(errors)) * dim


# The codes that are compared: rows (N, D) -> decoded rows and bits an element, all told.

Code = Callable[[F64], tuple[F64, float]]


def turboquant(bits: int, coding: tq.Coding, *, qjl: bool = False) -> Code:
    """Return the code of the cache: blocks of 128 rows, the mean of keys counted."""

    def code(x: F64) -> tuple[F64, float]:
        blocks = x.reshape(-1, tq.BLOCK_TOKENS, x.shape[1])
        decoded = [tq.encode(block, bits, coding, qjl=qjl).rows() for block in blocks]
        scales = 16 * (2 if qjl else 1) / x.shape[1]
        mean = 16 / tq.BLOCK_TOKENS if coding == "keys" else 0
        return np.concatenate(decoded), bits + scales + mean

    return code


def gaussian_qjl(bits: int) -> Code:
    """Return the two-stage code as the paper has it: a dense Gaussian projection."""

    def code(x: F64) -> tuple[F64, float]:
        projection = np.random.default_rng(4).standard_normal((x.shape[1],) * 2)
        first = paper_code(x, bits - 1)
        rest = tq.qjl_decode(*tq.qjl_encode(x - first, projection), projection)
        return first + rest, bits + 32 / x.shape[1]

    return code


def affine(bits: int, group_size: int = 64) -> Code:
    """Return mx.quantize, as mlx-lm's quantized cache uses it."""

    def code(x: F64) -> tuple[F64, float]:
        packed = mx.quantize(mx.array(x.astype(np.float16)), group_size, bits)
        decoded = mx.dequantize(*packed, group_size, bits)
        return np.array(decoded).astype(np.float64), bits + 32 / group_size

    return code


def uniform_with_residual_sign(bits: int = 3) -> Code:
    """Return the design that kandiga 0.3.1 describes: min-max uniform, and a sign of the residual.

    The sign stands for the residual's mean size: the best it can be without a projection.
    """

    def code(x: F64) -> tuple[F64, float]:
        low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
        step = (high - low) / (2**bits - 1)
        first = np.rint((x - low) / step) * step + low
        rest = x - first
        decoded = first + np.sign(rest) * np.abs(rest).mean(axis=1, keepdims=True)
        return decoded, bits + 1 + 48 / x.shape[1]

    return code


def projected_residual_sign(bits: int = 3) -> Code:
    """Return the same with the sign of a Gaussian projection (QJL), as its text says."""

    def code(x: F64) -> tuple[F64, float]:
        low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
        step = (high - low) / (2**bits - 1)
        first = np.rint((x - low) / step) * step + low
        projection = np.random.default_rng(5).standard_normal((x.shape[1],) * 2)
        rest = tq.qjl_decode(*tq.qjl_encode(x - first, projection), projection)
        return first + rest, bits + 1 + 48 / x.shape[1]

    return code


CODES: dict[str, Code] = {
    "keys, 3 bits": turboquant(3, "keys"),
    "values, 3 bits": turboquant(3, "values"),
    "keys, 4 bits": turboquant(4, "keys"),
    "values, 4 bits": turboquant(4, "values"),
    "keys, 8 bits": turboquant(8, "keys"),
    "keys, 2 bits + QJL (orthogonal)": turboquant(3, "keys", qjl=True),
    "2 bits + QJL (Gaussian)": gaussian_qjl(3),
    "keys, 3 bits + QJL (orthogonal)": turboquant(4, "keys", qjl=True),
    "affine 3, group 64": affine(3),
    "affine 4, group 64": affine(4),
    "0.3.1: uniform 3 + residual sign": uniform_with_residual_sign(),
    "0.3.1: uniform 3 + projected sign": projected_residual_sign(),
}


def figures(code: Code, dim: int) -> tuple[float, float, float]:
    """Return bits an element, mean cosine, and the rms error of inner products times sqrt(d)."""
    x, queries = unit_vectors(6, NUM_VECTORS, dim), unit_vectors(7, 256, dim)
    decoded, bits = code(x)
    cosine = np.sum(x * decoded, axis=1) / np.linalg.norm(decoded, axis=1)
    error = np.sqrt(np.mean((queries @ (decoded - x).T) ** 2) * dim)
    return bits, float(cosine.mean()), float(error)


def paper_rows() -> Iterator[str]:
    """Yield the first table."""
    yield "| bits | MSE | exact | paper | inner product x d | exact | paper |"
    yield "|---|---|---|---|---|---|---|"
    for bits in PAPER_MSE:
        mse, inner = paper_figures(bits)
        yield (
            f"| {bits} | {mse:.4f} | {EXACT_MSE[bits]:.4f} | {PAPER_MSE[bits]} | {inner:.3f} | "
            f"{EXACT_INNER_PRODUCT[bits]:.3f} | {PAPER_INNER_PRODUCT[bits]} |"
        )


def code_rows(dims: tuple[int, ...] = (64, 128, 256)) -> Iterator[str]:
    """Yield the second table."""
    heads = (f"bits, d={dim} | cosine | inner product" for dim in dims)
    yield f"| code | {' | '.join(heads)} |"
    yield f"|---|{'---|' * 3 * len(dims)}"
    for name, code in CODES.items():
        cells = (
            f"{bits:.3f} | {cosine:.4f} | {error:.3f}"
            for bits, cosine, error in (figures(code, dim) for dim in dims)
        )
        yield f"| {name} | {' | '.join(cells)} |"


def plot(path: Path) -> None:
    """Draw squared error over bits: the code, the bounds, and the others."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bits = np.arange(1, 5)
    axes = pyplot.subplots(figsize=(7, 4.5))[1]
    axes.semilogy(bits, 4.0**-bits, "k--", label="no code is below 4^-b")
    axes.semilogy(bits, math.sqrt(3) * math.pi / 2 * 4.0**-bits, "k:", label="the paper's bound")
    measured = [paper_figures(int(b), rounds=1)[0] for b in bits]
    axes.semilogy(bits, measured, "o-", label="rotation + Lloyd-Max, measured")
    for name, code in CODES.items():
        x = unit_vectors(6, NUM_VECTORS, 128)
        decoded, used = code(x)
        error = float(np.sum((x - decoded) ** 2, axis=1).mean())
        if used < 5:
            axes.semilogy(used, error, "x")
            axes.annotate(
                name, (used, error), fontsize=6, xytext=(3, 3), textcoords="offset points"
            )
    axes.set_xlabel("bits an element, scales and means counted (d=128)")
    axes.set_ylabel("squared error of a unit vector")
    axes.legend(fontsize=8)
    axes.figure.tight_layout()
    axes.figure.savefig(path, dpi=110)


@click.command()
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Needs matplotlib.")
def main(plot_path: Path | None) -> None:
    """Print the tables."""
    print("\n".join(paper_rows()), end="\n\n")
    print("\n".join(code_rows()))
    if plot_path:
        plot(plot_path)


if __name__ == "__main__":
    main()
