"""The walk-through in docs/ is run, block by block."""

import re
from pathlib import Path
from typing import Any

import pytest
from light_demo import lay_out

PAGE = Path(__file__).parent.parent / "docs" / "walkthrough.md"


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # one namespace, as in a notebook
    assert (tmp_path / "small.json").exists()
