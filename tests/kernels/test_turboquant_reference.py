"""The KV code's reference against the numbers of the papers and against first principles."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from cython_kernels.reference import turboquant as tq

# Expected squared error of the Lloyd-Max code of N(0, 1), as tabulated since Max (1960). The
# TurboQuant paper prints .36 .117 .03 .009: the first digits of these.
MSE = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
# What the paper prints for the inner product times d. .56 and .18 are pi/2 times the MSE of one
# bit less; .047 is pi/2 times its rounded .03, where the exact .0345 gives .0543.
INNER_PRODUCT = {1: 1.57, 2: 0.56, 3: 0.18, 4: math.pi / 2 * 0.03454}
TOLERANCE = 0.03


def unit_vectors(seed: int, count: int, dim: int) -> NDArray[np.float64]:
    x = np.random.default_rng(seed).standard_normal((count, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def coded(x: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """The paper's MSE code: rotate, nearest centroid over sqrt(d), rotate back."""
    signs = tq.rotation_signs(9, x.shape[1])
    centroids = tq.lloyd_max(bits) / math.sqrt(x.shape[1])
    y = tq.rotate(x, signs)
    nearest = np.searchsorted((centroids[:-1] + centroids[1:]) / 2, y)
    return tq.unrotate(centroids[nearest], signs)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_codebooks_have_the_known_distortion(bits: int) -> None:
    centroids = tq.lloyd_max(bits)
    assert tq.gaussian_distortion(centroids) == pytest.approx(MSE[bits], rel=1e-3)
    # The bounds of the paper: no code below 4^-b, this one below sqrt(3) pi / 2 times that.
    assert 4.0**-bits < MSE[bits] < math.sqrt(3) * math.pi / 2 * 4.0**-bits


def test_centroids_are_those_of_the_paper() -> None:
    np.testing.assert_allclose(tq.lloyd_max(1)[1:], [math.sqrt(2 / math.pi)], rtol=1e-9)
    np.testing.assert_allclose(tq.lloyd_max(2)[2:], [0.4528, 1.5104], rtol=1e-3)
    np.testing.assert_allclose(tq.lloyd_max(3)[4:], [0.2451, 0.7560, 1.3439, 2.1519], rtol=1e-3)
    assert tq.lloyd_max(4)[-1] == pytest.approx(2.7326, rel=1e-3)
    assert tq.gaussian_distortion(tq.lloyd_max(8)) < 5e-5


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_mean_squared_error_of_unit_vectors(bits: int) -> None:
    x = unit_vectors(1, 500, 1024)
    error = np.sum((x - coded(x, bits)) ** 2, axis=1).mean()
    assert error == pytest.approx(MSE[bits], rel=TOLERANCE)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_inner_product_error_of_the_two_stage_code(bits: int) -> None:
    dim = 512
    rng = np.random.default_rng(2)
    x, queries = unit_vectors(3, 300, dim), unit_vectors(4, 300, dim)
    first = coded(x, bits - 1) if bits > 1 else np.zeros_like(x)
    errors = []
    for _ in range(8):
        projection = rng.standard_normal((dim, dim))
        estimate = first + tq.qjl_decode(*tq.qjl_encode(x - first, projection), projection)
        errors.append((queries @ estimate.T - queries @ x.T) ** 2)
    assert np.mean(errors) * dim == pytest.approx(INNER_PRODUCT[bits], rel=TOLERANCE)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_whole_levels_cost_nearly_nothing(bits: int) -> None:
    centroids = np.sort(tq.level_table(bits)) * (tq.lloyd_max(bits)[-1] / tq.MAX_LEVEL)
    assert tq.gaussian_distortion(centroids) == pytest.approx(MSE[bits], rel=0.01)


@pytest.mark.parametrize("dim", [1, 2, 8, 20, 64, 80, 96, 112, 128, 192, 256])
def test_rotation_is_orthogonal_and_spreads_one_coordinate(dim: int) -> None:
    signs = tq.rotation_signs(1, dim)
    matrix = tq.rotate(np.eye(dim), signs)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), atol=1e-12)
    np.testing.assert_allclose(tq.unrotate(matrix, signs), np.eye(dim), atol=1e-12)
    # A single large coordinate must not stay one: with a power of two it becomes flat, with
    # overlapping pieces a few times larger than flat (4.3 at most over these sizes).
    limit = 1.0 if dim & (dim - 1) == 0 else 4.6
    assert np.abs(matrix).max() * math.sqrt(dim) <= limit + 1e-9


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_inner_products_are_unbiased(bits: int, dim: int) -> None:
    rng = np.random.default_rng(bits)
    rows = rng.standard_normal((128, dim)) + 3 * rng.standard_normal(dim)
    for coding in ("keys", "values"):
        coded = tq.encode(rows, bits, coding)
        y = tq.rotate(rows - coded.mean.astype(np.float64), coded.signs)
        # Float16 rounds the scale by at most 2^-11.
        np.testing.assert_allclose(np.sum(coded.rotated() * y, 1), np.sum(y * y, 1), rtol=2.0**-11)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("dim", [64, 256])
def test_shaped_keys_move_the_scores_of_such_queries_least(bits: int, dim: int) -> None:
    """A quarter of the error and less, when a few channels have most of the energy."""
    rng = np.random.default_rng(dim)
    energies = np.exp(2 * rng.standard_normal(dim))
    rows = rng.standard_normal((128, dim)) + 3 * rng.standard_normal(dim)
    queries = rng.standard_normal((200, dim)) * np.sqrt(energies)
    errors = []
    for shaped_by in (None, energies):
        coded = tq.encode(rows, bits, "keys", energies=shaped_by)
        error = coded.rows() - rows
        # What all keys have in common, softmax does not see.
        errors.append(np.mean((queries @ (error - error.mean(axis=0)).T) ** 2))
    assert errors[1] < 0.25 * errors[0]
    metric = tq.rotated_metric(energies, coded.signs)
    y = tq.rotate(rows - coded.mean.astype(np.float64), coded.signs)
    seen, wanted = (np.sum(a @ metric * y, axis=1) for a in (coded.rotated(), y))
    np.testing.assert_allclose(seen, wanted, rtol=2.0**-11)


def test_cosine_of_three_and_four_bits() -> None:
    x = unit_vectors(5, 128 * 16, 128)
    for bits, wanted in ((3, 0.983), (4, 0.995)):
        decoded = np.concatenate(
            [tq.encode(block, bits, "values").rows() for block in x.reshape(16, 128, 128)]
        )
        cosine = np.sum(decoded * x, 1) / np.linalg.norm(decoded, axis=1)
        assert round(float(cosine.mean()), 4) >= wanted


def test_zero_rows_stay_zero() -> None:
    for bits in (2, 3, 4, 8):
        for coding in ("keys", "values"):
            np.testing.assert_array_equal(tq.encode(np.zeros((128, 32)), bits, coding).rows(), 0)


def test_attention_on_codes_is_attention_on_decoded_rows() -> None:
    rng = np.random.default_rng(6)
    keys, values = (tq.encode(rng.standard_normal((128, 80)), 4, c) for c in ("keys", "values"))
    q = rng.standard_normal((5, 80))
    scores = q @ keys.rows().T * 0.1
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    exact = tq.attention(q, keys, values, 0.1, rounded_query=False)
    np.testing.assert_allclose(exact, weights @ values.rows(), atol=1e-12)
    # 127 levels of the query's range: a relative error of about 1 % / sqrt(D) a score.
    np.testing.assert_allclose(tq.attention(q, keys, values, 0.1), exact, atol=5e-3)
