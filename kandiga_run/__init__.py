"""Container in, tokens out.

    import kandiga_run as kr

    with kr.load("qwen3-30b", memory="4GB") as model:
        print(model.generate("What is the capital of France?"))

One level below, with tokens and states in one's own hands: `load_engine`, `Prompts`, `generate`.

Where things are:

api.py         the Python API: `load`, then `generate`, `stream`, `chat`; completion.py, an answer
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
server/        HTTP: the APIs of OpenAI and Anthropic, and a page, on the scheduler
scheduler/     many requests on one engine: answers together, prompts kept, clients in turn
constraint.py  which tokens keep an answer within a JSON schema or a grammar
prompts.py     chat_template.py, text to tokens; detokenizer.py, tokens to text;
               answer_parts.py, an answer as reasoning.py, text and tool_calls.py
forecast/      what a model needs and how fast it will be; setup/, a model from nothing;
               doctor/, what is broken; default_model.py, installer.py, user_files.py
cli.py         the command; commands/, its verbs; output.py and report.py print
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kandiga_run.answer import Token
    from kandiga_run.api import Chat, LoadedModel, Settings, Stream, load
    from kandiga_run.completion import Completion, Usage
    from kandiga_run.engine import Engine, State, load_engine
    from kandiga_run.errors import RunError
    from kandiga_run.generate_options import GenerateOptions
    from kandiga_run.generation import Generation, generate
    from kandiga_run.prompts import Prompts
    from kandiga_run.reply import Chunk
    from kandiga_run.sampling import SamplingOptions
    from kandiga_run.stats import RunStats
    from kandiga_run.tool_calls import ToolCall

__all__ = [
    "Chat",
    "Chunk",
    "Completion",
    "Engine",
    "GenerateOptions",
    "Generation",
    "LoadedModel",
    "Prompts",
    "RunError",
    "RunStats",
    "SamplingOptions",
    "Settings",
    "State",
    "Stream",
    "Token",
    "ToolCall",
    "Usage",
    "generate",
    "load",
    "load_engine",
]

_MODULES = {
    "Chat": "api",
    "Chunk": "reply",
    "Completion": "completion",
    "Engine": "engine",
    "GenerateOptions": "generate_options",
    "Generation": "generation",
    "LoadedModel": "api",
    "Prompts": "prompts",
    "RunError": "errors",
    "RunStats": "stats",
    "SamplingOptions": "sampling",
    "Settings": "api",
    "State": "engine",
    "Stream": "api",
    "Token": "answer",
    "ToolCall": "tool_calls",
    "Usage": "completion",
    "generate": "generation",
    "load": "api",
    "load_engine": "engine",
}


def __getattr__(name: str) -> Any:
    # On first use: `kandiga-run --help` imports this package and should not wait for numpy.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
