"""Add: what a file holds becomes a dataset, once; what is wrong with it is told, and never half stored."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import stores
from conftest import RUN_COMMAND, clean_environment
from forks import PIPE, start

from recycledb.additions import Added, add, dataset_name
from recycledb.errors import FormatError
from recycledb.store import Store, verify
from recycledb.store.questions import count_questions


def row(word: object, **more: Any) -> dict[str, Any]:
    return {"instruction": f"Explain {word}.", "input": "", "output": f"{word} is so.", **more}


def write(path: Path, *rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def counts(report: Added) -> tuple[int, int, int]:
    return report.added, report.already_there, report.rejected


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("alpaca.json", "alpaca"), ("part-1.jsonl.gz", "part-1"), ("a.b.parquet", "a.b"), ("x.JSONL.zst", "x"),
        ("data", "data"), ("v1.5.json", "v1.5"),
    ],
)  # fmt: skip
def test_a_dataset_is_named_after_its_file(name: str, dataset: str) -> None:
    assert dataset_name(Path("/some/where") / name) == dataset


def test_again_adds_nothing(store: Store, tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", row(1), row(2), row(1))
    (first,) = add(store, [file])
    assert counts(first) == (2, 1, 0) and first.rows == 3 and first.places_new == 3 and first.dataset == "d"
    (again,) = add(store, [file])
    assert counts(again) == (0, 3, 0) and again.places_new == again.places_closed == 0
    assert len(store.rows("SELECT * FROM dataset_import")) == 1
    shown = store.rows("SELECT dataset, source, format, rows, rejected FROM datasets")[0]
    assert tuple(shown) == ("d", str(file), "alpaca", 3, 0)


def test_a_changed_file_adds_what_is_new_and_closes_what_is_gone(store: Store, tmp_path: Path) -> None:
    stores.register(store)
    file = write(tmp_path / "d.json", row(1), row(2), row(3))
    add(store, [file])
    ids = [found[0] for found in store.rows("SELECT sample_id FROM dataset_samples ORDER BY position")]
    stores.answer_all(store, stores.wanted(), ids)
    paid = store.rows("SELECT count(*) FROM reply")[0][0]
    write(file, row(1), row(4))
    (report,) = add(store, [file])
    assert counts(report) == (1, 1, 0) and report.places_new == 1 and report.places_closed == 2
    assert store.rows("SELECT count(*) FROM reply")[0][0] == paid
    assert len(store.rows("SELECT * FROM dataset_samples")) == 2 and len(store.rows("SELECT * FROM samples")) == 4
    assert len(store.rows("SELECT * FROM dataset_import")) == 2 and len(store.rows("SELECT * FROM datasets")) == 1
    write(file, row(1), row(2), row(3))  # and back: nothing is new, and nothing is asked again
    (report,) = add(store, [file])
    assert counts(report) == (0, 3, 0) and report.places_new == 2
    assert count_questions(store, stores.wanted()) == {}


def test_other_bytes_of_the_same_rows_are_noted(store: Store, tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", row(1))
    add(store, [file])
    file.write_text(json.dumps([row(1)], indent=4), encoding="utf-8")
    (report,) = add(store, [file])
    assert counts(report) == (0, 1, 0) and report.places_new == 0
    digests = {found[0] for found in store.rows("SELECT sha256 FROM dataset_import")}
    assert len(digests) == 2


def test_bad_rows_are_told_and_the_rest_goes_in(store: Store, tmp_path: Path) -> None:
    bad = ["no object", {"instruction": "x"}, row(1, output=5), row("\0"), row(2), {**row(3), "instruction": "\ud800"}]
    (report,) = add(store, [write(tmp_path / "d.json", row(0), *bad)])
    assert counts(report) == (2, 0, 5) and report.rows == 7
    assert [rejection.position for rejection in report.rejections] == [1, 2, 3, 4, 6]
    assert all(rejection.reason and rejection.source.endswith("d.json") for rejection in report.rejections)
    positions = [found[0] for found in store.rows("SELECT position FROM dataset_samples ORDER BY position")]
    assert positions == [0, 5]  # as in the file, the rejected ones counted


def test_a_placeholder_is_an_empty_input_and_is_kept(store: Store, tmp_path: Path) -> None:
    (report,) = add(store, [write(tmp_path / "d.json", row(1, input="<noinput>", topic="é"), row(2, input="N/A"))])
    assert report.placeholders == 2
    assert {found[0] for found in store.rows("SELECT input FROM samples")} == {""}
    kept = [json.loads(found[0]) for found in store.rows("SELECT extra FROM dataset_samples ORDER BY position")]
    assert kept == [{"original_input": "<noinput>", "topic": "é"}, {"original_input": "N/A"}]


def test_files_in_a_row_under_one_name(store: Store, tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.json", row(1), "bad"), write(tmp_path / "2.jsonl", row(2), row(1))
    (report,) = add(store, [one, two], dataset="both")
    assert counts(report) == (2, 1, 1) and report.sources == [str(one), str(two)]
    positions = [found[0] for found in store.rows("SELECT position FROM dataset_samples ORDER BY position")]
    assert positions == [0, 2, 3]


def test_files_of_one_name_are_refused_unless_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    files = [write(tmp_path / "d.json", row(1)), write(tmp_path / "a" / "d.jsonl", row(2))]
    with pytest.raises(FormatError, match="would all be added as dataset 'd'; give --dataset"):
        add(store, files)
    assert store.rows("SELECT * FROM sample") == []


@pytest.mark.parametrize(
    "content", [b"", b"[", b'[{"instruction": "x", "output": "y"}', b"\x00" * 100, b"name,value\n1,2\n", b"[1, 2]"]
)
def test_a_bad_file_leaves_the_store_as_it_was(store: Store, tmp_path: Path, content: bytes) -> None:
    good, bad = write(tmp_path / "good.json", row(1)), tmp_path / "bad.json"
    bad.write_bytes(content)
    with pytest.raises(FormatError) as raised:
        add(store, [good, bad], dataset="both")
    assert str(bad) in str(raised.value) and "\n" not in str(raised.value)
    tables = ("sample", "variant", "place", "dataset", "dataset_import")
    assert [store.rows(f"SELECT count(*) FROM {table}")[0][0] for table in tables] == [0] * 5


def test_a_file_cut_far_inside_leaves_nothing(store: Store, tmp_path: Path) -> None:
    text = json.dumps([row(i) for i in range(6_000)])
    file = tmp_path / "cut.json"
    file.write_text(text[: len(text) * 9 // 10], encoding="utf-8")
    with pytest.raises(FormatError):
        add(store, [file])
    assert store.rows("SELECT * FROM sample") == []


def test_progress_is_told(store: Store, tmp_path: Path) -> None:
    told: list[int] = []
    add(store, [write(tmp_path / "d.json", *[row(i) for i in range(2_500)])], progress=told.append)
    assert told == [1000, 2000]


def test_a_kill_while_adding_leaves_the_store_as_it_was(sqlite_url: str, tmp_path: Path) -> None:
    file = write(tmp_path / "d.json", *[row(i) for i in range(6_000)])
    command = [*RUN_COMMAND, "--store", sqlite_url, "add", str(file)]
    with start(command, env=clean_environment(), stdout=PIPE, stderr=PIPE) as running:
        journal = Path(f"{sqlite_url.removeprefix('sqlite:///')}-wal")
        deadline = time.monotonic() + 300
        while not (journal.exists() and journal.stat().st_size) and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    with Store.open(sqlite_url) as store:
        found = store.rows("SELECT count(*) FROM sample")[0][0]
        assert found in (0, 6_000)  # the kill may come just after the commit
        assert verify.check(store).findings == []
        assert add(store, [file])[0].added == 6_000 - found


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Three times 400 MB take hardly more memory than 400 MB; SQLite's cache of 256 MB is full in both."""
    peaks = []
    for rows in (25_000, 75_000):
        file = tmp_path / f"{rows}.jsonl"
        with file.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row(i, padding="x" * 16_000)) + "\n" for i in range(rows))
        code = (
            "import sys; from pathlib import Path; from recycledb.additions import add; from recycledb.store import Store\n"
            "with Store.open(sys.argv[1], create=True) as store: add(store, [Path(sys.argv[2])])\n"
            "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
        )
        command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/{rows}.db", str(file)]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
        file.unlink()
    print(f"\npeak memory: {peaks} KiB")
    assert peaks[1] < peaks[0] + 60_000
