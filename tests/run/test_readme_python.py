"""The README's Python examples, run one after the other as they stand there."""

import re
from pathlib import Path
from typing import Any

import pytest

from packed import PackedModels

README = Path(__file__).parents[2] / "README.md"


def test_examples_run(
    packed: PackedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    section = README.read_text().partition("\n## Python\n")[2].partition("\n## ")[0]
    examples = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(examples) == 3
    (tmp_path / "qwen3-30b").symlink_to(packed("qwen3_moe").container)
    monkeypatch.chdir(tmp_path)
    # A tiny model computes in less than the README's 4 GB, as a large one does.
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(README), "exec"), names)
    assert "tokens were not computed again" in capsys.readouterr().out
    assert isinstance(names["city"], str)
    assert names["verdict"] in ("yes", "no")
    assert int(names["answer"].usage.generated_tokens) > 0
