"""Tokens a second over memory budget, as a PNG. The only file that imports matplotlib."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from kandiga_run.bench.report import figure_bound
from kandiga_run.bench.session import Measurement, Results
from kandiga_run.errors import RunError

#: (budget in GB, tokens a second)
_Points = list[tuple[float, float]]


def require_matplotlib() -> None:
    """RunError when there is nothing to draw with; checked before anything is measured."""
    if find_spec("matplotlib") is None:
        raise RunError(
            "--plot needs matplotlib, which is not installed: pip install 'kandiga-kexp[plot]'"
        )


def save_plot(results: Results, path: Path) -> None:
    """Write the curves of every figure that was measured. Raises OSError."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 5), layout="constrained")
    axes = canvas.add_subplot()
    for label, points, ceiling in _curves(results):
        line = axes.plot(*zip(*points, strict=True), marker="o", label=label)[0]
        if len(ceiling) == len(points):
            axes.plot(
                *zip(*ceiling, strict=True),
                linestyle=":",
                color=line.get_color(),
                label=f"{label}: ceiling",
            )
    subject = results.subject
    axes.set_title(f"{subject.folder.name}, {results.machine.cpu}", fontsize=10)
    axes.set_xlabel("memory budget, GB (without a cap: size of the container)")
    axes.set_ylabel("tokens a second, median")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    canvas.savefig(path, dpi=150, format="png")


def _curves(results: Results) -> list[tuple[str, _Points, _Points]]:
    """Return (label, points, ceilings) of each kind of figure, by rising budget."""
    curves: dict[str, tuple[_Points, _Points]] = {}
    for measurement in sorted(results.measurements, key=lambda each: _budget(each, results)):
        x = _budget(measurement, results)
        for figure in measurement.figures:
            size = f"{figure.size} tokens" if figure.kind == "prefill" else f"depth {figure.size}"
            points, ceilings = curves.setdefault(
                f"{figure.kind}, {size}, {measurement.cache}", ([], [])
            )
            speed = figure.tokens_per_second.median
            points.append((x, speed))
            close = figure_bound(figure, measurement, results)
            if close is not None:
                ceilings.append((x, speed / close.fraction))
    return [(label, points, ceilings) for label, (points, ceilings) in curves.items()]


def _budget(measurement: Measurement, results: Results) -> float:
    cap = measurement.cap_bytes
    return (results.subject.total_bytes if cap is None else cap) / 1e9
