"""What the quality figures are made of, on distributions whose figures are known."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.compare import compare_decode, compare_prefill
from benchmarks.quality.logits_kl import Comparison, kl_divergence, log_softmax
from benchmarks.quality.table import markdown_table
from benchmarks.quality.text import english_text, text_tokens
from bigram_engine import BigramEngine
from checkpoints import make_tokenizer

# float32 logits of probabilities are rounded by 6e-8 of their size.
FLOAT32_ROUNDING = 1e-6


def logits_of(*probabilities: list[float]) -> np.ndarray:
    """Logits (T, vocab) of these distributions, shifted: only differences matter."""
    return (np.log(np.array(probabilities)) + 5.0).astype(np.float32)


def test_kl_of_known_distributions() -> None:
    reference, other = logits_of([0.5, 0.25, 0.25]), logits_of([0.25, 0.5, 0.25])
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    (found,) = kl_divergence(log_softmax(reference), log_softmax(other))
    assert found == pytest.approx(expected, abs=FLOAT32_ROUNDING)


def test_kl_of_equal_logits_is_zero() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    assert not kl_divergence(log_softmax(logits), log_softmax(logits)).any()


def test_a_kl_of_rounding_size_is_still_seen() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 1000)).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=(1, 1000)).astype(np.float32) * np.float32(1e-4)
    (found,) = kl_divergence(log_softmax(logits), log_softmax(logits + noise))
    # Half the variance of the differences, weighted by probability.
    assert found == pytest.approx(0.5e-8, rel=0.2)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0.0, -1e4]], dtype=np.float32)
    assert np.exp(log_softmax(logits)).tolist() == [[1.0, 0.0, 0.0]]


def test_summary() -> None:
    reference = logits_of([0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5])
    other = logits_of([0.25, 0.5, 0.25], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5])
    comparison = Comparison()
    comparison.add(reference, other, np.array([0, 1], dtype=np.int32))
    summary = comparison.summary()
    assert summary.num_tokens == 3
    assert summary.top1_agreement == pytest.approx(2 / 3)
    assert summary.kl_max == pytest.approx(0.25 * np.log(2), abs=FLOAT32_ROUNDING)
    assert summary.kl_mean == pytest.approx(summary.kl_max / 3)
    assert summary.kl_median == pytest.approx(0.0, abs=FLOAT32_ROUNDING)
    assert summary.reference_perplexity == pytest.approx((0.5 * 0.8) ** -0.5)
    assert summary.perplexity == pytest.approx((0.25 * 0.8) ** -0.5)


def test_more_rows_than_a_block() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(70, 11)).astype(np.float32)
    other = rng.normal(size=(70, 11)).astype(np.float32)
    targets = rng.integers(0, 11, 70).astype(np.int32)
    at_once, in_pieces = Comparison(), Comparison()
    at_once.add(reference, other, targets)
    for i in range(70):
        in_pieces.add(reference[i : i + 1], other[i : i + 1], targets[i : i + 1])
    assert at_once.summary() == in_pieces.summary()


def test_what_cannot_be_compared() -> None:
    logits = logits_of([0.5, 0.5])
    with pytest.raises(ValueError, match=r"\(1, 2\), \(1, 1\) and \(0,\)"):
        Comparison().add(logits, logits[:, :1], np.empty(0, np.int32))
    with pytest.raises(ValueError, match="not finite"):
        Comparison().add(logits, logits * np.float32(np.nan), np.empty(0, np.int32))
    with pytest.raises(ValueError, match="nothing was compared"):
        Comparison().summary()


def bigrams(seed: int) -> BigramEngine:
    return BigramEngine(np.random.default_rng(seed).integers(0, 9, 400).tolist(), 9)


def test_both_paths_see_every_position_once() -> None:
    tokens = np.random.default_rng(2).integers(0, 9, 50).astype(np.int32)
    done: list[int] = []
    reference, others = bigrams(0), {"same": bigrams(0), "other": bigrams(1)}
    prefill = compare_prefill(
        reference, others, tokens, window=20, chunk=8, progress=lambda n: done.append(n)
    )
    assert sum(done) == 50
    assert reference.chunks == others["other"].chunks == [8, 8, 4, 8, 8, 4, 8, 2]
    decode = compare_decode(reference, others, tokens, context=30)
    assert reference.chunks[8:] == [30, *[1] * 20]
    for summaries, num_tokens in ((prefill, 50), (decode, 20)):
        assert summaries["same"].num_tokens == num_tokens
        assert (summaries["same"].kl_max, summaries["same"].top1_agreement) == (0, 1)
        assert summaries["other"].kl_mean > 0
        assert summaries["same"].perplexity == summaries["same"].reference_perplexity


def test_perplexity_is_that_of_the_tokens_that_follow() -> None:
    tokens = np.random.default_rng(2).integers(0, 9, 30).astype(np.int32)
    engine = bigrams(0)
    found = compare_decode(engine, {"same": bigrams(0)}, tokens, context=10)["same"]
    pairs = engine.log_probabilities[tokens[10:-1], tokens[11:]]
    assert found.perplexity == pytest.approx(np.exp(-pairs.mean()), rel=FLOAT32_ROUNDING)


def test_table_has_a_line_for_each_mode_and_the_reference() -> None:
    tokens = np.random.default_rng(2).integers(0, 9, 30).astype(np.int32)
    others = {"same": bigrams(0), "other": bigrams(1)}
    table = markdown_table({"decode": compare_decode(bigrams(0), others, tokens, context=10)})
    lines = table.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["same", "other", "reference"]
    assert len({line.count("|") for line in lines}) == 1


def test_the_text_is_long_english(tmp_path: Path) -> None:
    assert " the " in english_text()
    make_tokenizer(tmp_path)
    assert text_tokens(tmp_path, 9000).shape == (9000,)
    with pytest.raises(ValueError, match="100000000 are wanted"):
        text_tokens(tmp_path, 10**8)
