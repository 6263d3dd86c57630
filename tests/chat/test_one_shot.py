"""One prompt, one answer: reasoning is told apart from it."""

import io
import json
from pathlib import Path

import pytest

from kandiga_run.chat.one_shot import prompt_tokens, run_once
from kandiga_run.generation.options import GenerateOptions
from kandiga_run.terminal.output import Output
from scripted_engine import CHATML, ScriptedEngine, chatml_prompts, script

THINKS = CHATML + "{# <think> </think> #}"
BEGINS = (
    CHATML.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    + "{# </think> #}"
)


@pytest.mark.parametrize(
    ("template", "answer", "is_raw", "text", "reasoning"),
    [
        (THINKS, "<think>\nhm\n</think>\n\nYes.", False, "Yes.", "hm"),
        (BEGINS, "hm\n</think>\n\nYes.", False, "Yes.", "hm"),
        (THINKS, "Yes.", False, "Yes.", ""),
        (THINKS, "<think>a</think>b", True, "<think>a</think>b", ""),
        (CHATML, "<think>a</think>b", False, "<think>a</think>b", ""),
    ],
)
@pytest.mark.parametrize("is_json", [True, False])
def test_reasoning(
    tmp_path: Path,
    template: str,
    answer: str,
    is_raw: bool,
    text: str,
    reasoning: str,
    is_json: bool,
) -> None:
    prompts = chatml_prompts(tmp_path, template)
    engine = ScriptedEngine([script(prompts, answer)], prompts.tokenizer.get_vocab_size())
    output = Output(is_json=is_json, stdout=io.StringIO(), stderr=io.StringIO())
    tokens = prompt_tokens(prompts, "Hello", system=None, is_raw=is_raw, variables={})
    options = GenerateOptions(stop_token_ids=prompts.stop_token_ids)
    run_once(engine, prompts, tokens, options, output, model="m", is_raw=is_raw)
    written = output.stdout.getvalue()
    if is_json:
        result = json.loads(written)
        assert (result["text"], result["reasoning"]) == (text, reasoning)
    else:
        assert written == text + "\n"
    assert output.stderr.getvalue() == ""
