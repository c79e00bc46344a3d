"""The walk-through in docs/ is run, block by block, and as a notebook."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from forks import clean_environment
from late import Late
from light_demo import lay_out

nbclient: Any = Late("nbclient")  # which take a second to import
nbformat: Any = Late("nbformat")

PAGE = Path(__file__).parent.parent / "docs" / "walkthrough.md"


def blocks_of_page() -> list[str]:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    return blocks


@pytest.mark.long
def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of_page()
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # one namespace, as in a notebook
    assert (tmp_path / "small.json").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own libraries
def test_it_runs_as_a_notebook(tmp_path: Path) -> None:
    """In a real kernel, whose event loop runs while a cell does; `sync` draws its progress as one output, however many events."""
    lay_out(tmp_path)
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(block) for block in blocks_of_page()])
    awaited = "with recycledb.open() as again:\n    print((await again.async_sync()).complete)"
    book.cells.append(nbformat.v4.new_code_cell(awaited))
    shown = {  # what a cell ends with, and a word of the table that it shows
        "again = recycledb.open()\nagain.plan()": "Nothing is missing",
        "await again.async_sync()": "Nothing was to be done",
        "again.query('SELECT count(*) AS samples FROM samples')": "samples",
        "again.select('selective', student='small')": "reflect",
        "again.compare('small', 'large')": "Spearman",
        "again.look()": "samples",
    }
    book.cells += [nbformat.v4.new_code_cell(source) for source in shown]
    environment = clean_environment(JUPYTER_PATH=str(tmp_path / "jupyter"), IPYTHONDIR=str(tmp_path / "ipython"))
    before = dict(os.environ)
    os.environ.update(environment, PYTHONWARNINGS="ignore")  # tqdm misses ipywidgets
    try:
        nbclient.NotebookClient(
            book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert (tmp_path / "small.json").exists()
    outputs = {cell.source: cell.outputs for cell in book.cells}
    [source] = [source for source in outputs if "db.sync()" in source]
    drawn = [output for output in outputs[source] if output.output_type == "display_data"]
    assert len(drawn) <= 1  # the second call has nothing to do
    assert "score · small: " in drawn[0].data["text/plain"] and "done" in drawn[0].data["text/plain"]
    assert not [output for cell in outputs.values() for output in cell if output.get("name") == "stderr"]
    assert outputs[awaited][0].text == "True\n"
    for source, word in shown.items():
        [html] = [output.data["text/html"] for output in outputs[source] if output.output_type == "execute_result"]
        assert "<table" in html or source.endswith(("plan()", "sync()"))
        assert word in html, source
