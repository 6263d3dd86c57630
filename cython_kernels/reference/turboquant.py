"""The KV cache code in numpy float64: rotation, scalar code, unbiased scale, QJL residual.

PolarQuant is the first stage (a signed Hadamard rotation, then one scalar codebook for every
coordinate), QJL the optional second one (the signs of a projection of what the first left over).
D head_dim; vectors are rows. specs/turboquant.md says where each piece comes from.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
F16 = NDArray[np.float16]
Coding = Literal["keys", "values"]

#: Tokens of a block: they share one key mean.
BLOCK_TOKENS = 128
#: The largest level of a codebook as the kernels hold it, and what a level of 1 stands for.
MAX_LEVEL = 127
LEVEL_UNIT = 1 / 128
KEY_SEED, VALUE_SEED, RESIDUAL_SEED = 1, 2, 3


def _f64(x: ArrayLike) -> F64:
    return np.asarray(x, dtype=np.float64)


# Codebooks


def _density(x: F64) -> F64:
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _distribution(x: F64) -> F64:
    return np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])


@functools.cache
def lloyd_max(bits: int) -> F64:
    """Return the 2^bits centroids, ascending, of the least mean squared error for N(0, 1).

    Lloyd's iteration with the exact integrals: each centroid is the mean of its cell, each border
    lies halfway between two centroids.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits: {bits}, expected 1 to 8")
    count = 2**bits
    # The best codebook is denser by the cube root of the density: a Gaussian of variance 3.
    centroids = math.sqrt(3) * np.array([_normal_quantile((i + 0.5) / count) for i in range(count)])
    for _ in range(20000):
        borders = np.concatenate([[-40.0], (centroids[:-1] + centroids[1:]) / 2, [40.0]])
        mass = np.diff(_distribution(borders))
        new = -np.diff(_density(borders)) / mass
        new = (new - new[::-1]) / 2
        if np.abs(new - centroids).max() < 1e-13:
            break
        centroids = new
    return centroids


def _normal_quantile(p: float) -> float:
    low, high = -10.0, 10.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if 0.5 * (1 + math.erf(middle / math.sqrt(2))) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def gaussian_distortion(centroids: F64) -> float:
    """Return the mean squared error of rounding N(0, 1) to the nearest of symmetric centroids.

    1 - 2 E[x c(x)] + E[c(x)^2], where E[x; cell] = density(left) - density(right).
    """
    borders = np.concatenate([[-40.0], (centroids[:-1] + centroids[1:]) / 2, [40.0]])
    mass = np.diff(_distribution(borders))
    first_moment = -np.diff(_density(borders))
    return float(1 - 2 * centroids @ first_moment + centroids**2 @ mass)


@functools.cache
def level_table(bits: int) -> NDArray[np.int8]:
    """Return the codebook of 2, 3 or 4 bits as the kernels hold it: int8, code by code.

    The centroids times MAX_LEVEL / the largest, rounded. Codes of 2 and 4 bits ascend; a code of 3
    bits is a magnitude (two bits) and a sign (bit 2), which lie in planes of their own.
    """
    centroids = lloyd_max(bits)
    levels = np.rint(centroids * (MAX_LEVEL / centroids[-1])).astype(np.int8)
    if bits == 3:
        levels = np.concatenate([levels[4:], -levels[4:]])
    return levels


# Rotation


def random_signs(seed: int, count: int) -> F64:
    """Return +1 or -1 by the top bit of the outputs of splitmix64 started at `seed`."""
    state, signs = seed, []
    mask = 2**64 - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        signs.append(-1.0 if (z ^ (z >> 31)) >> 63 else 1.0)
    return np.array(signs)


def rotation_signs(seed: int, head_dim: int) -> F64:
    """Return the signs (stages, D): one stage for a power of two, else three."""
    stages = 1 if head_dim & (head_dim - 1) == 0 else 3
    return random_signs(seed, stages * head_dim).reshape(stages, head_dim)


def _pieces(head_dim: int, stages: int) -> list[slice]:
    """Return the power-of-two pieces of the stages: leading, trailing, leading."""
    piece = 1 << (head_dim.bit_length() - 1)
    return [slice(0, piece), slice(head_dim - piece, head_dim), slice(0, piece)][:stages]


def hadamard(x: ArrayLike) -> F64:
    """Return the orthonormal Walsh-Hadamard transform of the last axis, a power of two long."""
    y = _f64(x).copy()
    length, half = y.shape[-1], 1
    while half < length:
        pairs = y.reshape(*y.shape[:-1], length // (2 * half), 2, half)
        y = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], -2)
        y = y.reshape(*y.shape[:-3], length)
        half *= 2
    return y / math.sqrt(length)


