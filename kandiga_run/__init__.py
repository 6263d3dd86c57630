"""Container in, tokens out.

    from contextlib import closing

    import kandiga_run as kr

    with closing(kr.load_engine("qwen3-30b", memory_bytes=4_000_000_000)) as engine:
        prompts = kr.Prompts("qwen3-30b")
        prompt = prompts.encode(prompts.render([{"role": "user", "content": "Hello"}]))
        options = kr.GenerateOptions(max_tokens=100, stop_token_ids=prompts.stop_token_ids)
        for token in kr.generate(engine, prompt, options, detokenizer=prompts.detokenizer()):
            print(token.text, end="", flush=True)

Where things are:

engine.py      the seam: `load_engine`, `Engine.forward(tokens, state) -> logits`
container.py   an opened container as a model: dense tensors, expert layouts; config.py, its config
experts/       routed experts in memory: mapped or owned, read by worker threads
native/        the CPU engine: numpy buffers and cython_kernels; never imports mlx
mlx_engine/    every other mlx-lm family, its experts streamed from the same store
kv/            what attention and recurrent layers keep of a sequence
stats.py       counters of a run; memory.py, what the kernel charges this process;
               memory_budget.py, what it leaves to the experts
generation.py  prefill, then token by token; answer.py, one answer's tokens and text;
               sampling.py, which token; stop_strings.py
constraint.py  which tokens keep an answer within a JSON schema or a grammar
prompts.py     chat_template.py, text to tokens; detokenizer.py, tokens to text;
               answer_parts.py, an answer as reasoning.py, text and tool_calls.py
cli.py         the command; commands/, its verbs; output.py and report.py print
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kandiga_run.answer import Token
    from kandiga_run.engine import Engine, State, load_engine
    from kandiga_run.errors import RunError
    from kandiga_run.generate_options import GenerateOptions
    from kandiga_run.generation import Generation, generate
    from kandiga_run.prompts import Prompts
    from kandiga_run.sampling import SamplingOptions
    from kandiga_run.stats import RunStats

__all__ = [
    "Engine",
    "GenerateOptions",
    "Generation",
    "Prompts",
    "RunError",
    "RunStats",
    "SamplingOptions",
    "State",
    "Token",
    "generate",
    "load_engine",
]

_MODULES = {
    "Engine": "engine",
    "GenerateOptions": "generate_options",
    "Generation": "generation",
    "Prompts": "prompts",
    "RunError": "errors",
    "RunStats": "stats",
    "SamplingOptions": "sampling",
    "State": "engine",
    "Token": "answer",
    "generate": "generation",
    "load_engine": "engine",
}


def __getattr__(name: str) -> Any:
    # On first use: `kandiga-run --help` imports this package and should not wait for numpy.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
