"""What each choice of --kv costs in quality, on a real model and text. A program, not a test.

    PYTHONPATH=tests python tests/benchmarks/kv_quality.py MODEL [--tokens 8192]

MODEL is a container with real weights, such as .demo/smollm2-8x135m. Every choice computes the same
text as `--kv fp16` does, as one prompt as long as the text. A token sees the same coded and uncoded
tokens whether it is computed in a prompt or alone, so one path stands for both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

import cython_kernels
from benchmarks.quality import text
from benchmarks.quality.compare import compare_prefill
from benchmarks.quality.logits_kl import Summary
from kandiga_run.engine import Engine, load_engine
from kandiga_run.kv.choices import BITS

#: Options of a compared choice, by the name it has in the table.
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"kv": name} for name in BITS},
    "kv3-qjl": {"kv": "kv3", "kv_qjl": True},
    "k4v3-qjl": {"kv": "k4v3", "kv_qjl": True},
    "k4v3, 2 boundary layers": {"kv": "k4v3", "kv_protect": 2},
    "kv3, 2 boundary layers": {"kv": "kv3", "kv_protect": 2},
}
#: Logits of every engine are held at once: 128 rows of 50 000 take 25 MB an engine.
CHUNK = 128
_HEADER = (
    "| --kv | tokens | KLD mean | median | 99 % | same top-1 | perplexity | against fp16 |\n"
    "|---|---|---|---|---|---|---|---|"
)


@contextmanager
def engines_of(model: Path, names: Sequence[str]) -> Iterator[dict[str, Engine]]:
    """Load the model once for each variant."""
    with ExitStack() as stack:
        engines = {}
        for name in names:
            options = VARIANTS.get(name, {"kv": "fp16"})
            engines[name] = load_engine(model, engine="native", kv_dtype="f16", **options)
            stack.callback(engines[name].close)
        yield engines


def compare_variants(model: Path, names: Sequence[str], num_tokens: int) -> dict[str, Summary]:
    """Return {variant: figures against fp16} over the first tokens of the text."""
    tokens = text.text_tokens(model, num_tokens)
    with (
        engines_of(model, ["fp16", *names]) as engines,
        tqdm(total=num_tokens, unit=" tokens", disable=None, file=sys.stderr) as bar,
    ):
        reference = engines.pop("fp16")
        return compare_prefill(
            reference, engines, tokens, window=num_tokens, chunk=CHUNK, progress=bar.update
        )


def markdown(results: dict[str, Summary]) -> str:
    """Return a line for every variant."""
    lines = [_HEADER]
    for name, found in results.items():
        change = found.perplexity / found.reference_perplexity - 1
        lines.append(
            f"| {name} | {found.num_tokens} | {found.kl_mean:.4f} | {found.kl_median:.4f} | "
            f"{found.kl_p99:.3f} | {found.top1_agreement:.2%} | {found.perplexity:.3f} | "
            f"{change:+.2%} |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", default=8192, show_default=True, help="Length of the text.")
@click.option("--variants", default=";".join(VARIANTS), help="Separated by semicolons.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write figures there.")
def main(model: Path, tokens: int, variants: str, json_path: Path | None) -> None:
    """Print a markdown table."""
    names = variants.split(";")
    results = compare_variants(model, names, tokens)
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"{model.name}, {cython_kernels.isa()}; {text.NAME} of Python {python}\n")
    print(markdown(results))
    if json_path:
        figures = {name: found.to_dict() for name, found in results.items()}
        json_path.write_text(json.dumps({"model": model.name, "results": figures}, indent=2))


if __name__ == "__main__":
    main()
