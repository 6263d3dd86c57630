"""What each choice of --kv costs in quality, on a real model and text. A program, not a test.

    PYTHONPATH=tests python tests/benchmarks/kv_quality.py MODEL [--tokens 8192] [--json FILE]

MODEL is a container with real weights, such as .demo/smollm2-8x135m. Every choice computes the same
text as `--kv fp16` does, as one prompt as long as the text. A token sees the same coded and uncoded
tokens whether it is computed in a prompt or alone, so one path stands for both.

The logits of fp16 are computed once and lie in a temporary file (1.6 GB for 8192 tokens of a
vocabulary of 49 152). With --json every choice is recorded as soon as it is done, and one that is
recorded already, of the same model, text and length, is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import cython_kernels
from benchmarks.quality import text
from benchmarks.quality.logits_kl import Comparison, Summary
from kandiga_run.engine import PREFILL_CHUNK, load_engine
from kandiga_run.kv.choices import BITS

#: Options of a compared choice, by the name it has in the table.
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"kv": name} for name in BITS},
    "kv3-qjl": {"kv": "kv3", "kv_qjl": True},
    "k4v3-qjl": {"kv": "k4v3", "kv_qjl": True},
    "k4v3, 2 boundary layers": {"kv": "k4v3", "kv_protect": 2},
    "kv3, 2 boundary layers": {"kv": "kv3", "kv_protect": 2},
}
_HEADER = (
    "| --kv | tokens | KLD mean | median | 99 % | same top-1 | perplexity | against fp16 |\n"
    "|---|---|---|---|---|---|---|---|"
)

Tokens = NDArray[np.int32]
Logits = NDArray[np.float32]


def logits_of(model: Path, options: dict[str, Any], tokens: Tokens) -> Iterator[Logits]:
    """Yield logits (T, vocab_size) of a choice, chunk by chunk."""
    engine = load_engine(model, engine="native", kv_dtype="f16", **options)
    try:
        state = engine.new_state(len(tokens))
        for start in range(0, len(tokens), PREFILL_CHUNK):
            yield engine.forward(tokens[start : start + PREFILL_CHUNK], state, logits="all")
    finally:
        engine.close()


class Reference:
    """The logits of fp16, in a file that is gone when the program ends."""

    def __init__(self, model: Path, tokens: Tokens) -> None:
        self._model = model
        self.tokens = tokens
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        self._shape: tuple[int, int] | None = None
        for chunk in _shown(logits_of(model, {"kv": "fp16"}, tokens), "fp16", len(tokens)):
            chunk.tofile(self._file)
            self._shape = len(tokens), chunk.shape[1]

    def compare(self, name: str) -> Summary:
        """Return the figures of a variant."""
        reference = np.memmap(self._file, np.float32, "r", shape=self._shape)
        comparison, start = Comparison(), 0
        found = logits_of(self._model, VARIANTS[name], self.tokens)
        for chunk in _shown(found, name, len(self.tokens)):
            end = start + len(chunk)
            comparison.add(reference[start:end], chunk, self.tokens[start + 1 : end + 1])
            start = end
        return comparison.summary()


def _shown(chunks: Iterator[Logits], name: str, num_tokens: int) -> Iterator[Logits]:
    with tqdm(total=num_tokens, desc=name, unit=" tokens", disable=None, file=sys.stderr) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))


def compare_variants(
    model: Path, names: Sequence[str], num_tokens: int, json_path: Path | None = None
) -> dict[str, Summary]:
    """Return {variant: figures against fp16} over the first tokens of the text."""
    tokens = text.text_tokens(model, num_tokens)
    about = {"model": model.name, "tokens": hashlib.sha256(tokens.tobytes()).hexdigest()}
    results = _recorded(json_path, about)
    missing = [name for name in names if name not in results]
    reference = Reference(model, tokens) if missing else None
    for name in missing:
        assert reference
        results[name] = reference.compare(name)
        if json_path:
            figures = {name: found.to_dict() for name, found in results.items()}
            json_path.write_text(json.dumps({**about, "results": figures}, indent=2))
    return {name: results[name] for name in names}


def _recorded(path: Path | None, about: dict[str, str]) -> dict[str, Summary]:
    if path is None or not path.exists():
        return {}
    recorded = json.loads(path.read_text())
    if {name: recorded.get(name) for name in about} != about:
        raise click.ClickException(f"{path} is about another model or text: remove it")
    return {name: Summary(**figures) for name, figures in recorded["results"].items()}


def markdown(results: dict[str, Summary]) -> str:
    """Return a line for every variant; the last column has its standard error."""
    lines = [_HEADER]
    for name, found in results.items():
        change = found.perplexity / found.reference_perplexity - 1
        lines.append(
            f"| {name} | {found.num_tokens} | {found.kl_mean:.4f} | {found.kl_median:.4f} | "
            f"{found.kl_p99:.3f} | {found.top1_agreement:.2%} | {found.perplexity:.3f} | "
            f"{change:+.2%} ± {100 * found.log_perplexity_error:.2f} |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", default=8192, show_default=True, help="Length of the text.")
@click.option("--variants", default=";".join(VARIANTS), help="Separated by semicolons.")
@click.option("--threads", type=int, help="Results do not depend on it.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Record figures there.")
def main(
    model: Path, tokens: int, variants: str, threads: int | None, json_path: Path | None
) -> None:
    """Print a markdown table."""
    if threads is not None:
        cython_kernels.set_num_threads(threads)
    results = compare_variants(model, variants.split(";"), tokens, json_path)
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"{model.name}, {cython_kernels.isa()}; {text.NAME} of Python {python}\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
