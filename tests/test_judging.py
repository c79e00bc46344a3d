"""Ratings and judgements by teachers: asked once over HTTP, read as the papers' scripts do not, reported; answers and published numbers."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import forks
import pytest
from batch_server import BatchServer, Line, Lines, answered
from conftest import RUN_COMMAND, Cli
from stores import add_samples, texts
from teacher_server import Exchange, Fault, TeacherServer, marked_answer
from templates import new

from recycledb import config, methods
from recycledb.errors import ConfigError, FormatError, SelectionError
from recycledb.reflection.prompts import prompt_id_of
from recycledb.schema import Texts
from recycledb.store import Store
from recycledb.workspace import Workspace

RATE, COMPARE = methods.steps()["rate"], methods.steps()["compare"]
RATING = methods.teacher_measures()["rating"]
MEASURE_OPTIONS = {"prompts": "", "criterion": "", "scale": [0, 5], "reference": "none"}
SHOWN = (Texts("i", "", "a"), Texts("i", "", "b"))
QUALITY = {"method": "rating", "teacher": "judge", "kinds": ["origin", "reflect_response"]}
DUEL = {"teacher": "judge", "between": ["origin", "reflect_response"]}


# -- reading


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("4", [4.0]),
        ("\n\n  4.5 \nbecause 3 of 4 hold", [4.5]),
        ("Score: 10", [10.0]),  # AlpaGasus' script reads one character
        ("4.5/5", [4.5, 5.0]),
        ("**3 / 5**", [3.0, 5.0]),
        ("4.", [4.0]),
        ("-1", [-1.0]),  # a number, but on no scale
        ("4 out of 5", None),
        ("3-4", None),
        ("4,5", None),
        ("4½", None),
        ("four", None),
        ("", None),
    ],
)
def test_a_rating_is_the_only_number_of_the_first_line(reply: str, found: list[float] | None) -> None:
    extracted = RATE.read(reply, SHOWN[:1])
    assert [each.value for each in extracted.ratings] == (found or [])
    assert (extracted.reason is None) == (found is not None)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("8 9", (8, 9)),
        ("8,9", (8, 9)),
        ("8, 9", (8, 9)),  # the reference takes this, the next two and a blank at the end for a tie of -1 and -1
        ("8/10 9/10", (8, 9)),
        ("8.5 / 10, 9 / 10", (8.5, 9)),
        ("\n8 9 \nAnswer 1 has 3 faults.", (8, 9)),
        ("**7** **7**", (7, 7)),
        ("8/9", None),
        ("8/10 9/5", None),
        ("11/10 9/10", None),
        ("8 9 7", None),
        ("8", None),
        ("Answer 1: 8, Answer 2: 9", None),
    ],
)
def test_two_scores_are_the_whole_first_line(reply: str, found: tuple[float, float] | None) -> None:
    extracted = COMPARE.read(reply, SHOWN)
    assert tuple(each.value for each in extracted.ratings) == (found or ())
    assert [each.about for each in extracted.ratings] == ([0, 1] if found else [])
    assert (extracted.reason is None) == (found is not None)


# -- asking


def answer(exchange: Exchange) -> str:
    """Return what the teacher replies: it rewrites, rates "thing 3 …" unreadably, and judges by what the second answer is."""
    if "[The Start of Answer 2]" in exchange.prompt:
        return judged(exchange.prompt)
    if "Rate the response" in exchange.prompt:
        return "no number" if "Explain 3." in exchange.prompt else "7" if "Explain 2." in exchange.prompt else "4.5/5"
    return marked_answer(exchange)


def judged(prompt: str) -> str:
    """Judge pair 0 for the reflected answer, 1 for the original, 2 for what stands first, 3 as equal, 4 unreadably in one order."""
    first = prompt.split("[The Start of Answer 1]")[1].partition("[The Start of Answer 2]")[0]
    number = int(first.split("Explain ")[1][0]) if "Explain " in first else int(prompt.split("Explain ")[1][0])
    reflected_first = "A better answer" in first
    better = "9, 8 " if reflected_first else "8/10 9/10"
    worse = "8 9" if reflected_first else "9 8"
    return [better, worse, "9 8", "7 7", "?" if reflected_first else "8 9"][number]


def workspace(
    store: Store,
    folder: Path,
    base_url: str,
    *,
    steps: list[str] | None = None,
    teacher: Mapping[str, Any] = {},
    **tables: Any,
) -> Workspace:
    """Return a workspace with the teachers `gpt`, who rewrites, and `judge`; `tables` replace the measures and judgings."""
    one = {"base_url": base_url, "price_in": 1.0, "price_out": 2.0, **teacher}
    given = {
        "teachers": {"gpt": {"model": "gpt", **one}, "judge": {"model": "judge", **one}},
        "sync": {"teacher": "gpt", "steps": steps if steps is not None else ["reflect_response"]},
        "measures": {"quality": QUALITY},
        "judgings": {"duel": DUEL},
        **tables,
    }
    return Workspace(store, config.parse(given, folder / "recycledb.toml"))


def measured(store: Store, measure: str) -> dict[tuple[str, str], tuple[float | None, str]]:
    """Return the current numbers of a measure, by instruction and kind, with their status."""
    rows = store.rows(
        """
        SELECT v.instruction, m.kind, m.value, m.status FROM measures m JOIN variants v ON v.variant_id = m.variant_id
        WHERE m.measure = :measure AND m.model = 'judge' AND m.is_current = 1
        """,
        measure=measure,
    )
    assert len(rows) == len({(row[0], row[1]) for row in rows})
    return {(row[0], row[1]): (row[2], row[3]) for row in rows}


@pytest.mark.long
def test_ratings_and_judgements_are_asked_once_and_have_their_numbers(store: Store, tmp_path: Path) -> None:
    samples = [texts(i) for i in range(5)]
    with TeacherServer(answer=answer) as server:
        add_samples(store, samples)
        db = workspace(store, tmp_path, server.base_url)
        plan = {ask.name or ask.step: (ask.ready, ask.follow) for ask in db.plan().asks}
        assert plan == {"reflect_response": (5, 0), "quality": (5, 5), "duel": (0, 10)}
        assert db.sync().complete
        assert len(server.log) == 5 + 10 + 10 and max(server.questions.values()) == 1
        rated = measured(store, "quality")
        assert rated["Explain 0.", "origin"] == (4.5, "ok") == rated["Explain 0.", "reflect_response"]
        assert rated["Explain 2.", "origin"] == (None, "unusable")  # 7 on a scale to 5
        assert rated["Explain 3.", "origin"] == (None, "unusable") and len(rated) == 10
        found = store.rows("""
            SELECT v.instruction, j.d1, j.d2, j.outcome, j.flipped, v.kind FROM judgements j
            JOIN variants v ON v.variant_id = j.variant_id WHERE j.judging = 'duel' AND j.is_current = 1
        """)
        assert {row[0][8]: tuple(row[1:]) for row in found} == {
            "0": (-1, -1, "lose", 0, "origin"),
            "1": (1, 1, "win", 0, "origin"),
            "2": (1, -1, "tie", 1, "origin"),
            "3": (0, 0, "tie", 0, "origin"),
            "4": (-1, None, None, None, "origin"),
        }
        wins = measured(store, "wins/duel")
        assert {key[0][8]: value for key, value in wins.items()} == {
            "0": (1.0, "ok"), "1": (0.0, "ok"), "2": (0.5, "ok"), "3": (0.5, "ok"), "4": (None, "undecided"),
        }  # fmt: skip
        assert {key[1] for key in wins} == {"reflect_response"}
        report = db.judge_report("duel").as_dict()
        counts = ("pairs", "wins", "ties", "losses", "flipped", "undecided", "first_net", "readings", "score")
        assert [report[name] for name in counts] == [4, 1, 2, 1, 1, 1, 1, 9, 1.0]
        assert db.sync().idle and len(server.log) == 25 and db.check().findings == []
        shown = {row["measure"]: (row["numbers"], row["without_number"]) for row in db.measures()}
        assert shown == {"quality": (6, {"unusable": 4}), "wins/duel": (4, {"undecided": 1})}
        status = {row["measure"]: (row["variants"], row["numbers"]) for row in db.status()["measures"]}
        assert status == {"quality": (8, 6), "wins/duel": (5, 4)}


@pytest.mark.long
def test_another_scale_asks_nothing_and_another_prompt_asks_its_own(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Rate the response to {question}: {answer}\nA number from 0 to 10.")
    with TeacherServer(answer=answer) as server, Store.open(sqlite_url) as store:
        ids = add_samples(store, [texts(i) for i in range(3)])
        own = {"method": "rating", "teacher": "judge", "kinds": ["origin"], "prompts": "mine.txt"}

        def sync(**measures: Any) -> int:
            db = workspace(store, tmp_path, server.base_url, steps=["score"], measures=measures, judgings={})
            before, ready = len(server.log), sum(ask.calls for ask in db.plan().asks)
            assert db.sync(only="measure").complete and len(server.log) - before == ready
            return ready

        assert sync(quality={**own, "scale": [0, 10]}) == 3
        assert measured(store, "quality")["Explain 2.", "origin"] == (7.0, "ok")
        assert measured(store, "quality")["Explain 0.", "origin"] == (None, "unusable")  # 4.5/5 is not on a scale to 10
        assert sync(quality={**own, "scale": [0, 5]}) == 0
        assert measured(store, "quality")["Explain 0.", "origin"] == (4.5, "ok")
        assert measured(store, "quality")["Explain 2.", "origin"] == (None, "unusable")
        assert sync(quality={**own, "scale": [0, 5]}, again={**own, "scale": [0, 10]}) == 0  # the same questions
        add_samples(store, [texts(i) for i in range(4)])
        assert sync(quality={**own, "scale": [0, 5]}) == 1
        (tmp_path / "mine.txt").write_text("Rate the response to {question}: {answer}\nOnly a number from 0 to 10.")
        assert sync(quality={**own, "scale": [0, 5]}) == 4
        assert store.rows("SELECT count(*) FROM measures WHERE measure = 'quality' AND is_current = 1")[0][0] == 4
        assert ids and store.rows("SELECT count(*) FROM reply")[0][0] == 8


@pytest.mark.long
def test_the_question_shows_the_input_and_the_reference(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "ref.txt").write_text(
        "<<system>>\nRate.\n<<user>>\n{question}\nAnswer: {answer}\nReference: {reference}"
    )
    given = {**QUALITY, "prompts": "ref.txt", "reference": "origin"}
    with TeacherServer(answer=answer) as server, Store.open(sqlite_url) as store:
        add_samples(store, [texts(0, with_input=True)])
        db = workspace(store, tmp_path, server.base_url, measures={"quality": given})
        db.sync()
        rated = [each for each in server.log if each.body["messages"][0]["content"] == "Rate."]
        assert len(rated) == 1  # the origin is the reference itself
        shown = rated[0].body["messages"][1]["content"]
        assert shown.startswith("Explain 0.\nAbout 0\nAnswer: A better answer") and shown.endswith(
            "Reference: 0 is explained."
        )
        compared = [each.prompt for each in server.log if "[The Start of Answer 1]" in each.prompt]
        assert len(compared) == 2 and all("Explain 0.\nAbout 0\n" in prompt for prompt in compared)


def test_requests_stop_at_the_line_break_unless_the_server_refuses_it(sqlite_url: str, tmp_path: Path) -> None:
    def refuses(exchange: Exchange) -> Fault | None:
        return Fault.NO_STOP if "stop" in exchange.body else None

    with TeacherServer(answer=answer, decide=refuses) as server, Store.open(sqlite_url) as store:
        add_samples(store, [texts(i) for i in (0, 1)])
        db = workspace(
            store,
            tmp_path,
            server.base_url,
            steps=["score"],
            teacher={"concurrency": 1},
            measures={"quality": {**QUALITY, "kinds": ["origin"]}},
            judgings={},
        )
        assert db.sync().complete
        assert [each.body.get("stop") for each in server.log] == [["\n"], None, None]
    assert json.loads(store_parameters(sqlite_url))["params"].get("stop") is None  # no part of the teacher's identity


def store_parameters(url: str) -> str:
    with Store.open(url) as store:
        return str(store.rows("SELECT parameters FROM teacher WHERE name = 'judge'")[0][0])


def test_a_reply_that_begins_with_a_line_break_is_asked_for_whole(sqlite_url: str, tmp_path: Path) -> None:
    """With `stop`, such a reply is empty: the first line with text must be read all the same."""

    def speak(exchange: Exchange) -> str:
        return "" if "stop" in exchange.body else "\n4"

    with TeacherServer(answer=speak) as server, Store.open(sqlite_url) as store:
        add_samples(store, [texts(0)])
        db = workspace(
            store,
            tmp_path,
            server.base_url,
            steps=["score"],
            measures={"quality": {**QUALITY, "kinds": ["origin"]}},
            judgings={},
        )
        assert db.sync().complete and len(server.log) == 2
        assert measured(store, "quality") == {("Explain 0.", "origin"): (4.0, "ok")}


@pytest.mark.long
def test_a_failed_question_has_its_status_and_is_asked_again_on_request(sqlite_url: str, tmp_path: Path) -> None:
    faults = [Fault.REFUSAL]

    def refuses(exchange: Exchange) -> Fault | None:
        return faults.pop() if faults and "Explain 1." in exchange.prompt else None

    with TeacherServer(answer=answer, decide=refuses) as server, Store.open(sqlite_url) as store:
        add_samples(store, [texts(i) for i in (0, 1)])
        db = workspace(
            store,
            tmp_path,
            server.base_url,
            steps=["score"],
            measures={"quality": {**QUALITY, "kinds": ["origin"]}},
            judgings={},
        )
        assert db.sync().left.failed == 1
        assert measured(store, "quality")["Explain 1.", "origin"] == (None, "failed")
        assert db.sync().idle
        assert db.sync(retry_failed=True).complete and len(server.log) == 3
        assert measured(store, "quality")["Explain 1.", "origin"] == (4.5, "ok")


@pytest.mark.long
def test_one_budget_covers_all_teachers(sqlite_url: str, tmp_path: Path) -> None:
    with TeacherServer(answer=answer) as server, Store.open(sqlite_url) as store:
        add_samples(store, [texts(i) for i in range(4)])
        small = {"params": {"max_tokens": 100}}
        db = workspace(store, tmp_path, server.base_url, teacher=small)
        plan = db.plan().as_dict()
        assert plan["cost_most_usd"] > 0.006
        outcome = db.sync(max_cost=0.004)
        assert outcome.stopped is not None and "--max-cost" in outcome.stopped
        assert 4 < len(server.log) < 20  # the rewriting fits; of the ratings and judgements not all do
        billed = sum(each.bill(1.0, 2.0) for each in server.log)
        assert billed == pytest.approx(outcome.spent_usd) and billed <= 0.004
        stopped = db.sync(limit=1)
        assert stopped.as_dict()["calls"] == 1 and not stopped.complete
        assert db.sync().complete and len(server.log) == 20 and max(server.questions.values()) == 1


@pytest.mark.long
@pytest.mark.parametrize("there", ["sqlite", "duckdb"])
def test_after_a_merge_nothing_is_asked_again(there: str, sqlite_url: str, tmp_path: Path) -> None:
    with TeacherServer(answer=answer) as server:
        with Store.open(sqlite_url) as store:
            add_samples(store, [texts(i) for i in range(3)])
            assert workspace(store, tmp_path, server.base_url).sync().complete
            seen = [tuple(row) for row in store.rows(f"SELECT {_JUDGED} FROM judgements ORDER BY variant_id")]
        asked = len(server.log)
        with Store.open(new(f"{there}:///{tmp_path}/other.{there}")) as other:
            db = workspace(other, tmp_path, server.base_url)
            db.merge(sqlite_url)
            assert db.sync().idle and len(server.log) == asked
            assert [tuple(row) for row in other.rows(f"SELECT {_JUDGED} FROM judgements ORDER BY variant_id")] == seen
            assert db.check().findings == [] and not any(db.merge(sqlite_url).rows.values())


_JUDGED = "judging, variant_id, other_id, d1, d2, outcome, flipped, is_current"


def test_batches_carry_judgements(sqlite_url: str, tmp_path: Path) -> None:
    def write(requests: list[Line]) -> Lines:
        lines = [answered(request) for request in requests]
        for line in lines:
            line["response"]["body"]["choices"][0]["message"]["content"] = "9 8"
        return lines, []

    answers = {"duel": {"teacher": "judge", "between": ["answer/a", "answer/b"]}}
    with BatchServer() as server, Store.open(sqlite_url) as store:
        add_samples(store, [texts(i) for i in range(2)])
        db = workspace(
            store, tmp_path, server.base_url, steps=["score"], teacher={"mode": "batch"}, measures={}, judgings=answers
        )
        for author in "ab":
            file = tmp_path / f"{author}.json"
            file.write_text(json.dumps([f"{author} says {i}" for i in range(2)]))
            db.add_answers(file, author=author, dataset="d")
        outcome = db.sync()
        assert outcome.batches is not None and outcome.batches.requests == 4 and not outcome.complete
        assert all(request["body"]["stop"] == ["\n"] for request in server.requests("batch_1"))
        server.end("batch_1", "completed", write)
        assert db.sync().complete
        report = db.judge_report("duel")
        assert (report.all.ties, report.all.flipped, report.all.first_net, report.all.readings) == (2, 2, 4, 4)


@pytest.mark.long
def test_a_killed_sync_is_continued_without_asking_what_was_answered(tmp_path: Path) -> None:
    with TeacherServer(answer=answer, delay_s=0.05) as server:
        url = new(f"sqlite:///{tmp_path}/recycle.db")
        with Store.open(url) as store:
            add_samples(store, [texts(i) for i in range(5)])
        toml = f"""
            [teachers.judge]
            model = "judge"
            base_url = "{server.base_url}"
            concurrency = 2
            [sync]
            steps = ["reflect_response"]
            [measures.quality]
            method = "rating"
            [judgings.duel]
            between = ["origin", "reflect_response"]
        """
        (tmp_path / "recycledb.toml").write_text(toml)
        environment = forks.clean_environment(OPENAI_API_KEY="none")
        with forks.start(
            [*RUN_COMMAND, "sync"], cwd=tmp_path, env=environment, stdout=forks.DEVNULL, stderr=forks.DEVNULL
        ) as process:
            deadline = time.monotonic() + 60
            while len(server.log) < 18:  # the rewriting and the ratings are done: it compares
                assert time.monotonic() < deadline, f"it asked {len(server.log)} questions"
                time.sleep(0.01)
            process.kill()
            process.wait()
        with Store.open(url) as store:
            kept = {row[0] for row in store.rows("SELECT attempt_id FROM reply")}
            db = Workspace(store, config.load(tmp_path / "recycledb.toml"))
            assert 10 < len(kept) < 25 and db.sync().complete
            assert kept <= {row[0] for row in store.rows("SELECT attempt_id FROM reply")}
            assert len(server.log) <= 25 + 2  # what was on the wire at the kill may be asked again
            assert store.rows("SELECT count(*), count(outcome) FROM judgements")[0] == (5, 4)


@pytest.mark.long
def test_a_recording_has_a_rating_of_the_same_texts_for_each_prompt(sqlite_url: str, tmp_path: Path) -> None:
    reads = texts(0)
    kept = {"step": "rate", "reads": reads._asdict(), "text": "3/5"}
    other = RATING.template({**MEASURE_OPTIONS, "criterion": "accuracy"})
    own = {**kept, "text": "4.5/5", "prompt": prompt_id_of("rate", other)[:12]}
    (tmp_path / "replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (kept, own)))
    judge = {"provider": "recorded", "file": "replies.jsonl"}
    measure = {"method": "rating", "teacher": "judge", "kinds": ["origin"]}
    given = {
        "teachers": {"judge": judge},
        "sync": {"steps": ["score"]},
        "measures": {"help": measure, "accuracy": {**measure, "criterion": "accuracy"}},
    }
    with Store.open(sqlite_url) as store:
        add_samples(store, [reads])
        db = Workspace(store, config.parse(given, tmp_path / "recycledb.toml"))
        outcome = db.sync()
        assert measured(store, "help") == {("Explain 0.", "origin"): (3.0, "ok")}
        assert measured(store, "accuracy") == {("Explain 0.", "origin"): (4.5, "ok")}
        # The scale behind the slash is no rating of its own in the summary.
        assert (outcome.complete, outcome.as_dict()["ratings"]) == (True, 2)


# -- the configuration


def test_the_configuration_is_checked_where_it_is_read(tmp_path: Path) -> None:
    def parsed(**tables: Any) -> config.Config:
        teachers = {"judge": {"model": "m"}}
        return config.parse({"teachers": teachers, **tables}, tmp_path / "recycledb.toml")

    with pytest.raises(ConfigError, match="between"):
        parsed(judgings={"j": {"between": ["origin"]}})
    with pytest.raises(ConfigError, match="two different kinds"):
        parsed(judgings={"j": {"between": ["answer", "answer/a"]}})
    with pytest.raises(ConfigError, match="unknown kind 'reflected'"):
        parsed(judgings={"j": {"between": ["origin", "reflected"]}})
    with pytest.raises(ConfigError, match=r"judgings.j.teacher.*'gpt'"):
        parsed(judgings={"j": {"between": ["origin", "reflect_both"], "teacher": "gpt"}})
    with pytest.raises(ConfigError, match=r"scale = \[5, 0\]"):
        parsed(measures={"m": {"method": "rating", "scale": [5, 0]}})
    with pytest.raises(ConfigError, match="set teacher, not students"):
        parsed(measures={"m": {"method": "rating", "students": ["s"]}}, students={"s": {"model": "m"}})
    with pytest.raises(ConfigError, match=r"unknown step 'rate'"):
        parsed(sync={"steps": ["rate"]})
    (tmp_path / "judge.txt").write_text("Which is better? {question} {answer_1}")
    with Store.open(new(f"sqlite:///{tmp_path}/s.db")) as store, pytest.raises(ConfigError, match=r"no \{answer_2\}"):
        Workspace(store, parsed(judgings={"j": {"between": ["origin", "reflect_both"], "prompts": "judge.txt"}})).plan()


def test_a_prompt_that_cannot_be_used_hides_nothing_else_in_status(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "judge.txt").write_text("Which is better? {question} {answer_1}")
    (tmp_path / "rate.txt").write_text("Rate {answer} by {criteria}.")
    tables: dict[str, Any] = {
        "measures": {"quality": QUALITY, "odd": {**QUALITY, "prompts": "rate.txt"}},
        "judgings": {"duel": DUEL, "half": {**DUEL, "prompts": "judge.txt"}},
    }
    with Store.open(sqlite_url) as store:
        add_samples(store, [texts(0)])
        db = workspace(store, tmp_path, "http://127.0.0.1:9", **tables)
        status = db.look()
        named = [{key: each[key] for key in each if key != "reason"} for each in status.facts["problems"]]
        assert named == [{"measure": "odd"}, {"judging": "half"}]
        assert "{criteria}" in status.facts["missing_unknown"] and "{answer_2}" in status.facts["missing_unknown"]
        assert status.plan is not None and {ask.name or ask.step for ask in status.plan.asks} == {
            "reflect_response", "quality", "duel",
        }  # fmt: skip


# -- answers and published numbers


@pytest.mark.long
def test_two_models_are_compared_by_their_answers(store: Store, tmp_path: Path) -> None:
    def judge(exchange: Exchange) -> str:
        first, second = exchange.prompt.split("[The Start of Answer 2]")
        return "9 2" if "from a" in first.split("[The Start of Answer 1]")[1] else "2 9" if "from a" in second else "?"

    duel = {"duel": {"teacher": "judge", "between": ["answer/a", "answer/b"]}}
    with TeacherServer(answer=judge) as server:
        add_samples(store, [texts(i) for i in range(3)], "test")
        db = workspace(store, tmp_path, server.base_url, steps=["score"], measures={}, judgings=duel)
        rows = [{"instruction": f"Explain {i}.", "output": f"{i} from a", "generator": "a"} for i in range(3)]
        (tmp_path / "a.json").write_text(json.dumps(rows))
        (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"{i} from b"}) + "\n" for i in range(3)))
        assert db.add_answers(tmp_path / "a.json", author="a", dataset="test").answers_new == 3
        assert db.add_answers(tmp_path / "b.jsonl", author="b", dataset="test").answers_new == 3
        again = db.add_answers(tmp_path / "b.jsonl", author="b", dataset="test")
        assert (again.answers_new, again.answers_present) == (0, 3)
        assert db.sync(only="judge").complete and len(server.log) == 6
        report = db.judge_report("duel")
        assert (report.first, report.all.wins, report.all.score, report.all.first_net) == ("answer/a", 3, 2.0, 0)
        assert set(report.datasets) == {"test"} and db.check().findings == []
        assert set(measured(store, "wins/duel").values()) == {(1.0, "ok")}
        rows[1]["output"] = "another"
        (tmp_path / "a.json").write_text(json.dumps(rows))
        with pytest.raises(SelectionError, match="another --author"):
            db.add_answers(tmp_path / "a.json", author="a", dataset="test")
        rows[1]["instruction"] = "Explain 7."
        (tmp_path / "a.json").write_text(json.dumps(rows))
        with pytest.raises(SelectionError, match=r"row 1 .* another instruction"):
            db.add_answers(tmp_path / "a.json", author="c", dataset="test")


@pytest.mark.long
def test_published_numbers_become_values(store: Store, tmp_path: Path) -> None:
    add_samples(store, [texts(i) for i in range(3)])
    db = Workspace(store, config.Config())
    (tmp_path / "list.json").write_text("[1.5, null, 3]")
    (tmp_path / "rows.csv").write_text("instruction,deita\nExplain 0.,1.5\nExplain 1.,nan\nExplain 2.,3\n")
    (tmp_path / "rows.jsonl").write_text('{"score": 1.5}\n{"score": null}\n{"score": 4}\n')
    of = {"measure": "quality", "dataset": "d", "kind": "origin"}
    found = db.import_values(tmp_path / "list.json", model="paper", **of)
    assert (found.values_new, found.without_number) == (3, 1)
    assert db.import_values(tmp_path / "rows.csv", model="paper", field="deita", **of).values_new == 0
    with pytest.raises(SelectionError, match="different numbers for 1"):
        db.import_values(tmp_path / "rows.jsonl", model="paper", **of)
    assert db.import_values(tmp_path / "rows.jsonl", model="other", **of).values_new == 3
    rows = store.rows("""
        SELECT v.instruction, m.value, m.status, m.is_current FROM measures m JOIN variants v ON v.variant_id = m.variant_id
        WHERE m.measure = 'quality' AND m.model = 'paper' ORDER BY v.instruction
    """)
    assert [tuple(row) for row in rows] == [
        ("Explain 0.", 1.5, "ok", 1), ("Explain 1.", None, "missing", 1), ("Explain 2.", 3.0, "ok", 1),
    ]  # fmt: skip
    assert db.check().findings == [] and {row["model"] for row in db.status()["measures"]} == {"paper", "other"}
    (tmp_path / "short.json").write_text("[1]")
    with pytest.raises(SelectionError, match="has 1 rows, but dataset d has 3"):
        db.import_values(tmp_path / "short.json", model="paper", **of)
    (tmp_path / "odd.json").write_text('[1, "x", 2]')
    with pytest.raises(FormatError, match=r"row 1 .*'x' is not a number"):
        db.import_values(tmp_path / "odd.json", model="paper", **of)
    (tmp_path / "texts.json").write_text(json.dumps([{"instruction": f"Explain {i}.", "value": i} for i in (0, 2, 1)]))
    with pytest.raises(SelectionError, match=r"row 1 .* another instruction"):
        db.import_values(tmp_path / "texts.json", model="paper", **of)


@pytest.mark.long
def test_the_commands(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps([texts(i)._asdict() for i in range(2)]))
    (tmp_path / "a.json").write_text('["one", "two"]')
    (tmp_path / "b.json").write_text('["uno", "due"]')
    (tmp_path / "numbers.json").write_text("[1, 2]")
    recorded = [
        {
            "step": "compare",
            "reads": texts(i)._replace(output=x)._asdict(),
            "beside": [texts(i)._replace(output=y)._asdict()],
            "text": text,
        }
        for i, (a, b) in enumerate([("one", "uno"), ("two", "due")])
        for x, y, text in ((a, b, "9 8"), (b, a, "7 8"))
    ]
    (tmp_path / "replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in recorded))
    (tmp_path / "recycledb.toml").write_text("""
        [teachers.gpt4]
        provider = "recorded"
        file = "replies.jsonl"
        [sync]
        steps = ["score"]
        [judgings.gpt4]
        between = ["answer/a", "answer/b"]
    """)
    for command in (
        ["init"], ["add", "d.json"], ["add-answers", "a.json", "--author", "a", "--dataset", "d"],
        ["add-answers", "b.json", "--author", "b", "--dataset", "d"], ["sync", "--only", "judge"],
        ["import-values", "numbers.json", "--measure", "quality", "--model", "paper", "--dataset", "d", "--kind", "origin"],
    ):  # fmt: skip
        if command != ["init"]:
            assert cli(*command, cwd=tmp_path).returncode == 0, command
        else:
            new(f"sqlite:///{tmp_path}/recycle.db")
    shown = cli("judge", "report", "gpt4", cwd=tmp_path).stdout
    assert "answer/a against answer/b, judged by gpt4" in shown and "2.0000" in shown
    assert json.loads(cli("judge", "report", "gpt4", "--json", cwd=tmp_path).stdout)["wins"] == 2
    missing = cli("judge", "report", "gpt5", cwd=tmp_path, code=1)
    assert "did you mean 'gpt4'" in missing.stderr
