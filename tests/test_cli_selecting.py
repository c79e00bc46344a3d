"""The commands recipes, select, selections, diff, query, compare, export and import-scores, as users run them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import scored_stores as scored
import stores
from conftest import Cli

from recycledb.cli import run as run_command
from recycledb.methods.reflection import Step
from recycledb.store import Store


@pytest.fixture
def url(sqlite_url: str) -> str:
    """A store with four samples of every kind, scored by two students."""
    with Store.open(sqlite_url) as store:
        scored.two_students(store)
    return sqlite_url


Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Run a command in this process, in `tmp_path`, which is quicker than a process of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, code: int = 0, store: str = url) -> subprocess.CompletedProcess[str]:
        words = ["recycledb", "--store", store, *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        ended = run_command()  # all of `main` but its leaving, which would take the tests along
        output = capsys.readouterr()
        assert ended == code, output.err
        return subprocess.CompletedProcess(words, code, output.out, output.err)

    return run


def said(here: Here, *arguments: str | Path, **more: Any) -> str:
    """Run a command that fails; return its one line."""
    done = here(*arguments, code=1, **more)
    lines = done.stderr.strip().splitlines()
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    return str(lines[0])


def test_recipes_are_listed_and_shown(cli: Cli, here: Here, tmp_path: Path) -> None:
    listed = cli("recipes").stdout
    for name in ("selective", "recycled", "cherry", "superfilter", "keep: reflected | all"):
        assert name in listed
    shown = cli("recipes", "show", "cherry").stdout
    assert "-- @param top top = 5%" in shown
    (tmp_path / "mine.sql").write_text(shown)
    done = here("select", "--sql", "mine.sql", "--student", "7b", "--top", "50%", "--json")
    assert json.loads(done.stdout)["counts"] == {"origin": 2}
    assert "no recipe 'x'; there are all_agree" in here("recipes", "show", "x", code=1).stderr


def test_select_writes_records_and_says(cli: Cli, here: Here, url: str, tmp_path: Path) -> None:
    text = cli("--store", url, "select", "selective", "--student", "7b", "-o", "out.json").stdout
    assert "selective-7b: 4 of 4 samples (100.0%)" in text
    assert "reflect_both" in text
    assert len(json.loads((tmp_path / "out.json").read_text())) == 4
    done = here(
        *("select", "selective", "--student", "13b", "--name", "mine", "--json"),
        *("--param", "keep=all", "--teacher", "gpt", "--dataset", "d", "--top", "2"),
    )
    found = json.loads(done.stdout)
    assert (found["selection"], found["rows"], found["file"]) == ("mine", 2, None)
    listed = json.loads(here("selections", "--json").stdout)["selections"]
    assert [row["selection"] for row in listed] == ["selective-7b", "mine"]
    assert listed[0]["parameters"]["metric"] == "ppl"
    assert "selective-7b  4 rows" in cli("--store", url, "selections").stdout
    differs = json.loads(here("diff", "selective-7b", "mine", "--json").stdout)
    assert differs["only_a"] == 2
    assert "only in selective-7b: 2 samples" in cli("--store", url, "diff", "selective-7b", "mine").stdout


def test_select_says_what_is_wrong(here: Here) -> None:
    assert said(here, "select", "selective") == ("recycledb: several students have scores; give --student: 13b, 7b")
    assert "no recipe 'select' (did you mean 'selectit'?); there are" in said(here, "select", "select")
    assert "for a file give --sql mine.sql" in said(here, "select", "mine.sql")
    assert "cannot be read as a recipe" in said(here, "select", "--sql", "absent.sql")
    assert "--param keep: give NAME=VALUE" in said(here, "select", "cherry", "--param", "keep")
    assert "unknown format 'xml'" in said(here, "select", "recycled", "-o", "x.xml", "--format", "xml")
    assert "no selection 'a'" in said(here, "diff", "a", "b")
    here("select", code=2)
    here("select", "recycled", "--card", "README.md", code=2)
    nothing = here("select", "cherry", "--student", "7b", "--top", "1%", "--json")
    assert json.loads(nothing.stdout)["rows"] == 0
    assert "nothing was picked" in nothing.stderr


@pytest.mark.long
def test_query_prints_writes_and_refuses(cli: Cli, here: Here, url: str, tmp_path: Path) -> None:
    sql = "SELECT kind, count(*) AS n FROM variants WHERE kind LIKE :kind GROUP BY kind ORDER BY kind"
    table = cli("--store", url, "query", sql, "--param", "kind=reflect%").stdout.splitlines()
    assert [line.split() for line in table if "─" not in line] == [
        ["kind", "n"],
        *([kind, "4"] for kind in ("reflect_both", "reflect_instruction", "reflect_response")),
    ]
    (tmp_path / "q.sql").write_text(sql)
    done = here("query", "-f", "q.sql", "--param", "kind=origin", "--format", "json")
    assert json.loads(done.stdout) == [{"kind": "origin", "n": 4}]
    done = cli("--store", url, "query", "-f", "-", "--format", "csv", input="SELECT 1 AS a")
    assert done.stdout == "a\n1\n"
    done = here("query", "SELECT student FROM students ORDER BY 1", "-o", "s.parquet")
    assert done.stdout == ""
    assert pq.read_table(tmp_path / "s.parquet").to_pylist() == [{"student": "13b"}, {"student": "7b"}]
    assert "refused" in said(here, "query", "DELETE FROM loss")
    assert "no value for :kind" in said(here, "query", sql)
    assert "stopped after 0.2 s" in said(
        here,
        "query",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c",
        "--timeout",
        "0.2",
    )
    assert "cannot be read" in said(here, "query", "-f", "absent.sql")
    here("query", code=2)


@pytest.mark.long
def test_compare_prints_numbers_and_json(cli: Cli, here: Here, url: str) -> None:
    text = cli("--store", url, "compare", "7b", "13b", "--top", "50%").stdout
    for word in ("Spearman", "Kendall", "picks of the recipe selective", "largest differences", "reflect_both"):
        assert word in text
    found = json.loads(here("compare", "7b", "13b", "--kind", "origin", "--metric", "rifd_ppl", "--json").stdout)
    assert [row["n"] for row in found["summaries"]] == [4, 4]
    assert "points" not in found
    assert "no student '70b' in the store (did you mean '7b'?); there are: 13b, 7b" in said(
        here, "compare", "7b", "70b"
    )


@pytest.mark.long
def test_teachers_and_prompts_are_compared_by_name(here: Here, url: str) -> None:
    with Store.open(url) as store:
        scored.use_prompts(store, reflect_instruction="feedbeef0001")
    older = stores.PROMPTS[Step.REFLECT_INSTRUCTION]
    picked = json.loads(here("select", "selective", "--student", "7b", "--prompt", older[:6], "--json").stdout)
    assert picked["counts"] == {"reflect_response": 2, "reflect_both": 2}
    assert picked["parameters"]["prompt"] == older
    here("export", "--kind", "reflect_both", "--prompt", older[:6], "-o", "older.json")
    assert "no current reflect_both" in said(here, "export", "--kind", "reflect_both", "-o", "newer.json")
    text = here("compare", "7b", "--prompt", "current", "--prompt", older[:6]).stdout
    assert f"ifd_ppl of current and {older[:8]} under 7b on 4 samples, teacher gpt" in text
    assert "--teacher or --prompt several times" in said(here, "compare", "7b")
    assert "no such prompt in the store" in said(here, "compare", "7b", "--prompt", "0bad", "--prompt", "current")


@pytest.mark.long
@pytest.mark.parametrize("format", ["alpaca", "sharegpt", "jsonl", "parquet"])
def test_datasets_loads_the_rows_that_were_written(here: Here, tmp_path: Path, format: str) -> None:
    import datasets

    name = f"out.{'parquet' if format == 'parquet' else 'jsonl' if format == 'jsonl' else 'json'}"
    here("select", "selective", "--student", "7b", "-o", name, "--format", format)
    here("select", "selective", "--student", "7b", "-o", "plain.json")
    kind = "parquet" if format == "parquet" else "json"
    loaded = datasets.load_dataset(kind, data_files=str(tmp_path / name), cache_dir=str(tmp_path / "cache"))["train"]
    expected = json.loads((tmp_path / "plain.json").read_text())
    if format == "sharegpt":
        turns = [[(turn["from"], turn["value"]) for turn in row["conversations"]] for row in loaded]
        asked = [f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"] for row in expected]
        assert turns == [
            [("human", question), ("gpt", row["output"])] for question, row in zip(asked, expected, strict=True)
        ]
    else:
        assert [{key: row[key] for key in ("instruction", "input", "output")} for row in loaded] == expected


@pytest.mark.long
def test_export_and_what_trainers_want(cli: Cli, here: Here, url: str, tmp_path: Path) -> None:
    done = cli("--store", url, "export", "--kind", "reflect_both", "-o", "r.jsonl", "--format", "jsonl", "--json")
    assert json.loads(done.stdout)["rows"] == 4
    folder = tmp_path / "factory"
    folder.mkdir()
    (folder / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    here("select", "selective", "--student", "7b", "--llama-factory", "factory", "--card", "README.md")
    info = json.loads((folder / "dataset_info.json").read_text())
    assert info["mine"] == {"file_name": "mine.json"}
    assert info["selective-7b"] == {
        "file_name": "selective-7b.json",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    }
    assert len(json.loads((folder / "selective-7b.json").read_text())) == 4
    training = (folder / "selective-7b.yaml").read_text()
    for line in (
        'model_name_or_path: "org/model"',
        "learning_rate: 2.0e-5",
        "cutoff_len: 2048",
        "warmup_ratio: 0.03",
        "template: vicuna",
    ):
        assert line in training
    card = (tmp_path / "README.md").read_text()
    assert card.startswith('---\npretty_name: "selective-7b"')
    for line in (
        "| recipe | selective |",
        "| student | 7b |",
        "| teacher | gpt |",
        "| rows | 4 |",
        "factory/selective-7b.json",
    ):
        assert line in card
    cli(
        "--store",
        url,
        "export",
        "-o",
        "o.json",
        "--format",
        "sharegpt",
        "--llama-factory",
        "factory",
        "--student",
        "7b",
    )
    entry = json.loads((folder / "dataset_info.json").read_text())["o"]
    assert entry["file_name"] == str(tmp_path / "o.json")
    assert entry["formatting"] == "sharegpt"
    (folder / "dataset_info.json").write_text("[broken")
    assert "is left unchanged" in here("select", "recycled", "--llama-factory", "factory", code=1).stderr
    assert (folder / "dataset_info.json").read_text() == "[broken"
    assert "absent is not a folder" in here("export", "-o", "o.json", "--llama-factory", "absent", code=1).stderr
    assert "no current compressed" in said(here, "export", "--kind", "compressed", "-o", "c.json")


PUBLISHED = [
    {"ppl": [7.4, 7.4, 5.5, 6.7], "loss": [2.0, 2.0, 1.7, 1.9]},
    {"ppl": [0, 0, 0, 0], "loss": [0, 0, 0, 0]},
    {},
    {"ppl": [7.4, 7.4, 5.5, 8.2], "loss": [2.0, 2.0, 1.7, 2.1]},
]


@pytest.mark.long
def test_published_scores_come_in_as_a_student_of_their_own(cli: Cli, here: Here, url: str, tmp_path: Path) -> None:
    path = tmp_path / "origin.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PUBLISHED))
    wanted = ("import-scores", path, "--dataset", "d", "--kind", "origin", "--student", "paper")
    first = json.loads(cli("--store", url, *wanted, "--json").stdout)
    assert (first["variants"], first["statistics_new"], first["invalid"]) == (4, 16, 8)
    again = json.loads(here(*wanted, "--json").stdout)
    assert (again["statistics_new"], again["statistics_present"]) == (0, 16)
    sql = """
        SELECT s.position, round(ifd_loss, 3) AS ifd FROM scores JOIN dataset_samples s USING (sample_id)
        WHERE student = 'paper' ORDER BY 1
    """
    rows = here("query", sql, "--format", "csv").stdout.splitlines()
    assert rows == ["position,ifd", "0,0.95", "1,", "2,", "3,1.05"]
    assert json.loads(here("select", "cherry", "--student", "paper", "--top", "100%", "--json").stdout)["rows"] == 1
    [row] = json.loads(here("query", "SELECT * FROM students WHERE student = 'paper'", "--format", "json").stdout)
    assert (row["revision"], row["model"], row["max_length"]) == ("imported", "paper", 2048)
    other = (*wanted[:-1], "alpaca-paper", "--json")
    assert json.loads(here(*other, "--template", "alpaca").stdout)["statistics_new"] == 16
    assert json.loads(here(*other, "--prompt", "alpaca").stdout)["statistics_present"] == 16  # the same student
    templates = "SELECT student, prompt FROM students WHERE revision = 'imported' ORDER BY 1"
    assert here("query", templates, "--format", "csv").stdout.split() == [
        "student,prompt",
        "alpaca-paper,alpaca",
        "paper,vicuna",
    ]


def test_published_scores_of_reflections_need_their_texts(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "both.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PUBLISHED))
    wanted = ("import-scores", path, "--dataset", "d", "--kind")
    done = here(*wanted, "reflect_both", "--student", "paper", "--json")
    assert json.loads(done.stdout)["variants"] == 4
    with Store.open(f"sqlite:///{tmp_path}/bare.db", create=True) as store:
        scored.stores.add_samples(store, [scored.stores.texts(word) for word in range(4)])
    bare = f"sqlite:///{tmp_path}/bare.db"
    assert "add the published reflections first" in said(here, *wanted, "reflect_both", "--student", "p", store=bare)


def test_published_scores_must_fit(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "origin.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PUBLISHED[:3]))
    wanted = ("import-scores", path, "--dataset", "d", "--kind", "origin", "--student")
    assert "has 3 rows, but dataset d has 4" in said(here, *wanted, "paper")
    assert "7b is a student that was scored here" in said(here, *wanted, "7b")
    path.write_text("".join(json.dumps(row) + "\n" for row in PUBLISHED))
    here(*wanted, "paper")
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(PUBLISHED)))
    assert "already has different numbers" in said(here, *wanted, "paper")
