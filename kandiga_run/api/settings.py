"""How to answer: what callers may say, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from kandiga_run.answers.constraint import Grammars
from kandiga_run.answers.tool_calls import Tools
from kandiga_run.errors import RunError
from kandiga_run.generation.answer import TokenMask
from kandiga_run.generation.loop import Progress
from kandiga_run.generation.model_defaults import sampling_for
from kandiga_run.generation.options import GenerateOptions
from kandiga_run.tokenizer.prompts import Prompts


class Settings(TypedDict, total=False):
    """How to answer; what is left out is as the model's makers recommend, else greedy.

    max_tokens: longest answer, 1024 by default.
    temperature, top_k, top_p, min_p, seed: how tokens are drawn; temperature 0 is greedy.
    repetition_penalty: above 1 makes tokens of prompt and answer less probable.
    presence_penalty, frequency_penalty: the same of the answer alone, as OpenAI's API has them.
    logit_bias: added to the logits of single tokens, by id.
    stop: texts that end the answer.
    think: ask the chat template for reasoning, or for none.
    tools: definitions as OpenAI's API takes them; calls stand in `Completion.tool_calls`.
    json_schema, regex, choices, grammar: hold the answer to JSON that fits a schema, to what a
        regular expression matches, to one of some texts, to a grammar in Lark's syntax. One of
        these at most; reasoning before the answer is free.
    on_progress: called with (tokens done, tokens in all) while the prompt is read.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    stop: Sequence[str]
    think: bool
    tools: Tools
    json_schema: dict[str, Any]
    regex: str
    choices: Sequence[str]
    grammar: str
    on_progress: Progress


_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
)
_CONSTRAINTS = ("json_schema", "regex", "choices", "grammar")


def options_of(settings: Settings, prompts: Prompts, context_tokens: int) -> GenerateOptions:
    """Return what the settings ask of an answer. Raises RunError for one that there is not."""
    unknown = set(settings) - Settings.__optional_keys__
    if unknown:
        raise RunError(
            f"no such setting: {', '.join(sorted(unknown))}; there are "
            f"{', '.join(sorted(Settings.__optional_keys__))}"
        )
    chosen: dict[str, Any] = {name: settings.get(name) for name in _SAMPLING}
    stop = settings.get("stop", ())
    return GenerateOptions(
        max_tokens=settings.get("max_tokens", 1024),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=prompts.stop_token_ids,
        sampling=sampling_for(prompts.generation_config, chosen),
        context_length=context_tokens,
    )


class Constraints:
    """Holds answers of one model to what their settings say."""

    def __init__(self, prompts: Prompts, vocab_size: int) -> None:
        self._prompts, self._vocab_size = prompts, vocab_size
        self._grammars: Grammars | None = None

    def mask(self, settings: Settings) -> TokenMask | None:
        """Return what holds one answer to its settings. Raises RunError where two of them would."""
        wanted = [name for name in _CONSTRAINTS if settings.get(name) is not None]
        if len(wanted) > 1:
            raise RunError(f"{' and '.join(wanted)} both constrain the answer: give one of them")
        if not wanted:
            return None
        if self._grammars is None:
            self._grammars = Grammars(
                self._prompts.tokenizer, self._vocab_size, self._prompts.stop_token_ids
            )
        grammars, kind = self._grammars, wanted[0]
        if kind == "json_schema":
            return grammars.json_schema(settings["json_schema"])
        if kind == "regex":
            return grammars.regex(settings["regex"])
        if kind == "choices":
            return grammars.choice(settings["choices"])
        return grammars.grammar(settings["grammar"])
