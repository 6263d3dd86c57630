"""Container in, tokens out.

    import kandiga_run as kr

    with kr.load("qwen3-30b", memory="4GB") as model:
        print(model.generate("What is the capital of France?"))

One level below, with tokens and states in one's own hands: `load_engine`, `Prompts`, `generate`.

Where things are, each using what stands above it:

engine/        the seam: `load_engine`, `Engine.forward(tokens, state) -> logits`
container/     an opened container as a model; config.py, values of its config.json
memory/        what this process may take, and what takes it; sizes.py, bytes as people write them
experts/       routed experts in memory: mapped or owned, read by worker threads
kv/            what attention and recurrent layers keep of a sequence
native/        the CPU engine: numpy buffers and cython_kernels; never imports mlx
mlx_engine/    every other mlx-lm family, its experts streamed from the same store
tokenizer/     text to tokens and back
generation/    tokens out of an engine: the loop, sampling, where an answer ends
answers/       what an answer's text means: reasoning, content, calls of tools; constraints
terminal/      what commands share with the shell: streams, failures, exit codes
chat/          a conversation, and the terminal it is held in
api/           the Python API: `load`, then `generate`, `stream`, `chat`
scheduler/     many requests on one engine: answers together, prompts kept, clients in turn
server/        HTTP: the APIs of OpenAI and Anthropic, and a page, on the scheduler
machine/       what this machine is, and what it can do at best
forecast/      what a model needs and how fast it will be; bench/, how fast it is
setup/         a model from nothing; tune/, its fastest settings; doctor/, what is broken
cli.py         the command; commands/, its verbs and their options

user_files.py, default_model.py and installer.py: where a user's own files are, the model that is
taken when none is named, and how this package was installed. background.py: work in a thread.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kandiga_run.answers.completion import Completion
    from kandiga_run.answers.reply import Chunk
    from kandiga_run.answers.tool_calls import ToolCall
    from kandiga_run.api import Chat, LoadedModel, Settings, Stream, load
    from kandiga_run.engine import Engine, State, load_engine
    from kandiga_run.engine.stats import RunStats
    from kandiga_run.errors import RunError
    from kandiga_run.generation.answer import Token
    from kandiga_run.generation.loop import Generation, generate
    from kandiga_run.generation.options import GenerateOptions
    from kandiga_run.generation.sampling import SamplingOptions
    from kandiga_run.generation.usage import Usage
    from kandiga_run.tokenizer.prompts import Prompts

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
    "Chunk": "answers.reply",
    "Completion": "answers.completion",
    "Engine": "engine",
    "GenerateOptions": "generation.options",
    "Generation": "generation.loop",
    "LoadedModel": "api",
    "Prompts": "tokenizer.prompts",
    "RunError": "errors",
    "RunStats": "engine.stats",
    "SamplingOptions": "generation.sampling",
    "Settings": "api",
    "State": "engine",
    "Stream": "api",
    "Token": "generation.answer",
    "ToolCall": "answers.tool_calls",
    "Usage": "generation.usage",
    "generate": "generation.loop",
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
