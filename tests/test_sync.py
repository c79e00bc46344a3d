"""Sync as a whole: it fills in what is missing and nothing else, whatever made it missing."""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import stores
from conftest import Cli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from late import Late
from light_demo import lay_out
from stores import loss_row
from sync_runs import configuration, make_store, rows, run, sample, target
from teacher_server import Exchange, Fault, TeacherServer
from tiny_students import save_student

from recycledb.config import Config, parse
from recycledb.errors import ConfigError
from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import Step, extract
from recycledb.reflection.teachers import Reply
from recycledb.reflection.teachers.recorded import recorded_line
from recycledb.schema import ReplyStatus, Texts
from recycledb.scoring.requests import Request
from recycledb.store import Store
from recycledb.store.measures import add_facts
from recycledb.store.pending import Wanted
from recycledb.store.places import Place as At
from recycledb.store.places import replace_places
from recycledb.store.questions import claim, pending_questions
from recycledb.store.replies import add_replies
from recycledb.store.rows import PromptRow, StudentRow, TeacherRow
from recycledb.store.workers import start_worker
from recycledb.sync import Plan, Sync, make, resolve
from recycledb.sync.extraction import read_all
from recycledb.sync.replies import reply_row

STUDENTS = ("small", "large", "third")
EXTRACTOR_BEFORE = 0


def reply_text(step: Step, read: Texts) -> str:
    """Return a teacher's reply about these texts; that to sample 1's instruction cannot be used."""
    name = hashlib.sha256(repr((step, read)).encode()).hexdigest()[:8]
    if step is Step.COMPRESS:
        return f"[Instruction]\nDo {name} with {read.input}.\n[End]"
    if step is Step.REFLECT_INSTRUCTION:
        if "thing 1 " in read.instruction:
            return "I would rather talk about the weather."
        return f"[New Instruction]\nExplain {name}.\n[End]\n[New Answer]\nFirst {name}, then more of it.\n[End]"
    return f"[Better Answer]\nA better answer: {name}.\n[End]"


def replies_about(texts: Texts) -> Iterator[tuple[str, tuple[Texts, ...], Reply]]:
    """Yield the reply to every question that a sample raises."""

    def ask(step: Step, read: Texts) -> tuple[Texts | None, tuple[str, tuple[Texts, ...], Reply]]:
        text = reply_text(step, read)
        usage = {"prompt_tokens": 50, "completion_tokens": len(text) // 4}
        reply = Reply(status=ReplyStatus.OK, text=text, finish_reason="stop", **usage)  # type: ignore[arg-type]
        return extract(step, text, read).texts, (step, (read,), reply)

    compressed, line = ask(Step.COMPRESS, texts) if texts.input else (texts, None)
    if line:
        yield line
    assert compressed is not None
    harder, line = ask(Step.REFLECT_INSTRUCTION, compressed)
    yield line
    for read in (texts, harder):
        if read is not None:
            yield ask(Step.REFLECT_RESPONSE, read)[1]


@dataclass
class Place:
    """A folder with a store, a recording and students."""

    folder: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}/store.db"

    def config(self, *students: str) -> Config:
        """Return the configuration with these students."""
        table = {
            "teachers": {"t": {"provider": "recorded", "file": "replies.jsonl"}},
            "students": {name: {"model": name, "max_length": 256} for name in students},
            "sync": {"teacher": "t", "students": list(students)},
        }
        return parse(table, self.folder / "recycledb.toml")

    def sync(self, *students: str, **options: Any) -> Sync:
        """Return a sync to run; the store stays open as long as the test."""
        target = resolve(self.config(*students), lazy=options.pop("lazy", False))
        return Sync(Store.open(self.url), target, **options)

    def add(self, samples: range) -> None:
        """Make the dataset these samples."""
        with Store.open(self.url, create=True) as store, store.write() as conn:
            replace_places(store, conn, "d", (At(i, sample(i)) for i in samples))

    def count(self, table: str) -> int:
        """Return the rows of a table or view."""
        return int(rows(self.url, f"SELECT count(*) AS n FROM {table}")[0]["n"])

    def content(self) -> dict[str, int]:
        """Return the rows of every table."""
        tables = ("attempt", "reply", "variant", "extraction", "loss", "name", "worker", "teacher", "student", "prompt")
        return {table: self.count(table) for table in tables}


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students")
    for name, architecture in zip(STUDENTS, ("llama", "gpt2", "qwen2"), strict=True):
        save_student(folder / name, architecture)
    return folder


