"""Datasets: what they are made from, adding to them, taking them out, and syncing some of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import stores
from conftest import Cli
from teacher_server import TeacherServer
from templates import new
from tiny_students import save_student

from recycledb.additions import Added, add
from recycledb.config import parse
from recycledb.errors import ConfigError, FormatError, SelectionError, StoreError
from recycledb.methods.ifd import Stat
from recycledb.store import Store, datasets, derivations, verify
from recycledb.store.losses import count_scores
from recycledb.store.merge import merge
from recycledb.store.parts import locate
from recycledb.store.questions import claim, count_failed, count_questions, count_under_way
from recycledb.store.workers import start_worker
from recycledb.workspace import Workspace


def row(word: object) -> dict[str, str]:
    return {"instruction": f"Explain {word}.", "input": "", "output": f"{word} is so."}


def write(path: Path, *words: object) -> Path:
    """Write a file of samples, one for each word; the word "bad" is a row that is rejected."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"instruction": 1} if word == "bad" else row(word) for word in words]))
    return path


def contents(store: Store, dataset: str) -> list[tuple[int, str]]:
    sql = """
        SELECT p.position, s.instruction FROM dataset_samples p JOIN samples s ON s.sample_id = p.sample_id
        WHERE p.dataset = :d ORDER BY p.position
    """
    return [(found[0], found[1].removeprefix("Explain ")[:-1]) for found in store.rows(sql, d=dataset)]


def imported(store: Store, dataset: str) -> list[tuple[Any, ...]]:
    sql = "SELECT source, format, sha256, rows, rejected, cut FROM datasets WHERE dataset = :d"
    return [tuple(found) for found in store.rows(sql, d=dataset)]


def only(reports: list[Added]) -> Added:
    [report] = reports
    return report


@pytest.fixture
def sqlite(sqlite_url: str) -> Any:
    with Store.open(sqlite_url) as store:
        yield store


# --- other files --------------------------------------------------------------------------------


def test_other_files_of_the_same_name_are_refused_and_both_are_named(sqlite: Store, tmp_path: Path) -> None:
    one, two = write(tmp_path / "a" / "train.json", 1, 2), write(tmp_path / "b" / "train.json", 3)
    add(sqlite, [one])
    with pytest.raises(StoreError) as raised:
        add(sqlite, [two])
    said = str(raised.value)
    assert said.startswith(f"dataset 'train' (2 samples) was made from {one}, not from {two}: ") and "\n" not in said
    assert "--append" in said and "--replace" in said and "--dataset NAME" in said
    assert contents(sqlite, "train") == [(0, "1"), (1, "2")] and sqlite.rows("SELECT count(*) FROM sample")[0][0] == 2
    with pytest.raises(ConfigError, match="--append and --replace"):
        add(sqlite, [two], append=True, replace=True)
    report = only(add(sqlite, [two], replace=True))
    assert (report.added, report.samples_left) == (1, 2) and contents(sqlite, "train") == [(0, "3")]


