"""The demo's mixture answers as the dense model does, in mlx-lm and in kandiga's own engine.

The dense model is computed in numpy straight from the GGUF (dense_llama). "As" means: the greedy
tokens are equal, and the logits they were chosen from agree within LOGITS_TOLERANCE. Not bit for
bit: the two gates of a token sum to 1 only within a float32 rounding, and every program adds up its
products in its own order.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from checkpoints import reference_logits
from demo.download import sha256
from demo.expected import DENSE_TOKEN_IDS, QUESTION
from demo.prepare import CHECKPOINT_NAME, OPTIONS, ROOT, prepare
from demo.upcycle import router_weights
from dense_llama import DenseLlama
from kandiga_pack.sources.checkpoint import CheckpointSource
from kandiga_pack.sources.gguf import GgufSource
from kandiga_run.engine import load_engine
from kandiga_run.engine.arithmetic import Arithmetic

WORK = ROOT / ".demo"  # what `make demo` keeps is used, and the other way round
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    f"<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)
IM_END = 2

# Logits reach 39. Measured against float32 numpy: mlx 1.4e-4 over the 75 tokens; a float32 rounding
# is 2e-6 at that size, and 30 layers of sums in another order add up.
LOGITS_TOLERANCE = 1e-3
# Activations of 15 bits through thirty layers. The largest seen is 7e-3.
INT16_TOLERANCE = 2e-2


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return prepare(WORK)


@dataclass
class RoutedLlama(DenseLlama):
    """The dense model, with the mixture's router looking on."""

    choices: list[np.ndarray] = field(default_factory=list)

    def _mlp(self, block: str, x: np.ndarray) -> np.ndarray:
        layer, hidden_size = int(block.split(".")[1]), x.shape[1]
        router = router_weights(layer, OPTIONS.num_experts, hidden_size, OPTIONS.seed)
        self.choices.append(np.sort(np.argsort(x @ router.T, axis=1)[:, -OPTIONS.top_k :], axis=1))
        return super()._mlp(block, x)


@dataclass(frozen=True)
class Dense:
    """What the dense model says to prompt and expected answer, given as one text.

    Where the best logit after every token of the answer is the answer's next token, decoding
    greedily, token by token, gives that answer.

    Attributes:
        tokens: the prompt and all of the answer but its last token.
        logits: (len(DENSE_TOKEN_IDS), vocab) float32, each to choose a token of the answer from.
        choices: a layer's (len(tokens), top_k) expert ids, as the mixture's router would choose.
    """

    tokens: list[int]
    logits: np.ndarray
    choices: list[np.ndarray]


@pytest.fixture(scope="module")
def dense(checkpoint: Path) -> Dense:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False).ids
    tokens = [*prompt, *DENSE_TOKEN_IDS[:-1]]
    model = RoutedLlama.load(WORK / GGUF_NAME)
    return Dense(tokens, model.logits(tokens)[len(prompt) - 1 :], model.choices)


def test_the_expected_tokens_are_the_dense_models(dense: Dense) -> None:
    assert dense.logits.argmax(axis=1).tolist() == list(DENSE_TOKEN_IDS)
    second, best = np.sort(dense.logits, axis=1)[:, -2:].T
    # Otherwise equal tokens would be luck.
    assert (best - second).min() > 10 * LOGITS_TOLERANCE


def test_every_expert_is_the_dense_mlp(checkpoint: Path) -> None:
    with GgufSource(WORK / GGUF_NAME) as original:
        mixture = CheckpointSource(checkpoint)
        try:
            stacks = [name for name in mixture.tensors if ".switch_mlp." in name]
            assert len(stacks) == 30 * 3 * 3
            for name in stacks:
                copies = mixture.read(name)
                wanted = original.read(name.replace("block_sparse_moe.switch_mlp", "mlp"))
                assert len(copies) == OPTIONS.num_experts
                assert all(np.array_equal(copy, wanted) for copy in copies), name
            for name in set(mixture.tensors) - set(stacks):
                if not name.endswith("gate.weight"):
                    np.testing.assert_array_equal(mixture.read(name), original.read(name))
        finally:
            mixture.close()


def test_preparing_twice_gives_identical_files(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / GGUF_NAME).hardlink_to(WORK / GGUF_NAME)
    again = prepare(tmp_path)
    names = sorted(path.name for path in checkpoint.iterdir())
    assert sorted(path.name for path in again.iterdir()) == names
    for name in names:
        assert sha256(again / name) == sha256(checkpoint / name), name
    shutil.rmtree(again)


def check_answer(logits: np.ndarray, dense: Dense, tolerance: float = LOGITS_TOLERANCE) -> None:
    """Compare with logits (T, vocab) after the first T of `dense.tokens`."""
    found = logits[len(dense.tokens) - len(DENSE_TOKEN_IDS) :]
    assert len(found) > 0
    assert found.argmax(axis=1).tolist() == list(DENSE_TOKEN_IDS[: len(found)])
    np.testing.assert_allclose(found, dense.logits[: len(found)], rtol=0, atol=tolerance)


def test_mlx_lm_answers_as_the_dense_model(checkpoint: Path, dense: Dense) -> None:
    # mlx's CPU matmul takes a third of a second a token: half of the answer.
    tokens = dense.tokens[: -len(DENSE_TOKEN_IDS) // 2]
    check_answer(reference_logits(checkpoint, tokens, num_decode=1).prefill, dense)


@pytest.fixture(scope="module")
def demo_output(checkpoint: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "demo", "--work", str(WORK)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_demo_answers_as_the_dense_model(demo_output: str) -> None:
    """The whole road: convert, verify, kandiga-run with experts read from disk."""
    assert f"all {len(DENSE_TOKEN_IDS)} tokens are those of the dense model" in demo_output
    for row in (
        "tokens/s",
        "bytes read a token",
        "experts read",
        "experts reused",
        "memory charged",
    ):
        assert row in demo_output
    assert "bit for bit" in demo_output


@pytest.mark.usefixtures("demo_output")
@pytest.mark.parametrize("memory_bytes", [None, 4_000_000_000], ids=["mapped", "owned"])
@pytest.mark.parametrize(
    ("arithmetic", "tolerance"), [("exact", LOGITS_TOLERANCE), ("int16", INT16_TOLERANCE)]
)
def test_the_native_engine_gives_the_dense_logits(
    memory_bytes: int | None, arithmetic: Arithmetic, tolerance: float, dense: Dense
) -> None:
    engine = load_engine(
        WORK / CHECKPOINT_NAME.removesuffix("-mlx"),
        engine="native",
        residency="owned" if memory_bytes else "mapped",
        memory_bytes=memory_bytes,
        arithmetic=arithmetic,
    )
    try:
        tokens = np.array(dense.tokens, np.int32)
        logits = engine.forward(tokens, engine.new_state(len(tokens)), logits="all")
    finally:
        engine.close()
    check_answer(logits, dense, tolerance)


def test_the_router_uses_all_experts_and_changes_its_mind(dense: Dense) -> None:
    used = [len(np.unique(choice)) for choice in dense.choices]
    assert np.mean(used) > 0.8 * OPTIONS.num_experts
    changed = [np.any(choice[1:] != choice[:-1], axis=1).mean() for choice in dense.choices]
    assert np.mean(changed) > 0.5