@pytest.fixture
def place(tmp_path: Path, students: Path) -> Place:
    for name in STUDENTS:
        (tmp_path / name).symlink_to(students / name)
    lines = [recorded_line(*line) + "\n" for i in range(20) for line in replies_about(sample(i))]
    (tmp_path / "replies.jsonl").write_text("".join(lines), "utf-8")
    made = Place(tmp_path)
    made.add(range(4))
    return made


@pytest.mark.long
def test_a_plan_writes_nothing_and_says_what_the_run_does(place: Place) -> None:
    before = (place.folder / "store.db").read_bytes()
    plan = place.sync("small").plan()
    assert (place.folder / "store.db").read_bytes() == before
    by_step = {ask.step: (ask.ready, ask.follow) for ask in plan.asks}
    # Sample 2 has an input; what sample 1's instruction brings is not known before.
    assert by_step == {"compress": (1, 0), "reflect_instruction": (3, 1), "reflect_response": (4, 4)}
    outcome = place.sync("small").run()
    assert outcome.complete
    assert (outcome.as_dict()["calls"], plan.calls) == (12, 13)
    assert outcome.as_dict()["unusable"] == 1
    assert outcome.as_dict()["statistics"] == 4 * (4 + 3 + 4 + 3)  # origins, new instructions, better answers to each


def test_a_plan_counts_the_tokens_to_score_before_a_model_is_loaded(place: Place) -> None:
    [score] = place.sync("small").plan().scores
    requests = [Request(i, sample(i), tuple(Stat)) for i in range(4)]
    expected = (
        Late("recycledb.scoring.engine").count_tokens(requests, str(place.folder / "small"), max_length=256).tokens
    )
    assert (score.tokens, score.counted, score.variants) == (expected, 4, 4)
    target = place.sync("small").target
    with Store.open(place.url) as store:
        [score] = make(store, target, exact=True, tokenised=2).scores
        assert score.counted == 2
        assert score.tokens == pytest.approx(expected, rel=0.3)
        assert make(store, target).scores[0].tokens is None  # status need not tokenise


def test_a_second_run_does_nothing_and_says_so(place: Place) -> None:
    place.sync("small").run()
    before = place.content()
    again = place.sync("small").run()
    assert again.idle and again.complete
    assert {**place.content(), "worker": 0} == {**before, "worker": 0}


def test_one_statistic_removed_by_hand_is_computed_again_and_no_other(place: Place) -> None:
    place.sync("small", "large").run()
    before = rows(place.url, "SELECT * FROM losses ORDER BY student, variant_id, stat")
    with Store.open(place.url) as store, store.write() as conn:
        where = "student = 'large' AND stat = 'A_condition' AND variant_id IN (SELECT min(variant_id) FROM losses)"
        conn.exec_driver_sql(f"DELETE FROM losses WHERE {where}")
    assert place.count("losses") == len(before) - 1
    plan = place.sync("small", "large").plan()
    assert (plan.calls, [score.statistics for score in plan.scores]) == (0, [0, 1])
    outcome = place.sync("small", "large").run()
    assert (outcome.as_dict()["calls"], outcome.as_dict()["statistics"]) == (0, 1)
    after = rows(place.url, "SELECT * FROM losses ORDER BY student, variant_id, stat")
    for one, other in zip(before, after, strict=True):
        assert (one["loss_sum"] is None) is (other["loss_sum"] is None)
        assert one["loss_sum"] is None or one["loss_sum"] == pytest.approx(other["loss_sum"], rel=1e-5)


