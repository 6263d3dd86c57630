"""Comparisons as a markdown table, small numbers readable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from benchmarks.quality.logits_kl import Summary

_HEADER = (
    "| {kind} | {name} | tokens | KL mean | median | 99 % | max | top-1 equal | perplexity |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def markdown_table(
    results: Mapping[str, Mapping[str, Summary]], *, kind: str = "run", name: str = "mode"
) -> str:
    """Return a table with a line for every run and compared mode, the reference's perplexity too.

    Args:
        results: {run: {mode: summary}}.
        kind: heading of the runs.
        name: heading of the modes.
    """
    lines = [_HEADER.format(kind=kind, name=name)]
    for run, summaries in results.items():
        lines += (_line(run, mode, summary) for mode, summary in summaries.items())
        lines += _reference_line(run, summaries.values())
    return "\n".join(lines)


def _line(run: str, mode: str, summary: Summary) -> str:
    kls = (summary.kl_mean, summary.kl_median, summary.kl_p99, summary.kl_max)
    cells = (
        run,
        mode,
        str(summary.num_tokens),
        *(f"{kl:.1e}" for kl in kls),
        f"{summary.top1_agreement:.2%}",
        f"{summary.perplexity:.4f}",
    )
    return f"| {' | '.join(cells)} |"


def _reference_line(run: str, summaries: Iterable[Summary]) -> list[str]:
    for summary in summaries:
        perplexity = f"{summary.reference_perplexity:.4f}"
        return [f"| {run} | reference | {summary.num_tokens} | | | | | | {perplexity} |"]
    return []
