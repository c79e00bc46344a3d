"""A store that an earlier release filled, with the same recycledb.toml: equal ids, nothing asked or scored again, the same bytes."""

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import zstandard

from recycledb.store import upgrade
from recycledb.workspace import Workspace

# Filled by `sync` and `add` as they were at a0a20b5 (revision 0005), against the tests' teacher server; its losses are made up. What was
# selected in it then, as rows and hashes of the files, is SELECTED.
SYNCED = Path(__file__).with_name("data") / "synced-0005.sqlite.zst"
CONFIGURATION = """
[store]
url = "sqlite:///store.db"
[teachers.gpt]
model = "made-up"
base_url = "http://127.0.0.1:9"
params = { max_tokens = 700, temperature = 0.2 }
[students.7b]
model = "student"
[prompts]
reflect_response = "mine.txt"
[sync]
steps = ["compress", "reflect_instruction", "reflect_response", "score"]
"""
PROMPT = "<<system>>\nYou improve answers.\n<<user>>\n{instruction}{{#input}}\n{input}{{/input}}\n{output}\n[Better Answer]\n[End]\n"
STUDENT = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": (2).to_bytes(8, "little") + b"{}",
}
SELECTED = {
    "selective": [5, "aa30f13205dc8d3cbdb62b4e1932b9b2d1e7c8b1ba146840be65f78632772f38"],
    "recycled": [5, "59f0550916106c92643920e993d57f4d3d153d8fcbe0884d99e9652140a29f04"],
    "cherry": [3, "33bbabe9608ff678fefd21e22484fb407579068ce41e793928d152154ced5de0"],
    "export": "7b18076721b446febceb86f7ac86a6b5fc0b44182e2a8506d524c9f44a178f9c",
}
GIVEN: dict[str, dict[str, str]] = {
    "selective": {"student": "7b", "keep": "all"},
    "recycled": {},
    "cherry": {"student": "7b", "top": "3"},
}
IDS = {
    **{"sample": "sample_id", "variant": "variant_id", "prompt": "prompt_id", "teacher": "teacher_id"},
    **{"student": "student_id", "attempt": "attempt_id", "reply": "text_id"},
}


def ids(path: Path) -> dict[str, list[Any]]:
    """Return the ids in each table, and what each name meant in turn."""
    connection = sqlite3.connect(path)
    found = {
        table: connection.execute(f"SELECT {key} FROM {table} ORDER BY 1").fetchall() for table, key in IDS.items()
    }
    found["name"] = connection.execute(
        "SELECT kind, name, id FROM name WHERE kind <> 'extractor' AND kind <> 'selection' ORDER BY since, 1, 2"
    ).fetchall()
    connection.close()
    return found


def selected(db: Workspace, folder: Path) -> dict[str, Any]:
    """Select and export, as was done when the store was made."""
    found: dict[str, Any] = {}
    for name, given in GIVEN.items():
        picked = db.select(name, out=folder / f"{name}.json", **given)
        found[name] = [picked.rows, picked.file_sha256]
    db.export(folder / "all.json")
    return found | {"export": hashlib.sha256((folder / "all.json").read_bytes()).hexdigest()}


@pytest.mark.long
def test_a_store_that_an_earlier_release_filled_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens where the teacher would be and the student is no model, so any request or pack would end the sync."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    (tmp_path / "recycledb.toml").write_text(CONFIGURATION)
    (tmp_path / "mine.txt").write_text(PROMPT)
    (tmp_path / "student").mkdir()
    for name, content in STUDENT.items():
        (tmp_path / "student" / name).write_bytes(content)
    path = tmp_path / "store.db"
    path.write_bytes(zstandard.decompress(SYNCED.read_bytes()))
    before = ids(path)
    assert {table: len(rows) for table, rows in before.items()} == {
        **{"sample": 5, "variant": 21, "prompt": 3, "teacher": 1, "student": 1, "attempt": 16, "reply": 16, "name": 5},
    }
    upgrade(f"sqlite:///{path}")
    with Workspace.open(config=tmp_path / "recycledb.toml") as db:
        plan = db.plan().as_dict()
        assert [plan[key] for key in ("calls", "statistics", "failed", "unused")] == [0, 0, 0, []]
        assert selected(db, tmp_path) == SELECTED
        outcome = db.sync()  # reads the stored replies by the present reader
        done = outcome.as_dict()
        assert (outcome.complete, done["read"], done["calls"], done["statistics"]) == (True, 16, 0, 0)
        assert selected(db, tmp_path) == SELECTED
        assert db.sync().idle
        data = [{"instruction": t.instruction, "input": t.input, "output": t.output} for t in samples(db)]
        (tmp_path / "data.json").write_text(json.dumps(data))
        (added,) = db.add(tmp_path / "data.json", replace=True)
        assert (added.added, added.samples_left) == (0, 0)
    assert ids(path) == before
    (tmp_path / "recycledb.toml").write_text(
        CONFIGURATION.replace('model = "student"', 'model = "student"\nprompt = "alpaca"')
    )
    with Workspace.open(config=tmp_path / "recycledb.toml") as db:
        [unused] = db.plan().unused
    assert (unused.what, unused.replies, unused.losses) == ("[students.7b]", 0, 80)
    assert unused.changed == 'prompt: "vicuna" → "alpaca"'  # the folder is another one than then, and changes nothing
    assert unused.back == 'set prompt = "vicuna" in [students.7b]'


def samples(db: Workspace) -> list[Any]:
    sql = """
        SELECT s.* FROM dataset_samples p JOIN samples s ON s.sample_id = p.sample_id ORDER BY p.position
    """
    return list(db.store.rows(sql))