@pytest.mark.long
def test_a_third_student_adds_only_its_own(place: Place) -> None:
    place.sync("small", "large").run()
    before = rows(place.url, "SELECT student, count(*) AS n FROM losses GROUP BY student ORDER BY student")
    outcome = place.sync("small", "large", "third").run()
    assert outcome.as_dict()["calls"] == 0
    assert [(scored.student, scored.statistics) for scored in outcome.scored] == [("third", before[0]["n"])]
    after = rows(place.url, "SELECT student, count(*) AS n FROM losses GROUP BY student ORDER BY student")
    assert after == [*before, {"student": "third", "n": before[0]["n"]}]


def test_ten_more_samples_cost_exactly_their_rows(place: Place) -> None:
    place.sync("small").run()
    before = place.content()
    place.add(range(14))
    plan = place.sync("small").plan()
    with_input = sum(1 for i in range(4, 14) if sample(i).input)
    assert [ask.ready for ask in plan.asks] == [with_input, 10 - with_input, 10]
    assert plan.calls == with_input + 10 + 20
    assert [(score.variants, score.statistics) for score in plan.scores] == [(10, 40)]
    outcome = place.sync("small").run()
    assert outcome.complete
    assert outcome.as_dict()["calls"] == plan.calls
    assert outcome.as_dict()["statistics"] == 4 * 40
    after = place.content()
    assert after["attempt"] - before["attempt"] == plan.calls
    assert after["loss"] - before["loss"] == 160
    assert after["variant"] - before["variant"] == 10 + plan.calls


@pytest.mark.long
def test_a_better_extractor_reads_stored_texts_again_and_asks_only_what_follows(place: Place) -> None:
    """The store is made what an older extractor would have left: its number on every verdict, one reply not understood."""
    place.sync("small").run()
    variant = rows(place.url, "SELECT min(variant_id) AS v FROM variant WHERE kind = 'reflect_response'")[0]["v"]
    with Store.open(place.url) as store, store.write() as conn:
        conn.exec_driver_sql("UPDATE extraction SET extractor = ?", (EXTRACTOR_BEFORE,))
        missed = "UPDATE extraction SET variant_id = NULL, reason = 'no_marker' WHERE variant_id = ?"
        conn.exec_driver_sql(missed, (variant,))
        conn.exec_driver_sql("DELETE FROM loss WHERE variant_id = ?", (variant,))
        conn.exec_driver_sql("DELETE FROM variant WHERE variant_id = ?", (variant,))
    before = place.content()
    plan = place.sync("small").plan()
    assert plan.unread == before["reply"]
    outcome = place.sync("small").run()
    assert outcome.complete
    assert (outcome.read, outcome.as_dict()["calls"], outcome.as_dict()["statistics"]) == (before["reply"], 0, 4)
    after = place.content()
    assert (after["reply"], after["attempt"]) == (before["reply"], before["attempt"])
    assert (after["extraction"], after["variant"]) == (2 * before["extraction"], before["variant"] + 1)


# --- lazy -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_lazy_asks_twice_a_sample_and_the_recipe_picks_what_the_full_run_picks(tmp_path: Path) -> None:
    from recycledb.workspace import Workspace

    picked, calls = {}, {}
    for lazy in (False, True):
        folder = tmp_path / str(lazy)
        lay_out(folder)
        with Workspace.open(config=folder / "recycledb.toml", create=True) as work:
            work.add(folder / "samples.json")
            result = work.sync(lazy=lazy, students=["small"]).as_dict()
            out = folder / "picked.json"
            work.select("selective", student="small", out=out)
            picked[lazy] = json.loads(out.read_text())
            calls[lazy] = {
                row["step"]: row["n"]
                for row in rows(
                    f"sqlite:///{folder}/recycle.db", "SELECT step, count(*) AS n FROM attempt GROUP BY step"
                )
            }
            samples = work.status()["samples"]
        assert result["answered"] == result["calls"]
    assert picked[True] == picked[False]
    assert picked[True]
    assert calls[True]["reflect_instruction"] == calls[False]["reflect_instruction"]
    assert calls[True]["reflect_response"] == samples
    assert calls[False]["reflect_response"] > samples * 1.8
    print(
        f"{samples} samples, calls by step: full {calls[False]}, lazy {calls[True]}; {len(picked[True])} picked by both"
    )


