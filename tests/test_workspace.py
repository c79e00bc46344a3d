"""The front door: every example in its docstrings is run, on the demo's data, in the order in which they stand."""

import doctest
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from light_demo import lay_out

import recycledb
from recycledb import workspace


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
