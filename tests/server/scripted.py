"""A model that says what a test wrote for it, behind the real server.

The engine has the interface of a real one and follows a script: the answer to a conversation is the
one whose key stands in the last message. Everything above the engine is what users run: scheduler,
routes, uvicorn on a real port.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx2
import numpy as np
import uvicorn
from numpy.typing import NDArray

from bigram_engine import BigramState
from kandiga_run.engine.stats import RunStats
from kandiga_run.scheduler import Scheduler
from kandiga_run.server.app import create_app
from kandiga_run.server.running import listen, url_of
from kandiga_run.server.service import Service
from kandiga_run.server.settings import ServerSettings
from kandiga_run.tokenizer.prompts import Prompts
from tokenizer_files import CHATML_SPECIALS, byte_level_tokenizer, write_tokenizer

MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif -%}
{{ message.content }}
{%- for call in message.tool_calls or [] %}{% set tool_call = call.function %}
<tool_call>
{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif -%}
"""

HEADER = "<|im_start|>assistant\n"


def make_prompts(folder: Path) -> Prompts:
    """Write a tokenizer and a template with reasoning and tools, as Qwen's; return them opened."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(list(MARKS))
    settings = {"eos_token": CHATML_SPECIALS[2]}
    write_tokenizer(folder, tokenizer, chat_template=TEMPLATE, settings=settings)
    return Prompts(folder)


class ScriptedEngine:
    """Says the script whose key the last message holds, token by token."""

    name = "scripted"
    prefill_chunk = 64

    def __init__(self, prompts: Prompts, scripts: Mapping[str, str]) -> None:
        self.prompts, self.scripts = prompts, scripts
        self.vocab_size = prompts.tokenizer.get_vocab_size(with_added_tokens=True)
        self.stats = RunStats(top_k=2, num_experts_per_token=2)
        self.states: list[BigramState] = []
        #: how long a step takes, to see what happens meanwhile
        self.step_seconds = 0.0
        self._header = prompts.encode(HEADER)
        self._end = prompts.encode(CHATML_SPECIALS[2])

    @property
    def last_prompt(self) -> str:
        """Return what the latest sequence was told, up to its answer."""
        text = self.prompts.decode(self.states[-1].tokens, skip_special_tokens=False)
        return text[: text.rindex(HEADER)]

    def new_state(self, max_tokens: int) -> BigramState:
        self.states.append(BigramState(max_tokens))
        return self.states[-1]

    def forward(
        self,
        tokens: NDArray[np.int32],
        state: BigramState,
        *,
        logits: Literal["all", "last"] = "last",
        between_layers: Callable[[], None] | None = None,
    ) -> NDArray[np.float32]:
        assert state.position + len(tokens) <= state.max_tokens
        time.sleep(self.step_seconds)
        state.tokens.extend(tokens.tolist())
        row = np.zeros((1, self.vocab_size), dtype=np.float32)
        row[0, self._next(state.tokens)] = 20.0
        return row

    def close(self) -> None:
        return

    def _next(self, tokens: Sequence[int]) -> int:
        starts = [i for i, token in enumerate(tokens) if token == self._header[0]]
        if not starts or tokens[starts[-1] : starts[-1] + len(self._header)] != self._header:
            return self._end[0]  # in the middle of a prompt
        said = tokens[starts[-1] + len(self._header) :]
        begun = self.prompts.encode("<think>\n\n</think>\n\n")
        if said[: len(begun)] == begun:
            said = said[len(begun) :]
        script = self._script(tokens[: starts[-1]])
        return script[len(said)] if len(said) < len(script) else self._end[0]

    def _script(self, prompt: Sequence[int]) -> list[int]:
        text = self.prompts.decode(prompt, skip_special_tokens=False)
        last = text[max(text.rfind("<|im_start|>"), 0) :]  # of plain text, all of it
        script = next((answer for key, answer in self.scripts.items() if key in last), "?")
        return self.prompts.encode(script)


class ScriptedServer:
    """A context manager: the application on a free port, in a thread of this process."""

    def __init__(
        self,
        prompts: Prompts,
        scripts: Mapping[str, str],
        *,
        context_tokens: int = 4096,
        max_running: int = 4,
        max_waiting: int = 64,
        **settings: Any,
    ) -> None:
        self.engine = ScriptedEngine(prompts, scripts)
        self.scheduler = Scheduler(
            self.engine,  # type: ignore[arg-type]
            context_tokens=context_tokens,
            max_running=max_running,
            max_waiting=max_waiting,
        )
        service = Service(self.scheduler, prompts, ServerSettings(model="scripted", **settings))
        self.socket = listen("127.0.0.1", 0)
        self.url = url_of(self.socket)
        config = uvicorn.Config(create_app(service), log_level="error", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self.socket],))

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.scheduler.close()
        self._server.should_exit = True
        self._thread.join(30)
        self.socket.close()
        assert not self._thread.is_alive()

    def client(self, **options: Any) -> httpx2.Client:
        """Return an HTTP client for this server."""
        return httpx2.Client(base_url=self.url, timeout=30, **options)

    def wait_for(self, what: str, value: int, seconds: float = 5.0) -> None:
        """Wait until a figure of the scheduler's status has a value."""
        deadline = time.monotonic() + seconds
        while getattr(self.scheduler.status(), what) != value:
            assert time.monotonic() < deadline, self.scheduler.status()
            time.sleep(0.005)