OUTCOMES = st.sampled_from(["ok", "ok", "unusable", "failed"])
IFDS = st.sampled_from([None, 0.0, 0.5, 0.5, 2.0])  # of a variant: no value, no token, and some that tie


@pytest.mark.long
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    patterns=st.lists(st.tuples(OUTCOMES, OUTCOMES, OUTCOMES, IFDS, IFDS), min_size=3, max_size=8),
    seed=st.integers(0, 1_000),
)
def test_lazy_comes_to_an_end_whatever_fails_and_whatever_has_no_score(
    empty_stores: dict[str, Path], tmp_path: Path, patterns: list[tuple[Any, ...]], seed: int
) -> None:
    path = tmp_path / f"{random.Random().getrandbits(64):x}.db"
    path.write_bytes(empty_stores["sqlite"].read_bytes())
    with Store.open(f"sqlite:///{path}") as store:
        with store.write() as conn:
            replace_places(store, conn, "d", (At(i, sample(i)) for i in range(len(patterns))))
        asked = play(store, dict(enumerate(patterns)))
    path.unlink()
    for number, (compress, instruction, response, *_) in enumerate(patterns):
        steps = [step for step, about in asked if about == number]
        reachable = not sample(number).input or compress == "ok"
        assert steps.count(Step.REFLECT_RESPONSE) == 1
        assert steps.count(Step.REFLECT_INSTRUCTION) == (1 if reachable else 0)
        assert {instruction, response} <= {"ok", "unusable", "failed"}


def play(store: Store, patterns: dict[int, tuple[Any, ...]]) -> list[tuple[Step, int]]:
    """Ask and score by turns, as a lazy sync does, with these outcomes; return the questions, by step and sample."""
    prompts = {step: f"p-{step}" for step in Step}
    wanted = Wanted(teacher_id="t", prompts=prompts, lazy_student="s")
    with store.write() as conn:
        store.insert(conn, [TeacherRow("t", "t", "openai", "m", "{}", "now")])
        store.insert(conn, [PromptRow(prompt, step, "", "", "now") for step, prompt in prompts.items()])
        store.insert(conn, [StudentRow("s", "s", "m", "r", "vicuna", 8, "float32", 1, "now")])
    number_of = {row.sample_id: row.position for row in store.rows("SELECT sample_id, position FROM place")}
    worker, asked = start_worker(store), []
    samples = list(number_of)
    for _ in range(8):  # three steps and a comparison: more rounds than that would be none that ends
        questions = pending_questions(store, wanted, samples)
        for attempt, row in claim(store, wanted, worker, questions):
            outcome = dict(zip(Step, patterns[number_of[row.sample_id]][:3], strict=True))[Step(row.step)]
            asked.append((Step(row.step), number_of[row.sample_id]))
            text = reply_text(
                Step(row.step), Texts(row.instruction.replace("thing 1 ", "thing one "), row.input, row.output)
            )
            reply = (
                Reply(ReplyStatus.FAILED, error="refusal: no") if outcome == "failed" else Reply(ReplyStatus.OK, text)
            )
            if outcome == "unusable":
                reply = Reply(ReplyStatus.OK, "nothing of use")
            add_replies(store, [reply_row(attempt, reply)])
        read_all(store)
        scored = score(store, wanted, samples, patterns, number_of)
        if not questions and not scored:
            return asked
    raise AssertionError("it does not end")


def score(store: Store, wanted: Wanted, samples: list[str], patterns: dict[int, Any], number_of: dict[str, int]) -> int:
    """Give the variants that lack scores those of their sample's pattern; return how many."""
    stats = [stat.value for stat in Stat]
    found = stores.pending_scores(store, wanted, "s", stats, samples)
    for row in found:
        ifd = patterns[number_of[row.sample_id]][3 if row.kind == "origin" else 4]
        loss, tokens = (None, 0) if not ifd else (ifd, 1)
        add_facts(
            store,
            [
                loss_row("s", row.variant_id, stat, loss if stat == "A_condition" else loss and 0.1, tokens)
                for stat in stats
            ],
        )
    return len(found)


