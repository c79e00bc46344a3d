"""A new version of the extractor reads stored replies again: what a store gives before, during and after that."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import frozen_selections
import pytest
import stores
from sync_runs import rows
from templates import new
from test_migrations import FROZEN

from recycledb.config import parse
from recycledb.methods import versions
from recycledb.methods.reflection import VERSION, Step
from recycledb.reflection.teachers import Reply
from recycledb.reflection.teachers.recorded import recorded_line
from recycledb.schema import ReplyStatus, Texts, variant_id
from recycledb.selection.select import export
from recycledb.store import Store, upgrade
from recycledb.sync import Outcome, Sync, resolve

SAMPLES = [stores.texts("one"), stores.texts("two")]
OLD_TEXT = "Here are the steps:\n\n   1. One\n   2. Two"  # as version 1 read it
SAME = "2. [Better Answer]\nA brook rises there.\n[End]"
BETTER = f"2. **Better Answer:**\n   [Better Answer] {OLD_TEXT}\n   [End]"
BEFORE = 1


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store that version 1 of the extractor has left: the answer to the first sample it read as now, the other with its indentation."""
    made = new(f"sqlite:///{tmp_path}/store.db")
    with Store.open(made) as store:
        stores.add_samples(store, SAMPLES)
    replies = (Reply(ReplyStatus.OK, text=text, finish_reason="stop") for text in (SAME, BETTER))
    lines = [recorded_line(Step.REFLECT_RESPONSE, (read,), reply) for read, reply in zip(SAMPLES, replies, strict=True)]
    (tmp_path / "replies.jsonl").write_text("\n".join(lines), "utf-8")
    assert sync(made).complete
    [row] = rows(made, "SELECT * FROM variant WHERE output LIKE 'Here are%'")
    read = Texts(row["instruction"], row["input"], OLD_TEXT)
    old = variant_id(row["sample_id"], row["kind"], read, row["parent_id"], row["text_id"])
    with Store.open(made) as store, store.write() as conn:
        conn.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        conn.exec_driver_sql(
            "UPDATE variant SET variant_id = ?, output = ? WHERE output LIKE 'Here are%'", (old, OLD_TEXT)
        )
        conn.exec_driver_sql("UPDATE extraction SET variant_id = ? WHERE text_id = ?", (old, row["text_id"]))
        conn.exec_driver_sql("UPDATE extraction SET extractor = ?", (BEFORE,))
        conn.exec_driver_sql("UPDATE name SET id = ? WHERE kind = 'extractor'", (str(BEFORE),))
    return made


def sync(url: str, *, teacher: bool = True, stop: threading.Event | None = None) -> Outcome:
    folder = Path(url.removeprefix("sqlite:///")).parent
    teachers: dict[str, Any] = {"t": {"provider": "recorded", "file": "replies.jsonl"}}
    table = {"sync": {"steps": ["reflect_response"], "teacher": "t"}, "teachers": teachers} if teacher else {}
    with Store.open(url) as store:
        return Sync(store, resolve(parse(table, folder / "recycledb.toml")), stop=stop).run()


def current(url: str) -> list[str]:
    sql = "SELECT output FROM variants WHERE kind = 'reflect_response' AND is_current = 1 ORDER BY output"
    return [row["output"] for row in rows(url, sql)]


def exported(url: str, folder: Path) -> str:
    with Store.open(url) as store:
        return export(store, folder / "out.json", kind="reflect_response").sha256


@pytest.mark.long
def test_until_a_sync_has_read_all_replies_a_store_gives_what_it_gave(url: str, tmp_path: Path) -> None:
    before = exported(url, tmp_path)
    assert current(url) == ["A brook rises there.", OLD_TEXT]
    stop = threading.Event()
    stop.set()
    assert not sync(url, stop=stop).complete
    assert current(url) == ["A brook rises there.", OLD_TEXT] and exported(url, tmp_path) == before


@pytest.mark.parametrize("teacher", [True, False])
def test_stored_replies_are_read_again_without_a_request_and_whatever_is_synced(url: str, *, teacher: bool) -> None:
    sql = "SELECT variant_id, output FROM variant WHERE kind = 'reflect_response'"
    before, attempts = {row["variant_id"]: row["output"] for row in rows(url, sql)}, rows(url, "SELECT * FROM attempt")
    outcome = sync(url, teacher=teacher)
    assert (outcome.read, outcome.as_dict()["calls"], outcome.complete) == (2, 0, True)
    assert rows(url, "SELECT * FROM attempt") == attempts
    after = {row["variant_id"]: row["output"] for row in rows(url, sql)}
    assert before.items() < after.items() and len(after) == 3
    assert current(url) == ["A brook rises there.", "Here are the steps:\n\n1. One\n2. Two"]
    [kept] = (key for key, output in before.items() if output == "A brook rises there.")
    assert rows(url, f"SELECT is_current FROM variants WHERE variant_id = '{kept}'") == [{"is_current": 1}]
    found = rows(url, "SELECT extractor, count(*) AS n FROM extraction GROUP BY extractor ORDER BY extractor")
    assert [tuple(row.values()) for row in found] == [(BEFORE, 2), (VERSION, 2)]
    assert sync(url, teacher=teacher).idle


@pytest.mark.long
def test_a_frozen_store_selects_the_same_before_and_keeps_every_variant_after(tmp_path: Path) -> None:
    """Its replies are made up and hold no section, so that all are read again and none gives a variant."""
    name = "store-0006.sqlite"
    expected = json.loads((FROZEN / "selected.json").read_text("utf-8"))[name]
    assert frozen_selections.of_file(FROZEN / f"{name}.zst", tmp_path) == expected
    copy = f"sqlite:///{tmp_path}/frozen.sqlite"
    upgrade(copy)
    kept = "SELECT variant_id, instruction, input, output FROM variant ORDER BY variant_id"
    asked = "SELECT attempt_id FROM attempt ORDER BY attempt_id"
    before = [rows(copy, sql) for sql in (kept, asked)]
    outcome = sync(copy, teacher=False)
    assert outcome.read == len(rows(copy, "SELECT text_id FROM reply WHERE status = 'ok'")) > 0
    assert [rows(copy, sql) for sql in (kept, asked)] == before
    assert {versions()[step] for step in Step} == {VERSION}
    read = rows(copy, f"SELECT reason FROM extraction WHERE extractor = {VERSION}")
    assert len(read) == outcome.read and all(row["reason"].startswith("no_marker") for row in read)
    origins = tmp_path / "again.json"
    with Store.open(copy) as store:
        export(store, origins)
    assert hashlib.sha256(origins.read_bytes()).hexdigest() == expected["export"]