def rotate(x: ArrayLike, signs: F64) -> F64:
    """Rotate rows (..., D): at each stage multiply by its signs, then transform its piece.

    A head_dim that is no power of two has overlapping pieces; the signs between them keep one
    transform from undoing another.
    """
    y = _f64(x).copy()
    for stage, piece in zip(signs, _pieces(signs.shape[1], signs.shape[0]), strict=True):
        y = y * stage
        y[..., piece] = hadamard(y[..., piece])
    return y


def unrotate(y: ArrayLike, signs: F64) -> F64:
    """Undo `rotate`."""
    x = _f64(y).copy()
    pieces = _pieces(signs.shape[1], signs.shape[0])
    for stage, piece in zip(signs[::-1], pieces[::-1], strict=True):
        x[..., piece] = hadamard(x[..., piece])
        x = x * stage
    return x


# The scalar code


def quantize(y: ArrayLike, bits: int) -> I64:
    """Return codes of rotated rows y (N, D), each normalized to mean square 1.

    8 bits are uniform: levels -127 to 127 over the row's own range, stored as they are. A codebook
    of 256 levels would cost a large table for an error that is not seen at all.
    """
    y = _f64(y)
    with np.errstate(divide="ignore", invalid="ignore"):
        if bits == 8:
            factor = MAX_LEVEL / np.abs(y).max(axis=-1, keepdims=True)
        else:
            factor = 1 / np.sqrt(np.mean(y * y, axis=-1, keepdims=True))
    z = y * np.where(np.isfinite(factor), factor, 0.0)
    if bits == 8:
        return np.rint(z).astype(np.int64)
    centroids = lloyd_max(bits)
    borders = (centroids[:-1] + centroids[1:]) / 2
    if bits == 3:
        return np.searchsorted(borders[4:], np.abs(z)) + 4 * (z < 0)
    return np.searchsorted(borders, z)


def levels_of(codes: I64, bits: int) -> F64:
    """Return what codes stand for, as whole levels."""
    return codes.astype(np.float64) if bits == 8 else level_table(bits)[codes].astype(np.float64)


def unbiased_scale(y: F64, levels: F64) -> F64:
    """Return |y|^2 / <y, levels> of each row (EDEN): inner products come out unbiased."""
    return _ratio(np.sum(y * y, axis=-1), np.sum(y * levels, axis=-1))


#: Steps of the codebook that `shaped_codes` tries: feedback widens what is to be rounded.
SHAPE_STEPS = (1.0, 1.12, 1.25)
#: Every channel has at least this part of the mean energy, however little has been seen of it.
SHAPE_FLOOR = 0.01
#: Kernels keep a few vectors of this size on the stack, and shape no longer ones.
SHAPE_MAX_DIM = 256


def rotated_metric(energies: ArrayLike, signs: F64) -> F64:
    """Return M (D, D): queries of these channel energies (D,) see e M e of a rotated error e."""
    energies = _f64(energies)
    weights = energies / energies.mean() + SHAPE_FLOOR
    rotation = rotate(np.eye(len(weights)), signs)
    return rotation.T @ (weights[:, None] * rotation)


def shaped_codes(y: ArrayLike, bits: int, metric: F64) -> tuple[I64, F64]:
    """Return codes (N, D) of rotated rows y, and their unbiased scales (N,), by noise shaping.

    Coordinates are rounded one after another, each with a target that makes up for the errors of
    those before it: with metric = M' diag M, M lower triangular with ones on its diagonal, the
    error is sum diag (M e)^2. Of a few steps each row has that of the least error.
    """
    y = _f64(y)
    upper = np.linalg.cholesky(metric[::-1, ::-1])[::-1, ::-1]
    feedback = (upper / np.diag(upper)).T
    deviation = np.sqrt(np.mean(y * y, axis=1))
    best, codes, scales = np.full(len(y), np.inf), np.zeros(y.shape, np.int64), np.zeros(len(y))
    for factor in SHAPE_STEPS:
        tried, decoded = _rounded_with_feedback(y, bits, feedback, deviation * factor)
        rest = y - decoded
        error = np.sum(rest @ metric * rest, axis=1)
        is_better = error < best
        best, codes[is_better] = np.where(is_better, error, best), tried[is_better]
        levels = levels_of(tried, bits) * LEVEL_UNIT
        unbiased = _ratio(np.sum(y @ metric * y, axis=1), np.sum(y @ metric * levels, axis=1))
        scales = np.where(is_better, unbiased, scales)
    return codes, scales