# --- money ----------------------------------------------------------------------------------------


def spend(folder: Path, seed: int) -> tuple[float, float]:
    """Sync with a cap against a server whose answers are of random length; return what it would bill, and the cap."""
    chance = random.Random(seed)
    price_in, price_out, longest = chance.uniform(0.5, 50), chance.uniform(0.5, 200), chance.randint(20, 300)

    def answer(exchange: Exchange) -> str:
        return "word " * int(random.Random(f"{seed} {exchange.question}").uniform(0, longest * 4 / 5))

    faults = {Fault.SERVER_ERROR: 0.05, Fault.RESET_IN_BODY: 0.05, Fault.CUT_JSON: 0.05, **money_faults(chance)}
    cap = chance.uniform(1, 5) * (2_500 * price_in + longest * price_out) / 1e6  # of a few questions
    folder.mkdir()
    url = make_store(folder, 30)
    with TeacherServer(seed=seed, faults=faults, answer=answer) as server:
        wanted = target(
            server.base_url, ["reflect_response"], price_in=price_in, price_out=price_out, price_cached=price_in / 10,
            params={"max_tokens": longest}, concurrency=chance.choice([1, 4, 32]), max_attempts=2, timeout_s=1,
        )  # fmt: skip
        told = run(url, wanted, max_cost=cap).as_dict()
        billed = sum(exchange.bill(price_in, price_out) for exchange in server.log)
        assert told["spent_usd"] is None or 0 <= told["spent_usd"] <= billed * 1.000001
        assert billed <= ((told["spent_usd"] or 0.0) + told["charged_usd"]) * 1.000001 <= cap * 1.000001
    return billed, cap


def money_faults(chance: random.Random) -> dict[Fault, float]:
    """Return shares of the ways in which a server bills what it does not tell, or tells wrongly: few, or four requests in five."""
    kinds = [
        *(Fault.NO_USAGE, Fault.EMPTY_NO_USAGE, Fault.REFUSAL_NO_USAGE, Fault.FILTERED_NO_USAGE, Fault.NEGATIVE_USAGE),
        *(Fault.ZERO_USAGE, Fault.CACHED_BEYOND_PROMPT, Fault.THOUGHT_APART, Fault.BILLED_HANG, Fault.BILLED_RESET),
        *(Fault.BILLED_ERROR, Fault.BILLED_FILTER, Fault.RATE_LIMITED),
    ]
    if chance.random() < 0.5:
        return dict.fromkeys(chance.sample(kinds, 2), 0.4)
    return {fault: chance.choice([0, 0, 0.1]) for fault in chance.sample(kinds, 5)}


def check_caps(folder: Path, runs: int) -> None:
    shares = []
    for seed in range(runs):
        billed, cap = spend(folder / str(seed), seed)
        assert billed <= cap
        shares.append(billed / cap)
    print(f"{runs} runs: {max(shares):.3f} of the cap at most, {sum(shares) / runs:.3f} on average, passed in none")


@pytest.mark.long
def test_a_cap_on_cost_is_never_exceeded(tmp_path: Path) -> None:
    check_caps(tmp_path, 4)


@pytest.mark.slow
def test_a_cap_on_cost_is_never_exceeded_in_a_hundred_runs(tmp_path: Path) -> None:
    check_caps(tmp_path, 100)


def test_a_cap_needs_prices_and_a_bound_on_answers(tmp_path: Path) -> None:
    url = make_store(tmp_path, 1)
    with pytest.raises(ConfigError, match="--max-cost needs prices"):
        run(url, target("http://127.0.0.1:9/v1"), max_cost=1.0)
    unbounded = target("http://127.0.0.1:9/v1", price_in=1.0, price_out=1.0, params={"max_tokens": "unset"})
    with pytest.raises(ConfigError, match="needs a bound on answers"):
        run(url, unbounded, max_cost=1.0)


