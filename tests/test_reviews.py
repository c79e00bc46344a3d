"""Published logs of pairwise reviews become judgements; outputs for AlpacaEval and training files for a judge are written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from stores import add_samples, texts

from recycledb import config
from recycledb.errors import FormatError, SelectionError
from recycledb.methods.expected import EXPECTED
from recycledb.store import Store
from recycledb.workspace import Workspace

# What the judge said of (a first, b first) for each question: wins, a flip, a tie, losses, and what the published script cannot read.
SAID = [
    ("9 8\nMore detailed.", "7 8.5\nThe same."),
    ("9 8\nFirst is best.", "9 8\nFirst is best."),
    ("8 8\nEqual.", "8,8\nEqual."),
    ("6 9\nWorse.", "8 8\nEqual."),
    ("8/10 9/10\nWorse.", "9, 8 \nWorse."),
    ("7 8\nWorse.", "I cannot say which is better."),
]
IMPORT = {"judge": "gpt-4", "first": "cherry", "second": "alpaca"}


def scored(review: str) -> str:
    """Return the scores that the published script finds, as it writes them: -1 for what is not exactly `a b` or `a,b`."""
    words = review.split("\n", maxsplit=1)[0].replace(",", " ").split(" ")
    try:
        one, two = map(float, words)
    except ValueError:
        return "[-1, -1]"
    return f"[{one}, {two}]"


def log(said: Sequence[tuple[str | None, str | None]] = SAID, key: str = "text", **changed: Any) -> dict[str, Any]:
    """Return a log as the published script writes it."""
    rows = []
    for i, (review, reverse) in enumerate(said):
        row = {key: f"Question {i}?", "Answer1": f"cherry says {i}", "Answer2": f"alpaca says {i}"}
        row |= {"review": review, "scores": scored(review or "")} if review is not None else {}
        row |= {"review_reverse": reverse, "scores_reverse": scored(reverse or "")} if reverse is not None else {}
        rows.append(row)
    return {"Meta_Info": {"dataset_name": "vicuna", "average_scores": "[7.7, 7.6]"}, "data": rows, **changed}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, indent=4))
    return path


def counts(store: Store) -> dict[str, int]:
    tables = (
        "sample",
        "variant",
        "attempt",
        "reply",
        "extraction",
        "rating",
        "name",
        "worker",
        "dataset_import",
        "place",
    )
    return {table: store.rows(f"SELECT count(*) FROM {table}")[0][0] for table in tables}


@pytest.mark.long
def test_a_published_log_becomes_judgements(store: Store, tmp_path: Path) -> None:
    db = Workspace(store, config.Config())
    file = written(tmp_path / "vicuna_wrap_reviews_gpt4.json", log())
    found = db.import_reviews(file, **IMPORT)
    assert (found.judging, found.files[0].dataset, found.pairs, found.answers_new, found.reviews_new) == (
        "gpt-4", "vicuna", 6, 12, 12,
    )  # fmt: skip
    assert (found.without_review, found.unreadable, found.read_otherwise) == (0, 1, 3)
    report = db.judge_report("gpt-4")
    tally = report.all
    assert (report.first, report.teacher) == ("answer/cherry", "gpt-4")
    assert (tally.wins, tally.ties, tally.losses, tally.flipped, tally.undecided) == (1, 2, 2, 1, 1)
    assert tally.score == pytest.approx((1 - 2) / 5 + 1) and set(report.datasets) == {"vicuna"}
    rows = store.rows("""
        SELECT o.instruction, t.text, t.teacher, t.cost_usd FROM teacher_texts t
        JOIN variants v ON v.variant_id = t.variant_id JOIN samples o ON o.sample_id = v.sample_id
        WHERE t.step = 'compare' AND v.output = 'alpaca says 1'
    """)
    assert [tuple(row) for row in rows] == [("Question 1?", "9 8\nFirst is best.", "gpt-4", 0.0)]
    assert db.check().findings == []
    before = counts(store)
    again = db.import_reviews(file, **IMPORT)
    assert (again.answers_new, again.reviews_new, again.reviews_present) == (0, 0, 12) and counts(store) == before
    assert db.plan().calls == 0  # a sync without a configured judging asks nothing about them


@pytest.mark.parametrize("key", ["text", "prompt", "instruction", "Instruction", "conversations"])
def test_the_question_has_another_name_in_each_test_set(key: str, sqlite_url: str, tmp_path: Path) -> None:
    rows = log(SAID[:2], key)["data"]
    rows[1][key] = [rows[1][key], "a turn of the model"] if key == "conversations" else rows[1][key]
    with Store.open(sqlite_url) as store:
        db = Workspace(store, config.Config())
        # str.strip('.json'), with which the published script names its files, would make this set "koala".
        found = db.import_reviews(written(tmp_path / "json_koalas_reviews_gpt3.5.json", rows), **IMPORT)
        assert found.files[0].dataset == "json_koalas"
        assert [row[0] for row in store.rows("SELECT instruction FROM samples ORDER BY 1")] == [
            "Question 0?",
            "Question 1?",
        ]


@pytest.mark.long
def test_a_log_is_matched_with_the_dataset_that_is_there(sqlite_url: str, tmp_path: Path) -> None:
    file = written(tmp_path / "reviews.json", log([("9 8", "8 9"), ("9 8", None), ("", "8 9")]))
    with Store.open(sqlite_url) as store:
        add_samples(store, [texts(i)._replace(instruction=f"Question {i}?") for i in range(3)], "test")
        db = Workspace(store, config.Config())
        (tmp_path / "a.json").write_text(json.dumps([f"cherry says {i}" for i in range(3)]))
        db.add_answers(tmp_path / "a.json", author="cherry", dataset="test")
        found = db.import_reviews(file, dataset="test", name="duel", **IMPORT)
        assert (found.judging, found.answers_new, found.without_review, found.files[0].samples_new) == ("duel", 3, 2, 0)
        tally = db.judge_report("duel").all
        assert (tally.pairs, tally.wins, tally.undecided) == (1, 1, 2)  # one order alone decides nothing
        assert db.check().findings == []
        # The judging is another one with other models; a judge does not say two things of one pair.
        with pytest.raises(SelectionError, match=r"answer/cherry against answer/alpaca by gpt-4.*--name"):
            db.import_reviews(file, dataset="test", name="duel", **{**IMPORT, "second": "other"})
        other = written(tmp_path / "other.json", log([("8 9", "9 8"), ("9 8", None), ("", "8 9")]))
        with pytest.raises(SelectionError, match=r"other reviews of 2 of these ordered pairs.*--judge"):
            db.import_reviews(other, dataset="test", name="duel", **IMPORT)
        assert db.import_reviews(other, dataset="test", **{**IMPORT, "judge": "gpt-3.5"}).reviews_new == 4


@pytest.mark.long
def test_a_question_that_is_asked_twice_is_two_pairs(sqlite_url: str, tmp_path: Path) -> None:
    """As where a test set has hidden inputs: the same question with other answers."""
    content = log([("9 8", "8 9"), ("7 8", "9 7"), ("5 5", "5 5")])
    for row in content["data"]:
        row["text"] = "The same?"
    file = written(tmp_path / "x_reviews_gpt4.json", content)
    with Store.open(sqlite_url) as store:
        db = Workspace(store, config.Config())
        assert db.import_reviews(file, **IMPORT).answers_new == 6
        tally = db.judge_report("gpt-4").all
        assert (tally.wins, tally.ties, tally.losses) == (1, 1, 1) and db.check().findings == []
        assert db.import_reviews(file, **IMPORT).answers_new == 0


@pytest.mark.long
def test_rubbish_is_one_line_and_changes_nothing(sqlite_url: str, tmp_path: Path) -> None:
    good = written(tmp_path / "koala_reviews_gpt4.json", log())
    lacking, number, question = (log()["data"] for _ in range(3))
    del lacking[3]["Answer2"]
    number[1]["review"] = 9
    question[2]["text"] = ""
    bad = {
        "row 3 .* has no 'Answer2'": {"data": lacking},
        "row 1 .* has 9 in 'review', which is not a text": number,
        "row 2 .* no question": question,
        "row 0 .* has no 'Answer1'": [{"instruction": "i", "output": "o"}],
        "answers but no reviews": log([(None, None)] * 2),
        "row 0 .* is 3, not an object": [3],
        "has no reviews": [],
    }
    with Store.open(sqlite_url) as store:
        db = Workspace(store, config.Config())
        before = counts(store)
        for reason, content in bad.items():
            file = written(tmp_path / "vicuna_reviews_gpt4.json", content)
            with pytest.raises(FormatError, match=reason) as caught:
                db.import_reviews(good, file, **IMPORT)  # all files or none
            assert "\n" not in str(caught.value) and counts(store) == before
        evil = log(SAID[:1])
        evil["data"][0]["scores"] = "__import__('os').mkdir('evaluated')"  # the published script calls eval
        assert db.import_reviews(written(tmp_path / "e_reviews.json", evil), **IMPORT).read_otherwise == 0
        assert not Path("evaluated").exists() and not (tmp_path / "evaluated").exists()
        before = counts(store)
        with pytest.raises(SelectionError, match="are --first and --second in the file's order"):
            db.import_reviews(tmp_path / "e_reviews.json", judge="gpt-4", first="alpaca", second="cherry", name="other")
        swapped = {"judge": "other", "first": "cherry", "second": "cherry"}
        for said, match in ((swapped, "both cherry"), ({**IMPORT, "first": "a/b"}, "without a slash")):
            with pytest.raises(SelectionError, match=match):
                db.import_reviews(good, **said)
        with pytest.raises(SelectionError, match="2 files are of the dataset 'koala'"):
            db.import_reviews(good, good, **IMPORT)
        assert counts(store) == before


def test_a_teacher_that_is_asked_here_keeps_its_name(sqlite_url: str, tmp_path: Path) -> None:
    teachers = {
        "teachers": {"gpt-4": {"model": "gpt-4", "base_url": "http://127.0.0.1:9"}},
        "sync": {"steps": ["compress"]},
    }
    with Store.open(sqlite_url) as store:
        parsed = config.parse(teachers, tmp_path / "recycledb.toml")
        add_samples(store, [texts(0)])
        db = Workspace(store, parsed)
        db.sync(limit=0)
        assert store.find_name("teacher", "gpt-4") is not None
        with pytest.raises(SelectionError, match=r"gpt-4 is a teacher that is asked here.*--judge"):
            db.import_reviews(written(tmp_path / "v_reviews.json", log()), **IMPORT)


# -- AlpacaEval


def answered(store: Store, tmp_path: Path) -> Workspace:
    """Return a workspace with a test set of three questions, of which the last has an input, and the answers of two models."""
    rows: list[dict[str, Any]] = [{**texts(i, with_input=i == 2)._asdict(), "dataset": "koala"} for i in (2, 0, 1)]
    del rows[1]["dataset"]
    written(tmp_path / "test.json", rows)
    db = Workspace(store, config.Config())
    db.add(tmp_path / "test.json")
    for author in ("my-7b", "other"):
        written(tmp_path / f"{author}.json", [f"{author} — {i}" for i in (2, 0, 1)])
        db.add_answers(tmp_path / f"{author}.json", author=author, dataset="test")
    return db


def test_outputs_for_alpaca_eval_are_in_dataset_order(store: Store, tmp_path: Path) -> None:
    db = answered(store, tmp_path)
    done = db.export(tmp_path / "outputs.json", kind="answer/my-7b", format="alpaca_eval")
    assert json.loads((tmp_path / "outputs.json").read_text()) == [
        {"instruction": "Explain 2.\n\nAbout 2", "output": "my-7b — 2", "generator": "my-7b", "dataset": "koala"},
        {"instruction": "Explain 0.", "output": "my-7b — 0", "generator": "my-7b", "dataset": "test"},
        {"instruction": "Explain 1.", "output": "my-7b — 1", "generator": "my-7b", "dataset": "koala"},
    ]
    again = db.export(tmp_path / "again.json", kind="answer/my-7b", format="alpaca_eval", dataset="test")
    assert (done.rows, done.kind, again.sha256) == (3, "answer/my-7b", done.sha256)
    other = db.export(tmp_path / "other.jsonl", kind="answer/other", format="jsonl")
    rows = [json.loads(line) for line in (tmp_path / "other.jsonl").read_text().splitlines()]
    assert other.rows == 3 and [row["output"] for row in rows] == ["other — 2", "other — 0", "other — 1"]
    assert set(rows[0]) == {"instruction", "input", "output", "sample_id", "variant_id", "kind", "teacher"}
    # Other kinds have outputs too: the dataset's own, as the baseline to compare with.
    db.export(tmp_path / "origin.json", format="alpaca_eval")
    assert {row["generator"] for row in json.loads((tmp_path / "origin.json").read_text())} == {"origin"}


def test_missing_answers_are_an_error_and_leave_the_file(sqlite_url: str, tmp_path: Path) -> None:
    """AlpacaEval drops what has no partner, so a win rate over a part would look like one over all."""
    with Store.open(sqlite_url) as store:
        db = answered(store, tmp_path)
        out = written(tmp_path / "outputs.json", "as before")
        with pytest.raises(SelectionError, match="one of answer/my-7b, answer/other"):
            db.export(out, kind="answer", format="alpaca_eval")
        with pytest.raises(SelectionError, match="did you mean 'answer/my-7b'"):
            db.export(out, kind="answer/my-7", format="alpaca_eval")
        rows = json.loads((tmp_path / "test.json").read_text())
        rows.insert(1, texts(7)._asdict())
        written(tmp_path / "test.json", rows)
        db.add(tmp_path / "test.json")
        add_samples(store, [texts(8)], "training")
        for dataset in (None, "test"):
            with pytest.raises(
                SelectionError, match=r"my-7b has no answer to 1 of the 4 questions of test, the first at position 1"
            ):
                db.export(out, kind="answer/my-7b", format="alpaca_eval", dataset=dataset)
        with pytest.raises(SelectionError, match="no current answer/my-7b in dataset training"):
            db.export(out, kind="answer/my-7b", format="alpaca_eval", dataset="training")
        assert out.read_text() == '"as before"'
        assert db.export(out, kind="answer/my-7b").rows == 3  # what there is, in any other format


# -- judges of one's own

RATED = {"my-7b": (0, 2.5, 5), "other": (4.9, None, 3)}  # out of 5, of the questions 2, 0 and 1


def rated(store: Store, folder: Path, **tables: Any) -> Workspace:
    """Return a workspace whose answers have ratings by a recorded teacher, with a gold answer for all but the second question."""
    answered(store, folder)
    lines = []
    for author, ratings in RATED.items():
        for i, rating in zip((2, 0, 1), ratings, strict=True):
            reads = texts(i, with_input=i == 2)._replace(output=f"{author} — {i}")._asdict()
            lines.append({"step": "rate", "reads": reads, "text": "unsure" if rating is None else f"{rating}/5"})
    (folder / "replies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {
        "teachers": {"gpt": {"provider": "recorded", "file": "replies.jsonl"}},
        "sync": {"steps": ["score"]},
        "measures": {"quality": {"method": "rating", "teacher": "gpt", "kinds": ["answer"]}},
        **tables,
    }
    return Workspace(store, config.parse(given, folder / "recycledb.toml"))


@pytest.mark.long
def test_training_files_of_a_judge_have_equal_ids(store: Store, tmp_path: Path) -> None:
    db = rated(store, tmp_path)
    db.sync()
    done = db.write_judge_data(tmp_path / "judge", rating="quality/gpt")
    files = [
        json.loads((tmp_path / "judge" / f"{name}.json").read_text())
        for name in ("with_reference", "without_reference")
    ]
    shown, alone = files
    # The published trainer shuffles the two files apart; here each row has its partner at its own place.
    assert [row["id"] for row in shown] == [row["id"] for row in alone] and len(
        {row["id"] for row in shown}
    ) == done.items == 5
    assert [row["output"] for row in shown] == [row["output"] for row in alone]
    digit = {row["instruction"].rpartition("[Answer]\n")[2]: row["output"] for row in alone}
    assert digit == {"my-7b — 2": "0", "my-7b — 0": "5", "my-7b — 1": "9", "other — 2": "9", "other — 1": "5"}
    reference = next(row["instruction"] for row in shown if row["instruction"].endswith("my-7b — 2"))
    assert reference.startswith("Please act as a precise judge") and "### Response" not in reference
    assert "[Question]\nExplain 2.\nAbout 2\n\n[Reference]\n2 is explained.\n\n[Answer]\nmy-7b — 2" in reference
    assert all(set(row) == {"instruction", "input", "output", "id"} and row["input"] == "" for row in shown + alone)
    training = json.loads((tmp_path / "judge" / "training.json").read_text())
    assert training["template"] == "{instruction}\n\n### Response:" and training["digits"] == {"0": 1, "5": 2, "9": 2}
    assert training["data"] == done.files and done.files["with_reference"]["rows"] == 5
    assert training["lora"]["r"] == 16 and training["loss"]["kl_with_to_without"] == 2.0
    # The trainer's template makes of an instruction the prompt that the measure asks later; Self-J's own judge.py leaves the suffix out.
    options = {"prompts": "", "suffix": "", "scale": [0, 9], "reference": "none"}
    [asked] = EXPECTED.measures[0].readouts(options)
    prompt = asked.prompt(texts(2, with_input=True)._replace(output="my-7b — 2"))
    assert prompt in [training["template"].replace("{instruction}", row["instruction"]) for row in alone]
    again = db.write_judge_data(tmp_path / "again", rating="quality/gpt", kind="answer", dataset="test")
    assert again.files == done.files  # the same rows, the same bytes
    one = db.write_judge_data(tmp_path / "one", rating="quality/gpt", kind="answer/other", reference="answer/my-7b")
    assert (one.items, one.without_reference) == (2, 0)
    own = db.write_judge_data(tmp_path / "own", rating="quality/gpt", reference="answer/other", scale=(0, 10))
    assert (own.items, own.without_reference, own.digits) == (3, 2, {"0": 1, "2": 1, "5": 1})


@pytest.mark.long
def test_what_cannot_be_trained_on_is_one_line(sqlite_url: str, tmp_path: Path) -> None:
    with Store.open(sqlite_url) as store:
        db = rated(store, tmp_path)
        db.sync()
        written(tmp_path / "numbers.json", [1, 7, 3])
        db.import_values(tmp_path / "numbers.json", measure="published", model="paper", dataset="test")
        for options, says in (
            ({"rating": "qualty/gpt"}, r"no numbers of a measure 'qualty/gpt'.*did you mean quality/gpt"),
            ({"rating": "published/paper"}, r"scale of published/paper is not known.*--scale"),
            (
                {"rating": "published/paper", "scale": (0, 5), "reference": "answer"},
                r"number 7.*not on the scale 0 to 5",
            ),
            ({"rating": "published/paper", "scale": (5, 0)}, r"--scale 5 0: give the lowest"),
            (
                {"rating": "published/paper", "scale": (0, 9)},
                r"nothing to train on: of 3 variants.* 3 have no origin beside",
            ),
            ({"rating": "quality/gpt", "kind": "mosaic"}, r"nothing to train on: of 0 variants.*--kind mosaic"),
            ({"rating": "quality/gpt", "cosine": "quality/gpt"}, r"method = \"embedding\""),
        ):
            with pytest.raises(SelectionError, match=says):
                db.write_judge_data(tmp_path / "judge", **options)
        db.import_reviews(written(tmp_path / "v_reviews.json", log()), **IMPORT)
        with pytest.raises(
            SelectionError, match="5 have no origin beside them"
        ):  # a test set without answers of its own
            db.write_judge_data(tmp_path / "judge", rating="wins/gpt-4/gpt-4")
        assert not (tmp_path / "judge").exists()