def test_a_dataset_of_two_files_is_not_replaced_by_one_of_them(sqlite: Store, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.json", i) for i in range(5)]
    add(sqlite, files[:4], dataset="d")
    with pytest.raises(StoreError, match=r"was also made from .*1.json, .*2.json and 1 more: --append keeps"):
        add(sqlite, files[:1], dataset="d")
    assert only(add(sqlite, files, dataset="d")).samples_left == 0  # one more file than before takes nobody's place
    assert contents(sqlite, "d") == [(i, str(i)) for i in range(5)]


def test_appending_gives_what_one_call_gives_also_when_repeated(store: Store, tmp_path: Path) -> None:
    one = write(tmp_path / "1.json", 1, "bad", 2, "bad")
    two, three = write(tmp_path / "2.json", 3, 1), write(tmp_path / "3.json", 4)
    add(store, [one, two, three], dataset="together")
    add(store, [one], dataset="d", append=True)  # of a dataset that is not there yet
    assert only(add(store, [two], dataset="d", append=True)).added == 0
    add(store, [three], dataset="d", append=True)
    rows = store.rows("SELECT count(*) FROM place")[0][0]
    for again in ([two], [one, three], [one, two, three]):
        report = only(add(store, again, dataset="d", append=True))
        assert (report.places_new, report.places_closed, report.samples_left) == (0, 0, 0)
    assert contents(store, "d") == contents(store, "together") == [(0, "1"), (2, "2"), (4, "3"), (5, "1"), (6, "4")]
    assert imported(store, "d") == imported(store, "together")
    assert store.rows("SELECT count(*) FROM place")[0][0] == rows
    assert len(store.rows("SELECT * FROM dataset_import WHERE dataset = 'd'")) == 3


@pytest.mark.long
def test_a_file_that_changed_is_appended_in_its_own_place(store: Store, tmp_path: Path) -> None:
    """What follows it moves, as if all files had been added in one call."""
    for words in ((1, 7, 8, 9), (1,), (2, 1)):
        name = f"d{len(words)}"
        files = [write(tmp_path / "1.json", 1, 2), write(tmp_path / "2.json", 3, "bad", 4)]
        files.append(write(tmp_path / "3.json", 5, 6, 7))
        add(store, files, dataset=name)
        write(files[0], *words)
        report = only(add(store, files[:1], dataset=name, append=True))
        add(store, files, dataset=f"{name} together")
        assert contents(store, name) == contents(store, f"{name} together")
        assert imported(store, name) == imported(store, f"{name} together")
        assert report.samples_left == len({1, 2} - set(words))
    assert verify.check(store).findings == []


@pytest.mark.long
def test_sections_larger_than_a_batch_move(sqlite: Store, tmp_path: Path) -> None:
    files = [write(tmp_path / "1.json", "a", "b"), write(tmp_path / "2.json", *range(6_000))]
    add(sqlite, files, dataset="d")
    write(files[0], "a", "b", "c")
    assert only(add(sqlite, files[:1], dataset="d", append=True)).samples_left == 0
    assert [word for _, word in contents(sqlite, "d")] == ["a", "b", "c", *map(str, range(6_000))]


@pytest.mark.long
def test_how_many_samples_left_is_said_in_words(cli: Cli, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/recycle.db"
    file = write(tmp_path / "train.json", 1, 2, 3, 4, 4)
    cli("add", file)
    write(file, 4, 1)
    said = cli("add", file).stdout
    assert (
        said == 'train: 0 added, 2 already there, 0 rejected\n  2 samples left the dataset "train"; their rows stay\n'
    )
    write(file, 1, 4)  # other positions; no sample left
    assert "left" not in cli("add", file).stdout
    assert '  1 sample left the dataset "train"; its rows stay\n' in cli("add", write(file, 4)).stdout
    cli("add", write(file, 1, 4))
    found = json.loads(cli("add", write(file, 1), "--json").stdout)
    assert (found["samples_left"], found["datasets"][0]["samples_left"]) == (1, 1)
    other = write(tmp_path / "b" / "train.json", 7)
    refused = cli(
        "add", "train.json", cwd=other.parent, env={"RECYCLEDB_STORE": url}, code=1
    ).stderr  # the same words, and another file
    assert refused.startswith(f"recycledb: dataset 'train' (1 sample) was made from {file}, not from train.json: ")
    cli("add", "train.json", "--append", cwd=other.parent, env={"RECYCLEDB_STORE": url})
    assert json.loads(cli("dataset", "list", "--json").stdout)["datasets"][0]["sources"] == [str(file), "train.json"]


def test_files_of_one_stem_in_one_call_need_a_name(sqlite: Store, tmp_path: Path) -> None:
    files = [write(tmp_path / "a" / "d.json", 1), write(tmp_path / "b" / "d.json", 2)]
    with pytest.raises(FormatError, match="give --dataset NAME for one dataset of all of them, or"):
        add(sqlite, files)
    assert add(sqlite, files, dataset="both")[0].added == 2


# --- which file is the same ---------------------------------------------------------------------


def test_a_file_is_the_same_by_any_path_to_it(sqlite: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "data" / "train.json", 1, 2)
    monkeypatch.chdir(tmp_path)
    add(sqlite, [Path("data/train.json")])
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    for number, path in enumerate(("train.json", "../data/train.json", str(file), "../link/train.json")):
        write(file, 1, f"new {number}")
        assert only(add(sqlite, [Path(path)])).samples_left == 1
    write(tmp_path / "train.json", 9)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="was made from"):  # as it was typed in the other folder
        add(sqlite, [Path("train.json")])


def test_a_moved_file_is_the_same_by_its_content(sqlite: Store, tmp_path: Path) -> None:
    file = write(tmp_path / "before" / "train.json", 1, 2)
    add(sqlite, [file])
    shutil.move(tmp_path / "before", tmp_path / "after")
    file = tmp_path / "after" / "train.json"
    for options in ({}, {"append": True}):
        assert only(add(sqlite, [file], **options)).places_new == 0  # type: ignore[arg-type]
    write(file, 1)  # its new path is known by now
    assert only(add(sqlite, [file])).samples_left == 1
    write(file, 5)
    shutil.move(tmp_path / "after", tmp_path / "later")
    with pytest.raises(StoreError, match="was made from"):  # moved and changed: no way to tell
        add(sqlite, [tmp_path / "later" / "train.json"])


def test_a_copy_does_not_take_over_the_path(sqlite: Store, tmp_path: Path) -> None:
    file = write(tmp_path / "a" / "train.json", 1, 2)
    copy = tmp_path / "train.json"
    shutil.copy(file, copy)
    add(sqlite, [file])
    add(sqlite, [copy])
    write(file, 1)
    assert only(add(sqlite, [file])).samples_left == 1


def test_addresses_and_streams_have_no_folder() -> None:
    hub = "hf://datasets/tatsu-lab/alpaca"
    assert locate(hub) == locate(Path(hub)) == hub
    assert locate("-") is locate("/dev/stdin") is locate("/dev/fd/63") is None
    assert locate("a/../b.json") == str(Path("b.json").absolute())


def test_imports_of_earlier_releases_have_no_list_of_files(sqlite: Store, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.json", i, "bad") for i in range(3)]
    for dataset, made in (("one", files[:1]), ("two", files[:2])):
        add(sqlite, made, dataset=dataset)
        with sqlite.write() as conn:
            conn.exec_driver_sql(f"UPDATE dataset_import SET parts = NULL WHERE dataset = '{dataset}'")
        with pytest.raises(StoreError, match="was made from"):
            add(sqlite, files[2:], dataset=dataset)
    assert only(add(sqlite, files[:1], dataset="one", append=True)).places_new == 0
    add(sqlite, files[1:2], dataset="one", append=True)
    with pytest.raises(StoreError, match=r"did not record where .*1.json begins"):
        add(sqlite, files[1:2], dataset="two", append=True)
    add(sqlite, files[2:], dataset="two", append=True)
    assert contents(sqlite, "two") == [(0, "0"), (2, "1"), (4, "2")]
    add(sqlite, files, dataset="two")
    assert only(add(sqlite, files[1:2], dataset="two", append=True)).places_new == 0
    assert contents(sqlite, "one") == contents(sqlite, "two")[:2]
    assert imported(sqlite, "two")[0][3:5] == (6, 3)


# --- taking out ---------------------------------------------------------------------------------


def filled(store: Store) -> dict[str, list[str]]:
    """Fill a store with datasets of two, two and one sample, all answered and scored; one sample is in both a and b."""
    stores.register(store)
    words = {"a": [1, 2], "b": [2, 3], "c": [4]}
    return {name: stores.add_samples(store, map(stores.texts, word), name) for name, word in words.items()}


@pytest.mark.long
def test_a_removed_dataset_is_out_of_everything_and_nothing_is_paid_twice(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = write(tmp_path / "one.json", 1, 2), write(tmp_path / "two.json", 2, 3)
    with Workspace.open(sqlite_url) as db:
        stores.register(db.store)
        db.add(one, two)
        ids = [found[0] for found in db.store.rows("SELECT DISTINCT sample_id FROM dataset_samples")]
        stores.answer_all(db.store, stores.wanted(), ids)
        tables = ("sample", "variant", "reply", "place", "dataset")
        before = [db.store.rows(f"SELECT count(*) FROM {table}")[0][0] for table in tables]
        with pytest.raises(StoreError, match="no dataset 'oen'; did you mean 'one'\\? there are: one, two"):
            db.remove_datasets("two", "oen")
        removed = db.remove_datasets("one")
        assert removed.as_dict() == {
            "datasets": [{"dataset": "one", "samples": 2, "only_here": 1, "positions": 2}], "samples": 2, "only_here": 1,
        }  # fmt: skip
        assert [found["dataset"] for found in db.datasets()] == datasets.names(db.store) == ["two"]
        assert [found[0] for found in db.store.rows("SELECT dataset FROM datasets")] == ["two"]
        assert db.export(tmp_path / "out.json").rows == db.select(
            write_sql(tmp_path / "all.sql"), out=tmp_path / "sel.json"
        ).rows == 2  # fmt: skip
        with pytest.raises(SelectionError, match="no dataset 'one'; there are: two"):
            db.export(tmp_path / "out.json", dataset="one")
        assert [db.store.rows(f"SELECT count(*) FROM {table}")[0][0] for table in tables] == before
        write(tmp_path / "one.json", 1, 2)
        report = only(db.add(one))  # the positions are opened again
        assert (report.added, report.already_there, report.places_new) == (0, 2, 2)
        assert count_questions(db.store, stores.wanted()) == {} and db.export(tmp_path / "out.json").rows == 3
        db.remove_datasets("one")
        db.add(write(tmp_path / "other" / "one.json", 7))  # nothing is replaced: there is no such dataset
        assert verify.check(db.store).findings == []


def write_sql(path: Path) -> Path:
    order = "JOIN sample_order o ON o.sample_id = v.sample_id"
    path.write_text(f"SELECT v.variant_id FROM variants v {order} WHERE v.kind = 'origin' GROUP BY 1")
    return path


@pytest.mark.long
def test_several_are_removed_together(cli: Cli, tmp_path: Path) -> None:
    for name, words in (("a", (1, 2)), ("b", (2, 3)), ("c", (3, 4))):
        cli("add", write(tmp_path / f"{name}.json", *words))
    shown = cli("dataset", "list").stdout.splitlines()
    assert shown[0].split() == ["dataset", "samples", "last", "changed", "format", "files"]
    assert [line.split()[:2] for line in shown[1:]] == [["a", "2"], ["b", "2"], ["c", "2"]]
    assert cli("dataset", "remove", "a", "b").stdout.splitlines() == [
        "a: removed with its 2 samples, 2 of them in no other dataset",
        "b: removed with its 2 samples, 1 of them in no other dataset",
        "together 3 samples, 2 of them in no other dataset",
        "their rows stay: after adding the same files again, nothing is asked or computed twice",
    ]
    assert cli("dataset", "remove", "a", code=1).stderr == "recycledb: no dataset 'a'; there are: c\n"
    assert json.loads(cli("dataset", "remove", "c", "--json").stdout)["only_here"] == 2
    assert cli("dataset", "list").stdout == "no datasets; recycledb add FILE adds one\n"
    assert "\nno datasets; recycledb add FILE adds one\n" in cli("status").stdout


@pytest.mark.long
def test_a_removal_travels_with_a_merge(tmp_path: Path) -> None:
    file = write(tmp_path / "train.json", 1, 2)
    urls = [new(f"sqlite:///{tmp_path}/one.db"), new(f"duckdb:///{tmp_path}/two.db")]
    with Store.open(urls[0]) as one, Store.open(urls[1]) as two:
        add(one, [file])
        merge(two, one)
        datasets.remove(two, ["train"])
        merge(two, one)  # which has nothing new
        assert datasets.names(two) == [] and datasets.names(one) == ["train"]
        merge(one, two)
        assert datasets.names(one) == [] and contents(one, "train") == []
        add(two, [file])
        merge(one, two)
        assert datasets.names(one) == ["train"] and contents(one, "train") == [(0, "1"), (1, "2")]
        datasets.remove(one, ["train"])
        add(two, [write(file, 1, 3)])
        with pytest.raises(StoreError, match=r"diverged .*dataset remove"):
            merge(one, two)
        datasets.remove(two, ["train"])
        merge(one, two)
        assert datasets.names(one) == [] and verify.check(one).findings == []


def test_appending_needs_an_import_that_says_where_the_dataset_ends(tmp_path: Path) -> None:
    """Each machine added the file on its own, and the shorter one later: the positions are those of the longer one."""
    file, other = write(tmp_path / "train.json", 1), write(tmp_path / "other.json", 9)
    with Store.open(new(f"sqlite:///{tmp_path}/one.db")) as one, Store.open(new(f"sqlite:///{tmp_path}/two.db")) as two:
        add(one, [write(file, 1, 2, 3)])
        add(two, [write(file, 1)])
        merge(one, two)
        assert len(contents(one, "train")) == 3
        with pytest.raises(StoreError, match="other positions than its last import says"):
            add(one, [other], dataset="train", append=True)
        add(one, [write(file, 1, 2, 3)])
        add(one, [other], dataset="train", append=True)
        assert contents(one, "train") == [(0, "1"), (1, "2"), (2, "3"), (3, "9")]


# --- some datasets ------------------------------------------------------------------------------


def test_what_is_pending_in_some_datasets(store: Store) -> None:
    ids = filled(store)
    stats = tuple(Stat)

    def pending(*names: str) -> tuple[int, int]:
        want = stores.wanted(datasets=names)
        asked = sum(count for count, _ in count_questions(store, want).values())
        return asked, count_scores(store, want, [(stores.STUDENT, stats)], datasets=names)[0][0]

    assert (pending(), pending("a"), pending("c"), pending("a", "b")) == ((8, 4), (4, 2), (2, 1), (6, 3))
    question = stores.pending_questions(store, stores.wanted(datasets=("b",)), ids["b"][1:])[0]  # of sample 3
    stores.reply(store, question, "failed")
    assert [count_failed(store, stores.wanted(datasets=name)) for name in ((), ("a",), ("b",))] == [1, 0, 1]
    asked = stores.pending_questions(store, stores.wanted(), ids["c"])
    claim(store, stores.wanted(), start_worker(store), asked)
    under_way = [count_under_way(store, stores.wanted(datasets=name))[1] for name in ((), ("b",), ("a", "c"))]
    assert under_way == [2, 0, 2]


def test_a_derivation_counts_whichever_datasets_are_asked_for(sqlite: Store) -> None:
    """One of a sample of a and one of c: neither waits again because only the other's dataset is named."""
    ids = filled(sqlite)
    stores.answer_all(sqlite, stores.wanted(), ids["a"][:1])  # `derive` wants a reply
    with sqlite.write() as conn:
        stores.derive(sqlite, conn, [ids["a"][0], ids["c"][0]], "pairs")
    [augmentation] = sqlite.rows("SELECT augmentation_id FROM augmentation")[0]
    round = derivations.Round(augmentation, "pair", ("origin",), 0)
    for names, left in (((), 2), (("a",), 1), (("c",), 0), (("b", "c"), 2), (("a", "c"), 1)):
        waiting = derivations.waiting(sqlite, round, names)
        assert len(waiting) == left == derivations.count_waiting(sqlite, augmentation, ("origin",), 1, datasets=names)
    assert derivations.broken(sqlite, round) == set()


def test_a_wrong_file_is_not_paid_for(tmp_path: Path, cli: Cli) -> None:
    """A sample that is in two datasets counts if one of them is named."""
    student = save_student(tmp_path / "student", "llama")
    url = new(f"sqlite:///{tmp_path}/recycle.db")
    with TeacherServer() as server:
        config = {
            "teachers": {"t": {"model": "made-up", "base_url": server.base_url}},
            "students": {"s": {"model": str(student), "dtype": "float32", "device": "cpu"}},
            "sync": {"steps": ["reflect_response", "score"]},
        }
        with Store.open(url) as store:
            db = Workspace(store, parse(config, tmp_path / "recycledb.toml"))
            db.add(write(tmp_path / "right.json", 1, 2), write(tmp_path / "wrong.json", 2, 3, 4, 5))
            assert (db.plan().calls, db.plan(datasets=["right"]).calls) == (5, 2)
            assert db.plan(datasets=["right"]).scores[0].variants == 2
            with pytest.raises(StoreError, match="no dataset 'rihgt'; did you mean 'right'"):
                db.sync(datasets=["right", "rihgt"])
            outcome = db.sync(datasets=["right"])
            assert outcome.complete and len(server.log) == 2
            asked = {exchange.prompt for exchange in server.log}
            assert all("Explain 1." in prompt or "Explain 2." in prompt for prompt in asked)
            scored = store.rows("SELECT DISTINCT v.sample_id FROM loss l JOIN variant v ON v.variant_id = l.variant_id")
            assert len(scored) == 2
            status = db.status(["right"])
            assert [found["dataset"] for found in status["datasets"]] == ["right"] and status["samples"] == 2
            assert status["teachers"][0]["ok"] == 2 and status["missing"]["ready"] == 0
            others = db.status(["wrong"])  # sample 2 is in both
            assert others["samples"] == 4 and others["teachers"][0]["ok"] == 1 and others["missing"]["calls"] == 3
            assert others["students"][0]["statistics"] == status["students"][0]["statistics"] / 2
            db.remove_datasets("wrong")
            assert db.sync().complete and len(server.log) == 2