@pytest.mark.long
def test_tokens_of_a_plan_are_measured_by_what_there_is(tmp_path: Path, students: Path) -> None:
    url = make_store(tmp_path, 40)

    def plan(base_url: str, **teacher: Any) -> Plan:
        with Store.open(url) as store:
            wanted = target(base_url, ["reflect_response"], price_in=1.0, price_out=2.0, **teacher)
            return Sync(store, wanted).plan()

    with TeacherServer() as server:
        guessed = plan(server.base_url)
        assert guessed.counted_by == "4 characters a token"
        assert guessed.asks[0].cost_usd is None  # how long the answers will be is not known yet
        most = (guessed.asks[0].prompt_tokens + 40 * 2048 * 2.0) / 1e6
        assert guessed.asks[0].cost_most_usd == pytest.approx(most)
        local = plan(server.base_url, model=str(students / "small"))
        assert local.counted_by == f"the tokenizer of {students / 'small'}"
        assert local.asks[0].prompt_tokens > guessed.asks[0].prompt_tokens  # its vocabulary is tiny
        run(url, target(server.base_url, ["reflect_response"], price_in=1.0, price_out=2.0), limit=30)
        known = plan(server.base_url)
        assert known.counted_by == "what the server counted in 30 earlier replies"
        rest = run(url, target(server.base_url, ["reflect_response"], price_in=1.0, price_out=2.0)).as_dict()
        assert known.asks[0].prompt_tokens == pytest.approx(rest["prompt_tokens"], rel=0.1)
        assert known.asks[0].cost_usd == pytest.approx(rest["cost_usd"], rel=0.1)


# --- seeing it, and exit codes --------------------------------------------------------------------


def write_toml(folder: Path, base_url: str, **teacher: Any) -> None:
    config = configuration(base_url, **teacher).teachers["t"]
    lines = [
        f"{key} = {json.dumps(value)}"
        for key, value in {"model": config.model, "base_url": base_url, **teacher}.items()
    ]
    (folder / "recycledb.toml").write_text("\n".join(["[store]", 'url = "sqlite:///store.db"', "[teachers.t]", *lines]))


@pytest.mark.long
def test_the_command_tells_how_it_goes_and_how_it_ended(tmp_path: Path, cli: Cli) -> None:
    make_store(tmp_path, 12)
    with TeacherServer(delay_s=0.3) as server:
        write_toml(tmp_path, server.base_url, concurrency=6, price_in=1.0, price_out=2.0)
        dry = json.loads(cli("sync", "--dry-run", "--json").stdout)
        assert (dry["calls"], len(server.log)) == (4 + 12 + 24, 0)
        done = cli("sync", "--json", "--limit", "20", code=3)
        events = [json.loads(line) for line in done.stderr.splitlines()]
        assert {event["event"] for event in events} == {"progress"}
        keys = {"step", "done", "failed", "in_flight", "rate", "tokens_per_minute", "cost_usd", "seconds_left"}
        assert all(keys <= event.keys() for event in events)
        last = {event["step"]: event for event in events}
        assert sum(event["done"] for event in last.values()) == 20
        outcome = json.loads(done.stdout)
        assert (outcome["calls"], outcome["stopped"]) == (20, "the limit of 20 calls is reached")
        assert outcome["cost_usd"] > 0
        text = cli("sync", "--max-cost", "0.00001", code=3).stdout
        assert "the budget of $0.000010 is reached" in text
        assert "still missing: " in text
        assert len(server.log) == 20
        cli("sync")
        assert "nothing to do" in cli("sync").stdout
        status = json.loads(cli("status", "--json").stdout)
        assert status["cost_usd"] == pytest.approx(
            sum((e.prompt_tokens + 2 * e.completion_tokens) / 1e6 for e in server.log)
        )
        assert "spent: $" in cli("status").stdout


def test_a_key_that_is_not_accepted_is_one_line_and_code_1(tmp_path: Path, cli: Cli) -> None:
    make_store(tmp_path, 3)
    with TeacherServer(decide=lambda exchange: Fault.UNAUTHORIZED) as server:
        write_toml(tmp_path, server.base_url)
        done = cli("sync", code=1)
        assert done.stderr.startswith("recycledb: teacher 't' at ")
        assert "OPENAI_API_KEY was not accepted" in done.stderr
        assert done.stderr.count("\n") == 1
