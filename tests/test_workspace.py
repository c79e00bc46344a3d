"""The front door: every example in its docstrings is run, on the demo's data, in the order in which they stand."""

import doctest
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import recycledb
from recycledb import workspace
from recycledb.demo import lay_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder laid out as the demo's, and the present one while the examples run."""
    folder = tmp_path_factory.mktemp("workspace")
    lay_out(folder)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def test_examples(folder: Path) -> None:
    examples = doctest.DocTestFinder(recurse=True).find(workspace.Workspace, "Workspace", globs={})
    examples.sort(key=lambda example: example.lineno or 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with recycledb.open(create=True) as db:
        for example in examples:
            example.globs = {"db": db, "recycledb": recycledb}
            runner.run(example)
        frame = db.query("SELECT student, kind, ifd_ppl FROM scores ORDER BY variant_id, student")
        assert frame.to_pandas().shape == frame.to_polars().shape == (len(frame.rows), 3)
    assert runner.summarize().attempted >= 10
    assert runner.summarize().failed == 0
    with_examples = {example.name.rpartition(".")[2] for example in examples if example.examples}
    assert {"add", "plan", "sync", "query", "select", "compare", "show", "status"} <= with_examples


def test_importing_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'openai', 'sqlalchemy', 'duckdb', 'pyarrow'}"
    code = f"import sys, recycledb; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_surface_is_this() -> None:
    assert recycledb.__all__ == ["__version__", "open"]