def _rounded_with_feedback(y: F64, bits: int, feedback: F64, deviation: F64) -> tuple[I64, F64]:
    """Return codes of rows y, of such a standard deviation (N,) each, and what they stand for."""
    centroids = lloyd_max(bits)
    borders = (centroids[:-1] + centroids[1:]) / 2
    step = deviation * (centroids[-1] / MAX_LEVEL)
    safe = np.where(deviation == 0, 1, deviation)
    codes, decoded = np.zeros(y.shape, np.int64), np.zeros(y.shape)
    for i in range(y.shape[1]):
        z = (y[:, i] + (y - decoded)[:, :i] @ feedback[i, :i]) / safe
        if bits == 3:
            codes[:, i] = np.searchsorted(borders[4:], np.abs(z)) + 4 * (z < 0)
        else:
            codes[:, i] = np.searchsorted(borders, z)
        decoded[:, i] = levels_of(codes[:, i], bits) * step
    return codes, decoded


def least_squares_scale(y: F64, levels: F64) -> F64:
    """Return <y, levels> / <levels, levels> of each row: the least squared error."""
    return _ratio(np.sum(y * levels, axis=-1), np.sum(levels * levels, axis=-1))


def _ratio(numerator: F64, denominator: F64) -> F64:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def qjl_encode(residual: ArrayLike, projection: F64) -> tuple[F64, F64]:
    """Return signs (N, m) of the projection (m, D) of residuals (N, D), and their norms (N,)."""
    residual = _f64(residual)
    return np.where(residual @ projection.T < 0, -1.0, 1.0), np.linalg.norm(residual, axis=-1)


def qjl_decode(signs: F64, norms: F64, projection: F64) -> F64:
    """Return unbiased estimates (N, D): sqrt(pi / 2) / m * norm * projection^T signs.

    The rows of the projection are Gaussian with unit variance, or sqrt(D) times orthonormal.
    """
    factor = math.sqrt(math.pi / 2) / projection.shape[0]
    return factor * norms[:, None] * (signs @ projection)


# Blocks, as the kernels store them


@dataclass(frozen=True)
class CodedRows:
    """Rows of one block and KV head: codes (T, D), scales (T,) and the mean (D,) in float16.

    residual: the QJL stage, 1 for a negative sign (T, D), and its scales (T,).
    """

    codes: I64
    scales: F16
    mean: F16
    bits: int
    signs: F64
    residual: tuple[I64, F16] | None = None

    def first_stage(self) -> F64:
        """Return the rows (T, D) in the rotated basis, without mean and residual."""
        levels = levels_of(self.codes, self.bits) * LEVEL_UNIT
        return levels * self.scales.astype(np.float64)[:, None]

    def projected_residual(self) -> F64:
        """Return the residual's estimate (T, D) in the basis of its projection."""
        if self.residual is None:
            return np.zeros(self.codes.shape)
        negative, scales = self.residual
        return (1.0 - 2.0 * negative) * LEVEL_UNIT * scales.astype(np.float64)[:, None]

    def rotated(self) -> F64:
        """Return the rows (T, D) in the rotated basis, without the mean."""
        signs = rotation_signs(RESIDUAL_SEED, self.codes.shape[1])
        return self.first_stage() + unrotate(self.projected_residual(), signs)

    def rows(self) -> F64:
        """Return the rows (T, D)."""
        return unrotate(self.rotated(), self.signs) + self.mean.astype(np.float64)


def encode(
    rows: ArrayLike,
    bits: int,
    coding: Coding,
    *,
    qjl: bool = False,
    energies: ArrayLike | None = None,
) -> CodedRows:
    """Code the rows (T, D) of one block and KV head.

    Keys are centred on their mean, which softmax absorbs but for one product with the query a
    block. Scales are unbiased: the error of a sum over many tokens then averages out. With qjl the
    first stage of keys has a bit less and the least-squares scale, and the residual makes it
    unbiased. Keys of a head_dim that is a power of two are shaped by the `energies` (D,) of
    queries, if any.
    """
    rows = _f64(rows)
    head_dim, is_keys = rows.shape[1], coding == "keys"
    mean = (rows.mean(axis=0) if is_keys else np.zeros(head_dim)).astype(np.float16)
    signs = rotation_signs(KEY_SEED if is_keys else VALUE_SEED, head_dim)
    y = rotate(rows - mean.astype(np.float64), signs)
    is_shaped = energies is not None and np.any(energies) and is_keys and not qjl and bits < 8
    if is_shaped and len(signs) == 1 and head_dim <= SHAPE_MAX_DIM:
        codes, scales = shaped_codes(y, bits, rotated_metric(energies, signs))
        return CodedRows(codes, scales.astype(np.float16), mean, bits, signs)
    bits -= qjl
    codes = quantize(y, bits)
    levels = levels_of(codes, bits) * LEVEL_UNIT
    choose = least_squares_scale if qjl else unbiased_scale
    coded = CodedRows(codes, choose(y, levels).astype(np.float16), mean, bits, signs)
    if not qjl:
        return coded
    rest = y - coded.first_stage()
    projected = rotate(rest, rotation_signs(RESIDUAL_SEED, head_dim))
    factor = math.sqrt(math.pi / 2 / head_dim) / LEVEL_UNIT
    scales = (np.linalg.norm(rest, axis=1) * factor).astype(np.float16)
    return replace(coded, residual=((projected < 0).astype(np.int64), scales))


