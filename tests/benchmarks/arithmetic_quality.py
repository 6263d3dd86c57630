"""What the arithmetic modes cost in quality, on a real text. A program, not a test.

    PYTHONPATH=tests python tests/benchmarks/arithmetic_quality.py MODEL [--tokens 8192]

MODEL is a container with real weights, such as .demo/smollm2-8x135m. Every mode computes the same
text as `exact` does, and is compared with it position by position: prompts in windows, one prompt
as long as the text, and token by token. `--mlx CHECKPOINT` compares `exact` itself with mlx-lm,
which holds the checkpoint in memory and computes in float32.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import cython_kernels
from benchmarks.quality import text
from benchmarks.quality.compare import compare_decode, compare_prefill
from benchmarks.quality.logits_kl import Comparison, Summary
from benchmarks.quality.table import markdown_table
from kandiga_run.engine import Engine, load_engine
from kandiga_run.tokenizer.prompts import Prompts

Results = dict[str, dict[str, Summary]]
REFERENCE = "exact"


@contextmanager
def engines_of(model: Path, modes: tuple[str, ...]) -> Iterator[dict[str, Engine]]:
    """Load the model once for each mode; keys and values as precise as they can be held."""
    with ExitStack() as stack:
        engines = {}
        for mode in modes:
            options: dict[str, Any] = {"arithmetic": mode, "kv_dtype": "f32"}
            engines[mode] = load_engine(model, engine="native", **options)
            stack.callback(engines[mode].close)
        yield engines


def compare_modes(
    model: Path, modes: tuple[str, ...], tokens: NDArray[np.int32], *, window: int, decode: int
) -> Results:
    """Return {path: {mode: summary}} of every mode against exact.

    Args:
        window: tokens of a prompt, and of the context before `decode` tokens computed singly.
    """
    context = min(window, len(tokens) - decode)
    runs = 2 if window < len(tokens) else 1
    total = runs * len(tokens) + context + decode
    results: Results = {}
    with (
        engines_of(model, (REFERENCE, *modes)) as engines,
        tqdm(total=total, unit=" tokens", disable=None, file=sys.stderr) as bar,
    ):
        reference = engines.pop(REFERENCE)
        for length in sorted({min(window, len(tokens)), len(tokens)}):
            results[f"prefill, prompts of {length}"] = compare_prefill(
                reference, engines, tokens, window=length, progress=bar.update
            )
        results[f"decode, after {context}"] = compare_decode(
            reference,
            engines,
            tokens[: context + decode],
            context=context,
            progress=bar.update,
        )
    return results


def compare_with_mlx(model: Path, checkpoint: Path, tokens: NDArray[np.int32]) -> Results:
    """Return how far exact is from mlx-lm in float32, as a prompt."""
    from checkpoints import reference_logits

    expected = reference_logits(checkpoint, tokens.tolist(), num_decode=1).prefill
    comparison = Comparison()
    with engines_of(model, (REFERENCE,)) as engines:
        engine = engines[REFERENCE]
        found = engine.forward(tokens, engine.new_state(len(tokens)), logits="all")
    comparison.add(expected, found, tokens[1:])
    return {f"prefill, against mlx-lm in float32, {len(tokens)}": {REFERENCE: comparison.summary()}}


def check_lengths(model: Path, tokens: int, window: int, decode: int) -> None:
    """Raise UsageError when the model was not made for so many tokens."""
    context = Prompts(model).context_length
    if context is not None and tokens > context:
        raise click.UsageError(
            f"--tokens {tokens}: {model} has a context of {context} tokens; ask for at most that"
        )
    if not 1 <= decode < tokens or window < 1:
        raise click.UsageError(
            f"--decode {decode}, --window {window}: wanted 1 <= decode < {tokens} and window >= 1"
        )


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--modes", default="int16,int8", show_default=True, help="May be empty.")
@click.option("--tokens", default=8192, show_default=True, help="Length of the text.")
@click.option("--window", default=1024, show_default=True, help="Tokens of a short prompt.")
@click.option("--decode", default=512, show_default=True, help="Tokens computed one by one.")
@click.option("--mlx", "checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--mlx-tokens", default=128, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write figures there.")
def main(
    model: Path,
    modes: str,
    tokens: int,
    window: int,
    decode: int,
    checkpoint: Path | None,
    mlx_tokens: int,
    json_path: Path | None,
) -> None:
    """Print a markdown table."""
    check_lengths(model, tokens, window, decode)
    encoded = text.text_tokens(model, tokens)
    results: Results = {}
    if modes:
        names = tuple(modes.split(","))
        results = compare_modes(model, names, encoded, window=window, decode=decode)
    if checkpoint:
        results |= compare_with_mlx(model, checkpoint, encoded[:mlx_tokens])
    python = ".".join(map(str, sys.version_info[:3]))
    digest = sha256(text.english_text().encode()).hexdigest()[:16]
    print(f"{model.name}, {cython_kernels.isa()}; {text.NAME} of Python {python}\n")
    print(markdown_table(results, kind="path"))
    if json_path:
        about = {"model": model.name, "isa": cython_kernels.isa(), "text_sha256": digest}
        figures = {
            run: {mode: summary.to_dict() for mode, summary in summaries.items()}
            for run, summaries in results.items()
        }
        json_path.write_text(json.dumps({**about, "python": python, "results": figures}, indent=2))


if __name__ == "__main__":
    main()
