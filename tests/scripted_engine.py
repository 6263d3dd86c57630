"""A model that says what a test wants said, and conversations with it."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bigram_engine import BigramEngine, BigramState
from kandiga_run.chat import Conversation
from kandiga_run.generation.options import GenerateOptions
from kandiga_run.tokenizer.prompts import Prompts
from tokenizer_files import byte_fallback_tokenizer, byte_level_tokenizer, write_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Leaves out of earlier answers what stands before "</think>", as reasoning models do.
FORGETFUL = CHATML.replace("message.content }}", "message.content.split('</think>')[-1] }}")
TRIMMING = CHATML.replace("message.content }}", "message.content | trim }}")
MIXTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "[INST] {{ message.content }} [/INST]{% else %} {{ message.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)


class ScriptedEngine(BigramEngine):
    """Answers every prompt with the next of some scripts of tokens."""

    def __init__(self, scripts: Sequence[Sequence[int]], vocab_size: int) -> None:
        super().__init__([], vocab_size)
        self._scripts = itertools.cycle(scripts)
        self._script = list(next(self._scripts))
        self._index = 0
        self.before_forward: Callable[[], None] = lambda: None

    def forward(
        self,
        tokens: Any,
        state: BigramState,
        *,
        logits: Any = "last",
        between_layers: Callable[[], None] | None = None,
    ) -> Any:
        self.before_forward()
        result = super().forward(tokens, state, logits=logits, between_layers=between_layers)
        if tokens.tolist() == self._script[self._index : self._index + 1]:
            self._index += 1
        elif self._index:  # a prompt after an answer
            self._script, self._index = list(next(self._scripts)), 0
        result[-1, self._script[self._index]] = 100.0
        return result


def chatml_prompts(folder: Path, template: str = CHATML) -> Prompts:
    settings = {"eos_token": "<|im_end|>"}
    tokenizer = byte_level_tokenizer()
    return Prompts(write_tokenizer(folder, tokenizer, chat_template=template, settings=settings))


def mixtral_prompts(folder: Path) -> Prompts:
    settings = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = byte_fallback_tokenizer()
    return Prompts(write_tokenizer(folder, tokenizer, chat_template=MIXTRAL, settings=settings))


def script(prompts: Prompts, text: str) -> list[int]:
    return [*prompts.encode(text), *prompts.stop_token_ids]


def conversation(
    prompts: Prompts, scripts: Sequence[Sequence[int]], max_tokens: int = 50, **arguments: Any
) -> tuple[Conversation, ScriptedEngine]:
    engine = ScriptedEngine(scripts, prompts.tokenizer.get_vocab_size())
    options = GenerateOptions(
        stop_token_ids=prompts.stop_token_ids, max_tokens=max_tokens, prefill_chunk=8
    )
    arguments = {"context_tokens": 400, **arguments}
    return Conversation(engine, prompts, options, **arguments), engine


def say(talk: Conversation, text: str) -> str:
    return "".join(token.text for token in talk.reply(text))
