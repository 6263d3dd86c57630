"""Whether facts in a long text are found again, for every choice of --kv. A program, not a test.

    PYTHONPATH=tests python tests/benchmarks/kv_needle.py MODEL [--lengths 1028,2052,4100,8068]

Lines such as "Vienna 48213." stand at even distances in a real text; at its end the model is asked
for each of them by its name. A needle is found when every digit is the most probable token after
those before it, as if answers were chosen greedily. The mean log probability of the five digits
tells more than the count does: a model that knows only that digits follow has 5 ln(1/10) = -11.5.

A model of 135M parameters copies and does not understand: asked for "The number of the green fox
is" it is right once in ten times, in fp16 as well. So the task is to copy, and what counts is the
difference to fp16. With --json every choice is recorded as soon as it is done, and not computed
again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import cython_kernels
from benchmarks.quality.logits_kl import log_softmax
from benchmarks.quality.text import english_text
from kandiga_run.engine import Engine, load_engine
from kandiga_run.kv.choices import BITS
from kandiga_run.kv.turboquant import BLOCK_TOKENS, RECENT_TOKENS, SINK_TOKENS
from kandiga_run.tokenizer.prompts import Prompts

NAMES = (
    *("Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Dublin", "Athens", "Cairo"),
    *("Tokyo", "Delhi", "Moscow", "Boston", "Chicago", "Lima", "Havana", "Sydney", "Toronto"),
    "Seoul",
)
NUM_DEPTHS = 5
#: Room in a block for a question and its answer: none of it is coded.
_QUESTION_TOKENS = 32

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Needle:
    """depth: where the sentence begins, as a part of the text; question and answer as tokens."""

    depth: float
    question: Tokens
    answer: Tokens


@dataclass(frozen=True)
class Found:
    """One needle with one choice of --kv. log_probability: of the whole answer, in nats."""

    length: int
    depth: float
    is_found: bool
    log_probability: float


class Haystack:
    """A text with needles in it."""

    def __init__(self, model: Path, length: int, num_needles: int, seed: int) -> None:
        self._tokenizer = Prompts(model).tokenizer
        # A block has just been coded when the questions come.
        uncoded = SINK_TOKENS + RECENT_TOKENS
        self.length = (length - uncoded) // BLOCK_TOKENS * BLOCK_TOKENS + uncoded
        rng = np.random.default_rng(seed)
        self._names = [str(name) for name in rng.permutation(NAMES)[:num_needles]]
        self._numbers = [str(number) for number in rng.integers(10000, 100000, num_needles)]
        self.tokens, self.needles = self._build()

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _build(self) -> tuple[Tokens, list[Needle]]:
        text = self._encode(english_text()[: 6 * self.length])
        tokens: list[int] = []
        needles = []
        for index, (name, number) in enumerate(zip(self._names, self._numbers, strict=True)):
            # The last has as much text behind it as lies between two.
            target = self.length * index // len(self._names)
            while len(tokens) < target:
                tokens.append(text[len(tokens)])
            question = self._encode(f"\n\n{name}")
            answer = self._encode(f" {number}")
            asked = (np.array(part, np.int32) for part in (question, answer))
            needles.append(Needle(len(tokens) / self.length, *asked))
            assert len(question) + len(answer) <= _QUESTION_TOKENS
            tokens += [*question, *answer, *self._encode(".\n\n")]
        tokens += text[len(tokens) : self.length]
        return np.array(tokens[: self.length], np.int32), needles


def ask(engine: Engine, haystack: Haystack) -> list[Found]:
    """Return what an engine finds of a haystack's needles."""
    state = engine.new_state(haystack.length + _QUESTION_TOKENS)
    engine.forward(haystack.tokens, state)
    results = []
    for needle in haystack.needles:
        asked = np.concatenate([needle.question, needle.answer[:-1]])
        logits = engine.forward(asked, state, logits="all")[-len(needle.answer) :]
        state.trim(len(asked))
        of_answer = log_softmax(logits)[np.arange(len(needle.answer)), needle.answer]
        is_found = bool((logits.argmax(axis=1) == needle.answer).all())
        results.append(Found(haystack.length, needle.depth, is_found, float(of_answer.sum())))
    return results


def cell(found: list[Found]) -> str:
    """Return the share that was found, and the mean log probability."""
    share = np.mean([one.is_found for one in found])
    return f"{share:.0%} ({np.mean([one.log_probability for one in found]):.2f})"


def markdown(results: dict[str, list[Found]]) -> str:
    """Return a line for every choice: by length, then by depth over all lengths."""
    anything = next(iter(results.values()))
    lengths = sorted({one.length for one in anything})
    heads = [f"{length} tokens" for length in lengths]
    heads += [f"depth {100 * i // NUM_DEPTHS} %" for i in range(NUM_DEPTHS)]
    lines = [f"| --kv | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for name, found in results.items():
        groups = [[one for one in found if one.length == length] for length in lengths]
        groups += [
            [one for one in found if int(one.depth * NUM_DEPTHS + 1e-9) == depth]
            for depth in range(NUM_DEPTHS)
        ]
        lines.append(f"| {name} | {' | '.join(map(cell, groups))} |")
    return "\n".join(lines)


def _recorded(path: Path | None, about: dict[str, object]) -> dict[str, list[Found]]:
    if path is None or not path.exists():
        return {}
    recorded = json.loads(path.read_text())
    if recorded["about"] != about:
        raise click.ClickException(f"{path} is about another model or task: remove it")
    return {name: [Found(**one) for one in found] for name, found in recorded["results"].items()}


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--lengths", default="916,1940,3988,7956", show_default=True)
@click.option("--needles", default=20, show_default=True, help="In each text; at most 20.")
@click.option("--seeds", default=1, show_default=True, help="Texts of each length.")
@click.option("--names", default=f"fp16,{','.join(BITS)}", show_default=True)
@click.option("--threads", type=int, help="Results do not depend on it.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Record figures there.")
def main(
    model: Path,
    lengths: str,
    needles: int,
    seeds: int,
    names: str,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Print a markdown table."""
    if threads is not None:
        cython_kernels.set_num_threads(threads)
    about = {"model": model.name, "lengths": lengths, "needles": needles, "seeds": seeds}
    results = _recorded(json_path, about)
    tasks = list(product(map(int, lengths.split(",")), range(seeds)))
    haystacks = [Haystack(model, length, needles, seed) for length, seed in tasks]
    for name in names.split(","):
        if name in results:
            continue
        engine = load_engine(model, engine="native", kv_dtype="f16", kv=name)  # type: ignore[arg-type]
        bar = tqdm(haystacks, desc=name, disable=None, file=sys.stderr)
        results[name] = [found for haystack in bar for found in ask(engine, haystack)]
        engine.close()
        if json_path:
            figures = {n: [asdict(one) for one in found] for n, found in results.items()}
            json_path.write_text(json.dumps({"about": about, "results": figures}))
    print(f"{model.name}, {needles} needles in each of {seeds} texts: found (log probability)\n")
    print(markdown({name: results[name] for name in names.split(",")}))


if __name__ == "__main__":
    main()
