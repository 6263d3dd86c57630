"""Prompts rendered and encoded as transformers does it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from demo.prepare import ROOT, prepare
from kandiga_run.errors import RunError
from kandiga_run.tokenizer.prompts import Prompts
from tokenizer_files import (
    CHATML_SPECIALS,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    write_tokenizer,
)

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

MIXTRAL = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# In the manner of Qwen3: tools as JSON, earlier reasoning dropped, a switch for reasoning.
QWEN = """\
{%- macro text_of(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content if part.type == 'text' %}{{- part.text }}{%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == 'user' %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{%- continue %}{%- endif %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + text_of(message.content) + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content is string and loop.index0 > ns.last_query %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {%- generation %}
        {{- text_of(message.content) if message.content is defined else '' }}
        {%- endgeneration %}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function if call.function is defined else call %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson(indent=2) }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# Helpers and syntax that published templates lean on.
SYNTAX = """\
{% set months = dict(first='January', second='February') %}
{% for message in messages %}
    {% if message.role == 'skip' %}
        {% continue %}
    {% endif %}
    {{ loop.index }}. {{ message.content | trim | upper }} {{ months.first }}
    {% if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}
{{ strftime_now('%Y') }} {{ messages | map(attribute='role') | join(',') }}
{{ {'b': '<é>', 'a': [1, 2.5, none, true]} | tojson }} {{ ['x'] | tojson(indent=1) }}
{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}
{{ eos_token }}|{{ pad_token }}|{{ bos_token is defined }}|{{ sep_token is defined }}
"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Weather of a <city> & its "name" — naïvely',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Zürich", "東京"]}},
                "required": ["city"],
            },
        },
    }
]
USER = {"role": "user", "content": "What is <b>1 + 1</b>?"}
ANSWER = {"role": "assistant", "content": "It is 2."}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one message": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER],
    "three turns": [USER, ANSWER, {"role": "user", "content": " and  2 + 2?\n"}],
    "answered": [USER, ANSWER],
}
RICH_CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "reasoning": [USER, {**ANSWER, "reasoning_content": "\nlet me think\n"}],
    "reasoning by its older name": [USER, {**ANSWER, "reasoning": "hm"}],
    "reasoning of an earlier turn": [USER, {**ANSWER, "thinking": "hm"}, USER],
    "tool call": [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"function": {"name": "weather", "arguments": {"city": "Zürich", "n": [1, 2]}}}
            ],
        },
        {"role": "tool", "content": '{"degrees": 21}', "name": None},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
}


def transformers_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def assert_same_prompt(folder: Path, messages: Sequence[dict[str, Any]], **arguments: Any) -> None:
    reference = transformers_tokenizer(folder)
    prompts = Prompts(folder)
    arguments = {"add_generation_prompt": True, **arguments}
    wanted = reference.apply_chat_template(messages, tokenize=False, **arguments)
    assert prompts.render(messages, **arguments) == wanted
    wanted_ids = reference.apply_chat_template(messages, return_dict=False, **arguments)
    assert prompts.encode(wanted) == wanted_ids


@pytest.fixture(scope="module")
def chatml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(
        tmp_path_factory.mktemp("chatml"),
        byte_level_tokenizer(),
        chat_template=CHATML,
        settings={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    )


@pytest.fixture(scope="module")
def mixtral_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return write_tokenizer(
        tmp_path_factory.mktemp("mixtral"),
        byte_fallback_tokenizer(),
        chat_template=MIXTRAL,
        settings={
            "bos_token": {"content": "<s>", "__type": "AddedToken", **special},
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
        },
    )


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(
        tmp_path_factory.mktemp("qwen"),
        byte_level_tokenizer([*CHATML_SPECIALS, "<think>", "</think>"]),
        chat_template=QWEN,
        settings={"eos_token": "<|im_end|>", "bos_token": None, "add_bos_token": False},
    )


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("family", ["chatml", "mixtral", "qwen"])
def test_equal_to_transformers(
    family: str, name: str, add_generation_prompt: bool, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(f"{family}_folder")
    assert_same_prompt(folder, CONVERSATIONS[name], add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("name", RICH_CONVERSATIONS)
def test_tools_and_reasoning_equal_to_transformers(
    qwen_folder: Path, name: str, tools: Any
) -> None:
    assert_same_prompt(qwen_folder, RICH_CONVERSATIONS[name], tools=tools)


@pytest.mark.parametrize("enable_thinking", [True, False])
def test_template_variables(qwen_folder: Path, enable_thinking: bool) -> None:
    assert_same_prompt(qwen_folder, [USER], enable_thinking=enable_thinking)


def test_syntax_and_helpers_equal_to_transformers(tmp_path: Path) -> None:
    folder = write_tokenizer(
        tmp_path,
        byte_level_tokenizer(),
        chat_template=SYNTAX,
        settings={
            "eos_token": "<|im_end|>",
            "pad_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
        },
    )
    messages = [{"role": role, "content": f" {role} "} for role in ("user", "skip", "a", "b", "c")]
    assert_same_prompt(folder, messages)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_demo_model_equal_to_transformers(name: str) -> None:
    """SmolLM2 with its own tokenizer and template, which adds a system message by itself."""
    assert_same_prompt(prepare(ROOT / ".demo"), CONVERSATIONS[name])


class TestTemplateSources:
    """Where the template is looked for, in the order transformers looks."""

    def folder(self, tmp_path: Path, **arguments: Any) -> Path:
        return write_tokenizer(tmp_path, byte_level_tokenizer(), **arguments)

    def test_jinja_file_wins(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path, chat_template="from the config")
        (folder / "chat_template.jinja").write_text("from the file: {{ messages[0].content }}")
        assert_same_prompt(folder, [USER])

    @pytest.mark.parametrize("tools", [None, TOOLS])
    def test_list_of_named_templates(self, tmp_path: Path, tools: Any) -> None:
        named = [
            {"name": "default", "template": "plain {{ messages[0].content }}"},
            {"name": "tool_use", "template": "tools {{ tools | tojson }}"},
        ]
        assert_same_prompt(self.folder(tmp_path, chat_template=named), [USER], tools=tools)

    @pytest.mark.parametrize("tools", [None, TOOLS])
    def test_folder_of_named_templates(self, tmp_path: Path, tools: Any) -> None:
        folder = self.folder(tmp_path)
        (folder / "chat_template.jinja").write_text("plain")
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates/tool_use.jinja").write_text("{{ tools | length }}")
        assert_same_prompt(folder, [USER], tools=tools)

    def test_named_without_default(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path, chat_template=[{"name": "rag", "template": "x"}])
        with pytest.raises(RunError, match='named rag and none named "default"'):
            Prompts(folder).render([USER])

    def test_old_vision_file(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path)
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
        assert Prompts(folder).render([USER]) == "old"

    def test_none(self, tmp_path: Path) -> None:
        prompts = Prompts(self.folder(tmp_path))
        assert not prompts.has_chat_template
        with pytest.raises(RunError, match=r"no chat template.*use run --raw"):
            prompts.render([USER])


class TestTemplateFailures:
    """A template's failure is one line that says it was the template."""

    def render(self, tmp_path: Path, template: str, *messages: dict[str, Any]) -> str:
        folder = write_tokenizer(tmp_path, byte_level_tokenizer(), chat_template=template)
        return Prompts(folder).render(list(messages) or [USER])

    def test_raise_exception(self, mixtral_folder: Path) -> None:
        with pytest.raises(RunError, match="refuses these messages: user and assistant must"):
            Prompts(mixtral_folder).render([USER, USER])

    def test_syntax(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="not valid jinja"):
            self.render(tmp_path, "{% for %}")

    @pytest.mark.parametrize("template", [3, ["{{ messages }}"], [{"name": "default"}]])
    def test_template_of_no_known_form(self, template: object, tmp_path: Path) -> None:
        write_tokenizer(tmp_path, byte_level_tokenizer(), chat_template=template)
        with pytest.raises(RunError, match="chat_template is neither text nor a list"):
            Prompts(tmp_path)

    def test_wrong_types(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="failed on these messages: TypeError"):
            self.render(tmp_path, "{{ messages[0].content + 1 }}")

    def test_no_messages(self, chatml_folder: Path) -> None:
        with pytest.raises(RunError, match="at least one message"):
            Prompts(chatml_folder).render([])

    @pytest.mark.parametrize(
        "template",
        [
            "{{ messages.__class__.__mro__ }}",
            "{{ ''.__class__ }}",
            "{{ raise_exception.__globals__ }}",
            "{{ dict.__globals__ }}",
            "{{ cycler.__init__.__globals__.os }}",
        ],
    )
    def test_sandbox(self, tmp_path: Path, template: str) -> None:
        """What could lead out of the template is undefined: printed as nothing, or an error."""
        try:
            rendered = self.render(tmp_path, template)
        except RunError as error:
            rendered = str(error).partition("is unsafe")[1]
        assert rendered in ("", "is unsafe")

    def test_messages_cannot_be_changed(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="is unsafe"):
            self.render(tmp_path, "{{ messages.append(1) }}")


class TestRawText:
    """Plain text is encoded with what the tokenizer puts around it."""

    TEXT = "Once upon a time, naïve 🙂"

    @pytest.mark.parametrize("family", ["chatml", "mixtral", "qwen"])
    def test_equal_to_transformers(self, family: str, request: pytest.FixtureRequest) -> None:
        folder = request.getfixturevalue(f"{family}_folder")
        wanted = transformers_tokenizer(folder)(self.TEXT).input_ids
        assert Prompts(folder).encode_raw(self.TEXT) == wanted

    @pytest.mark.parametrize("settings", [{}, {"add_bos_token": False}, {"add_bos_token": True}])
    def test_bos_by_the_tokenizer_file(self, tmp_path: Path, settings: dict[str, Any]) -> None:
        tokenizer = byte_fallback_tokenizer()
        bos = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", bos)])
        names = {"bos_token": "<s>", "eos_token": "</s>", **settings}
        folder = write_tokenizer(tmp_path, tokenizer, settings=names)
        wanted = transformers_tokenizer(folder)(self.TEXT).input_ids
        assert Prompts(folder).encode_raw(self.TEXT) == wanted
        assert wanted[0] == bos


class TestStopTokens:
    """What ends an answer."""

    def stop_ids(
        self, tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None = None
    ) -> frozenset[int]:
        settings = {"eos_token": "<|im_end|>"}
        write_tokenizer(tmp_path, byte_level_tokenizer(), settings=settings, config=config)
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return Prompts(tmp_path).stop_token_ids

    def test_generation_config_overrules_config(self, tmp_path: Path) -> None:
        config, generation = {"eos_token_id": 7}, {"eos_token_id": [0, 5]}
        assert self.stop_ids(tmp_path, config, generation) == {0, 5, 2}

    def test_config(self, tmp_path: Path) -> None:
        assert self.stop_ids(tmp_path, {"eos_token_id": 7}, {}) == {7, 2}

    def test_text_config(self, tmp_path: Path) -> None:
        assert self.stop_ids(tmp_path, {"text_config": {"eos_token_id": 9}}) == {9, 2}

    def test_tokenizer_alone(self, tmp_path: Path) -> None:
        assert self.stop_ids(tmp_path, {}) == {2}


def test_special_tokens_map_of_older_checkpoints(tmp_path: Path) -> None:
    folder = write_tokenizer(
        tmp_path, byte_fallback_tokenizer(), chat_template="{{ bos_token }}{{ eos_token }}"
    )
    names = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    assert_same_prompt(folder, [USER])
    assert Prompts(folder).render([USER]) == "<s></s>"


def test_missing_tokenizer_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: missing"):
        Prompts(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RunError, match=r"tokenizer\.json: not a tokenizer"):
        Prompts(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json: not valid JSON"):
        Prompts(tmp_path)


def test_transformers_is_not_imported(chatml_folder: Path) -> None:
    code = (
        "import sys; from kandiga_run.tokenizer.prompts import Prompts\n"
        "Prompts(sys.argv[1]).render([{'role': 'user', 'content': 'x'}])\n"
        "sys.exit('transformers' in sys.modules or 'mlx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, chatml_folder]).returncode == 0
