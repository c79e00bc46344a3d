"""A sample's context from its file to the teacher, the student and the files that come out; without one nothing has changed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import sync_runs
from conftest import Cli
from stores import add_samples, answer, losses, register, wanted
from teacher_server import TeacherServer

from recycledb import integrity
from recycledb.additions import Options, add
from recycledb.formats import How, read
from recycledb.methods import Readout, steps
from recycledb.methods.ifd import Stat, forward_prompt, reverse_prompt
from recycledb.methods.reflection import Step
from recycledb.reflection.prompts import load, parse, render
from recycledb.reflection.teachers.contract import Reply
from recycledb.reflection.teachers.recorded import question_key, recorded_line
from recycledb.schema import ReplyStatus, Texts, context_json
from recycledb.scoring.spans import spans
from recycledb.store import Store
from recycledb.store.measures import Need, add_facts, lacking_facts, lacking_values
from recycledb.store.pending import Scope
from recycledb.store.questions import pending_questions, texts_beside
from recycledb.store.replies import pending_readings

TALK = (("system", "Be brief."), ("user", "q1"), ("assistant", "a1"))
CONTEXT = context_json(TALK)
READ = Texts("q2", "c", "a2", CONTEXT)
PLAIN = Texts(*READ)

# What the prompt of A_condition is for these texts; the questions' own part is as without a context.
IN_TEMPLATES = {
    "vicuna": "Be brief. USER: q1 ASSISTANT:a1 USER: q2\nInput:\nc ASSISTANT:",
    "alpaca": "Be brief.\n\n### Instruction:\nq1\n\n### Response:a1\n\n### Instruction:\nq2\n\n### Input:\nc\n\n### Response:",
    "wizardlm": "Be brief.\n\nq1\n\n### Response:a1\n\nq2\nc\n\n### Response:",
    "none": "Be brief.\nq1\na1\nq2\nc\n",
}


@pytest.mark.parametrize("template", IN_TEMPLATES)
def test_a_context_in_a_students_template(template: str) -> None:
    assert forward_prompt(template, READ) == IN_TEMPLATES[template]
    assert reverse_prompt(template, READ) == reverse_prompt(template, PLAIN)
    # Turn by turn: what is scored for the first answer is how the second question's prompt begins.
    first, second = Texts("q1", "", "a1"), Texts("q2", "", "a2", context_json(TALK[1:]))
    assert forward_prompt(template, second).startswith(forward_prompt(template, first) + "a1")
    assert forward_prompt(template, second).endswith("q2" + forward_prompt(template, first).partition("q1")[2])


def test_only_the_conditioned_answer_sees_the_context() -> None:
    def parts(texts: Texts) -> dict[str, tuple[list[int], int]]:
        found = spans(lambda text: [*text.encode()], "none", 500, texts, list(Stat))
        return {span.stat: (span.ids.tolist(), span.start) for span in found}

    with_context, without = parts(READ), parts(PLAIN)
    assert {stat for stat in with_context if with_context[stat] != without[stat]} == {Stat.A_CONDITION}
    ids, start = with_context[Stat.A_CONDITION]
    assert bytes(ids[:start]).decode() == IN_TEMPLATES["none"] and bytes(ids[start:]) == b"a2"


SHOWN = (
    "<context>\n[system]\nBe brief.\n\n[user]\nq1\n\n[assistant]\na1\n</context>\n\n<instruction>\nq2\n</instruction>"
)


@pytest.mark.parametrize("step", Step)
def test_a_teacher_is_shown_the_context_before_the_instruction(step: Step) -> None:
    prompt = load(steps()[step])
    (shown,), (plain,) = render(prompt, (READ,)), render(prompt, (PLAIN,))
    assert SHOWN in shown["content"] and "context" not in plain["content"].partition("<instruction>")[0]
    block = re.compile(r"What comes before the instruction.*</context>\n\n", re.DOTALL)
    assert block.sub("", shown["content"]) == plain["content"]


def test_a_prompt_may_place_the_context_itself() -> None:
    own = (
        "<<system>>\n{{#context}}\nBefore:\n{context}\n{{/context}}\nJudge.\n<<user>>\n"
        "[Better Answer][End]{instruction}{{#input}}{input}{{/input}}{output}"
    )
    prompt = parse(steps()[Step.REFLECT_RESPONSE], own, "t")
    assert [each["content"] for each in render(prompt, (PLAIN,))] == ["Judge.", "[Better Answer][End]q2ca2"]
    assert render(prompt, (READ,))[0]["content"].startswith("Before:\n[system]\nBe brief.\n\n[user]\nq1")
    assert render(prompt, (READ,))[1] == render(prompt, (PLAIN,))[1]
    readout = Readout("r", "Rate {instruction} {input}\nYes or No:", (" Yes", " No"))
    assert readout.prompt(READ).endswith("a1\n</context>\n\nRate q2 c\nYes or No:")
    assert readout.prompt(PLAIN) == "Rate q2 c\nYes or No:"
    assert Readout("r", "{context}|{instruction}", ("a", "b")).prompt(READ).endswith("a1|q2")


@pytest.mark.long
def test_every_statement_that_reads_texts_reads_the_context(store: Store) -> None:
    register(store)
    samples = add_samples(store, [READ, PLAIN])
    want = wanted((Step.REFLECT_RESPONSE,))
    questions = pending_questions(store, want, samples)
    assert [Texts.of(row) for row in questions] == [READ, PLAIN]
    made = answer(store, questions[0])
    assert made.variant_id is not None
    need = Need(Scope(want), "57d000000001", (Stat.A_DIRECT,))
    lacking = {row.variant_id: row.context for row in lacking_facts(store, need, samples)}
    assert lacking == {questions[0].variant_id: CONTEXT, made.variant_id: CONTEXT, questions[1].variant_id: None}
    add_facts(store, [losses(made.variant_id)[1]])
    assert [row.context for row in lacking_values(store, need, "m", samples)] == [CONTEXT]
    (unread,) = pending_readings(store, dict.fromkeys(Step, 99))
    assert unread.context == CONTEXT
    (beside,) = texts_beside(store, [type("Q", (), {"others": questions[0].variant_id})])[questions[0].variant_id]
    assert beside == READ
    assert [each for each in integrity.check(store).findings if each.startswith(("sample", "variant"))] == []


@pytest.mark.long
def test_a_changed_context_is_found(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        add_samples(store, [READ])
        with store.write() as conn:
            conn.exec_driver_sql('UPDATE sample SET digest = NULL, context = \'[{"role": "user"}]\'')
        found = integrity.check(store).findings
    assert any("id that does not match" in each for each in found)
    assert any("no list of messages" in each for each in found)


def test_a_recording_tells_contexts_apart() -> None:
    line = json.loads(recorded_line(Step.REFLECT_RESPONSE, (READ,), Reply(ReplyStatus.OK, "text")))
    assert line["reads"]["context"][0] == {"role": "system", "content": "Be brief."}
    assert question_key("s", (READ,)) != question_key("s", (PLAIN,)) == question_key("s", (Texts("q2", "c", "a2"),))


def talks(folder: Path) -> Path:
    row = {"instruction": "q2", "input": "c", "output": "a2", "system": "Be brief.", "history": [["q1", "a1"]]}
    path = folder / "talks.json"
    path.write_text(json.dumps([row, {"instruction": "x", "output": "y"}]), encoding="utf-8")
    return path


@pytest.mark.long
def test_requests_hold_the_context(sqlite_url: str, tmp_path: Path) -> None:
    """Through the real SDK to a server: the sample with a context is asked about with it, the other one as ever."""
    with Store.open(sqlite_url) as store:
        add(store, [talks(tmp_path)])
    with TeacherServer() as server:
        sync_runs.run(sqlite_url, sync_runs.target(server.base_url, [Step.REFLECT_RESPONSE]))
        asked = [each.body["messages"][0]["content"] for each in server.log]
    prompt = load(steps()[Step.REFLECT_RESPONSE])
    expected = {render(prompt, (texts,))[0]["content"] for texts in (READ, Texts("x", "", "y"))}
    assert set(asked) == expected
    assert sum("[system]\nBe brief." in each for each in asked) == 1


@pytest.mark.long
def test_the_context_comes_out_again(cli: Cli, tmp_path: Path) -> None:
    store = ("--store", f"sqlite:///{tmp_path}/s.db")
    cli(*store, "add", talks(tmp_path))
    for format in ("sharegpt", "messages", "llamafactory", "jsonl", "alpaca"):
        file = tmp_path / f"out-{format}.json"
        done = cli(*store, "export", "-o", file, "--format", format)
        said = "left out the context of 1 rows" in done.stdout
        assert said is (format == "alpaca")
        found = [row.texts for row in read(file, how=How(turns="last"))]
        whole = format in ("llamafactory", "jsonl")
        expected = READ if whole else Texts("q2\nc", "", "a2", CONTEXT)
        assert found == [PLAIN if format == "alpaca" else expected, Texts("x", "", "y")]
    first = json.loads((tmp_path / "out-llamafactory.json").read_text())[0]
    assert (first["system"], first["history"]) == ("Be brief.", [["q1", "a1"]])
    shown = cli(*store, "show", sample_with_context(cli, store)).stdout
    assert "context, system\nBe brief.\ncontext, user\nq1\ncontext, assistant\na1\n" in shown


def sample_with_context(cli: Cli, store: Any) -> str:
    sql = "SELECT sample_id FROM samples WHERE context IS NOT NULL"
    return str(json.loads(cli(*store, "query", sql, "--format", "json").stdout)[0]["sample_id"])


def test_a_dataset_of_an_earlier_release_stays_as_it_is_unless_asked(sqlite_url: str, tmp_path: Path) -> None:
    with Store.open(sqlite_url) as store:
        add(store, [talks(tmp_path)], options=Options(context="drop"))
        with store.write() as conn:  # as a release without contexts wrote it
            conn.exec_driver_sql("UPDATE dataset_import SET digest = NULL, parts = NULL")
        (again,) = add(store, [talks(tmp_path)])
        assert (again.added, again.samples_left, again.files[0].left_out) == (0, 0, {"system": 1, "earlier_turns": 2})
        assert again.notes == [
            "read with --context drop, as when this dataset was last added; --context keep changes that"
        ]
        (kept,) = add(store, [talks(tmp_path)], options=Options(context="keep"))
        assert (kept.added, kept.samples_left, kept.files[0].contexts) == (1, 1, 1)
        (after,) = add(store, [talks(tmp_path)])
        assert (after.added, after.places_new, after.context, after.notes) == (0, 0, "keep", [])