def _pack_units(units: I64, bits: int) -> bytes:
    """Return the code planes of units (N, 64), then their sign planes."""
    codes = units.astype(np.uint8)
    if bits == 8:
        return codes.tobytes()
    if bits == 4:
        return (codes[:, :32] | codes[:, 32:] << 4).astype(np.uint8).tobytes()
    quarters = codes.reshape(-1, 4, 16) & 3
    low = quarters[:, 0] | quarters[:, 1] << 2 | quarters[:, 2] << 4 | quarters[:, 3] << 6
    planes = low.astype(np.uint8).tobytes() if bits > 1 else b""
    if bits in (1, 3):
        sign = codes >> 2 if bits == 3 else codes
        planes += np.packbits(sign & 1, axis=1, bitorder="little").tobytes()
    return planes


def _pack_keys(codes: I64, bits: int) -> bytes:
    """Units of 16 tokens by 4 dims: first all dims of the first 16 tokens."""
    tokens, dims = codes.shape
    tiles = codes.reshape(tokens // 16, 16, dims // 4, 4).transpose(0, 2, 1, 3)
    return _pack_units(tiles.reshape(-1, 64), bits)


def _pack_values(codes: I64, bits: int) -> bytes:
    """Units of 16 dims by 4 tokens: first all tokens of the first 16 dims."""
    tokens, dims = codes.shape
    tiles = codes.reshape(tokens // 4, 4, dims // 16, 16).transpose(2, 0, 3, 1)
    return _pack_units(tiles.reshape(-1, 64), bits)


def pack_record(keys: CodedRows, values: CodedRows) -> bytes:
    """Return one KV head's record of a block, padded to 64 bytes, as the kernels lay it out."""
    pad = -keys.codes.shape[1] % 16

    def padded(codes: I64) -> I64:
        return np.pad(codes, ((0, 0), (0, pad)))

    parts = [np.pad(keys.mean, (0, pad)).tobytes()]
    parts += [keys.scales.tobytes(), _pack_keys(padded(keys.codes), keys.bits)]
    if keys.residual is not None:
        negative, scales = keys.residual
        parts += [scales.tobytes(), _pack_keys(padded(negative), 1)]
    parts += [values.scales.tobytes(), _pack_values(padded(values.codes), values.bits)]
    record = b"".join(parts)
    return record + bytes(-len(record) % 64)


def round_query(rotated: F64) -> F64:
    """Return rows rounded to 127 levels of their range, as the kernels use them."""
    step = np.abs(rotated).max(axis=-1, keepdims=True) / 127
    step[step == 0] = 1
    return np.rint(rotated / step) * step


def coded_scores(q: ArrayLike, keys: CodedRows, *, rounded_query: bool = True) -> F64:
    """Return q . k (R, T) for query rows q (R, D) of the keys' head."""
    q = _f64(q)
    rotated = rotate(q, keys.signs)
    projected = rotate(rotated, rotation_signs(RESIDUAL_SEED, q.shape[1]))
    if rounded_query:
        rotated, projected = round_query(rotated), round_query(projected)
    scores = rotated @ keys.first_stage().T + projected @ keys.projected_residual().T
    return scores + (q @ keys.mean.astype(np.float64))[:, None]


def attention(
    q: ArrayLike, keys: CodedRows, values: CodedRows, scale: float, *, rounded_query: bool = True
) -> F64:
    """Attend from one KV head's query rows q (R, D) over one coded block, all of it visible."""
    scores = coded_scores(q, keys, rounded_query=rounded_query) * scale
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return unrotate(weights @ values.rotated() / weights.sum(-1, keepdims=True), values.signs)
