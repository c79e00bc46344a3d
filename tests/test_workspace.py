"""The front door on the demo's data: every example in its docstrings is run, and each method returns what its command prints."""

import asyncio
import doctest
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from light_demo import lay_out

import recycledb
from recycledb.workspace import Answer, Workspace

KINDS = "SELECT kind, count(*) AS n FROM variants GROUP BY kind ORDER BY kind"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder laid out as the demo's, and the present one while the examples run."""
    folder = tmp_path_factory.mktemp("workspace")
    lay_out(folder)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.mark.long
def test_examples(folder: Path) -> None:
    finder = doctest.DocTestFinder(recurse=True)
    examples = finder.find(Workspace, "Workspace", globs={})
    examples.sort(key=lambda example: example.lineno or 0)
    examples += finder.find(Answer, "Answer", globs={})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with recycledb.open(create=True) as db:
        for example in examples:
            example.globs = {"db": db, "recycledb": recycledb, "asyncio": asyncio}
            runner.run(example)
        frame = db.query("SELECT student, kind, ifd_ppl FROM scores ORDER BY variant_id, student")
        assert frame.to_pandas().shape == frame.to_polars().shape == (len(frame.rows), 3)
    assert runner.summarize().attempted >= 10
    assert runner.summarize().failed == 0
    with_examples = {example.name.rpartition(".")[2] for example in examples if example.examples}
    public = {name for name, value in vars(Workspace).items() if callable(value) and not name.startswith("_")}
    need_files = {"import_scores", "import_values", "import_reviews", "add_answers", "judge_report", "write_judge_data"}
    assert (
        public - {"open", "close", "prepare_sync", "look"} - need_files <= with_examples
    )  # the demo has no such files


COMMANDS: dict[
    str, tuple[list[str], Callable[[Workspace], Any]]
] = {  # what prints JSON, and the method of the same name
    "add": (["add", "samples.json", "--json"], lambda db: db.add("samples.json")),
    "plan": (["sync", "--dry-run", "--json"], lambda db: db.plan()),
    "sync": (["sync", "--json"], lambda db: db.sync()),
    "status": (["status", "--json"], lambda db: db.status()),
    "batches": (["batches", "--json"], lambda db: {"batches": db.batches()}),
    "query": (["query", KINDS, "--format", "json"], lambda db: as_dicts(db.query(KINDS))),
    "select": (
        ["select", "selective", "--student", "small", "-o", "o.json", "--card", "README.md", "--json"],
        lambda db: db.select("selective", student="small", out="o.json", card="README.md"),
    ),
    "selections": (["selections", "--json"], lambda db: {"selections": db.selections()}),
    "diff": (["diff", "selective-small", "mine", "--json"], lambda db: db.diff("selective-small", "mine")),
    "compare": (["compare", "small", "large", "--json"], lambda db: db.compare("small", "large")),
    "show": (["show", "SAMPLE", "--json"], lambda db: db.show(sample_of(db))),
    "export": (["export", "-o", "e.json", "--json"], lambda db: db.export("e.json")),
    "report": (["report", "-o", "r.html", "--samples", "2", "--json"], lambda db: db.report("r.html", samples=2)),
    "check": (["db", "check", "--json"], lambda db: {"store": db.config.store.url, **db.check().as_dict()}),
    "merge": (["merge", "sqlite:///other.db", "--json"], lambda db: db.merge("sqlite:///other.db")),
    "import_scores": (
        ["import-scores", "scores.jsonl", "--dataset", "samples", "--kind", "origin", "--student", "paper", "--json"],
        lambda db: db.import_scores("scores.jsonl", dataset="samples", kind="origin", student="paper"),
    ),
}


def as_dicts(answer: Answer) -> list[dict[str, Any]]:
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def sample_of(db: Workspace) -> str:
    """Return a sample that two selections decided on."""
    return str(db.query("SELECT sample_id FROM dataset_samples ORDER BY position LIMIT 1").rows[0][0])


@pytest.fixture(scope="module")
def done(folder: Path) -> Path:
    """The folder when everything was done once, so that a command and its method find the same and change nothing."""
    with recycledb.open(create=True) as db, recycledb.open("sqlite:///other.db", create=True):
        db.add("samples.json")
        db.sync()
        db.select("selective", student="small", out="o.json")
        db.select("selective", student="large", name="mine")
        line = {name: [2.0] * 4 for name in ("ppl", "loss")}
        Path("scores.jsonl").write_text((json.dumps(line) + "\n") * db.add("samples.json")[0].rows)
        db.import_scores("scores.jsonl", dataset="samples", kind="origin", student="paper")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_a_method_returns_what_its_command_prints(name: str, cli: Cli, done: Path) -> None:
    arguments, method = COMMANDS[name]
    with recycledb.open() as db:
        found = method(db)
        sample = sample_of(db)
    told = cli(*[sample[:12] if each == "SAMPLE" else each for each in arguments], cwd=done)
    data = found if isinstance(found, dict | list) and not hasattr(found, "as_dict") else found.as_dict()
    assert json.loads(told.stdout) == json.loads(json.dumps(data))
    assert name != "show" or {each["selection"] for each in found["explanations"]} >= {"selective-small", "mine"}


@pytest.mark.long
def test_what_cannot_be_told_is_missing_unknown(cli: Cli, done: Path, tmp_path: Path) -> None:
    """A model's folder is gone: all else is told, by the method as by the command."""
    config = tmp_path / "recycledb.toml"
    config.write_text(f'[store]\nurl = "sqlite:///{done}/recycle.db"\n[students.gone]\nmodel = "./gone"\n')
    with recycledb.open(config=config) as db:
        found = db.status()
    assert found["missing"] is None and "gone" in found["missing_unknown"] and found["samples"] == 40
    assert json.loads(cli("status", "--json", cwd=tmp_path).stdout) == found
