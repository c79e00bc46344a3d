"""A store with a row in every table, in which everything is true: ids are those of the content, replies were asked for, texts were read.

It is made by the functions that fill real stores, without a teacher's server and without a model.
"""

from typing import Any

from sqlalchemy import Boolean, text
from stores import add_samples, derive, import_row, loss_row, texts
from templates import made, new

from recycledb import methods
from recycledb.config import StudentConfig, TeacherConfig
from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import Step
from recycledb.reflection import prompts
from recycledb.reflection.teachers import Reply
from recycledb.schema import ReplyStatus, random_id, utc_now
from recycledb.scoring.identity import Identity
from recycledb.selection.recipes import get_recipe
from recycledb.selection.select import select
from recycledb.store import SQLRow, Store, batches, leases
from recycledb.store.leases import Lease
from recycledb.store.measures import add_facts
from recycledb.store.questions import claim, pending_questions
from recycledb.store.replies import add_replies, repeated
from recycledb.store.rows import ROWS, AttemptRow, ReplyRow
from recycledb.store.tables import metadata
from recycledb.store.workers import end_worker, start_worker
from recycledb.sync.extraction import read_all
from recycledb.sync.replies import reply_row
from recycledb.sync.target import Student, Target

ANSWERS = {
    Step.COMPRESS: "[Instruction] {instruction} Be brief about {input}. [End]",
    Step.REFLECT_INSTRUCTION: "[New Instruction] {instruction} Say why. [End]\n[New Answer] {output} This is why. [End]",
    Step.REFLECT_RESPONSE: "[Better Answer] {output} Here is more of it. [End]",
}


def target(**more: Any) -> Target:
    """Return the target that `fill` fulfils."""
    wordings = {step: prompts.load(methods.steps()[step]) for step in Step}
    student = Student(StudentConfig(name="7b", model="org/7b"), Identity("abc", 7_000_000_000, False))
    teacher = TeacherConfig(name="gpt", model="gpt-test", **more)
    return Target(teacher=teacher, prompts=wordings, students=[student], reflect=True, score=True)


def _reply(question: SQLRow, number: int) -> Reply:
    if question.step == Step.REFLECT_RESPONSE and number == 1 and question.kind == "origin":
        return Reply(ReplyStatus.ERROR, error="timeout: no answer", duration_ms=60_000)
    written = ANSWERS[Step(question.step)].format(
        instruction=question.instruction, input=question.input, output=question.output
    )
    paid = {"prompt_tokens": 311, "completion_tokens": 97, "cost_usd": 0.000105, "duration_ms": 1_234}
    return Reply(ReplyStatus.OK, written, "stop", "gpt-test-1", "req-1", **paid)


def _answer(store: Store, wanted: Target, worker: str, samples: list[str]) -> None:
    """Ask and answer until no question is open; the first try of some fails."""
    assert wanted.wanted is not None
    while asked := pending_questions(store, wanted.wanted, samples):
        claims = claim(store, wanted.wanted, worker, asked)
        add_replies(store, [reply_row(attempt, _reply(question, attempt.number)) for attempt, question in claims])
        read_all(store)


def _score(store: Store, wanted: Target) -> None:
    student = wanted.students[0].student_id
    found = store.rows("SELECT variant_id FROM variant WHERE kind <> 'compressed' ORDER BY variant_id")
    for place, row in enumerate(found):
        means = (2.9 + place / 7, 2.5 + place / 9, 2.3 + place / 11, 1.9 + place / 5)  # in the order of Stat
        losses = []
        for (i, stat), mean in zip(enumerate(Stat), means, strict=True):
            if place % 5 == 4 and stat is Stat.Q_DIRECT:
                loss = loss_row(student, row.variant_id, stat, None, 0, truncated=True, status="too_long")
            else:
                pair = f"{row.variant_id[:23]}{i}"
                loss = loss_row(student, row.variant_id, stat, mean * 14, 14, merged=i == 2, pair_id=pair)
            losses.append(loss._replace(kernel="eager"))
        add_facts(store, losses)


def _repeat(store: Store, worker: str) -> None:
    """Let an equal answer have come to another attempt, as a merge of two stores brings it."""
    names = ", ".join(ReplyRow._fields)
    [row] = store.rows(f"SELECT {names} FROM reply WHERE status = 'ok' ORDER BY text_id LIMIT 1")
    reply, now = ReplyRow(*row), utc_now()
    attempt = AttemptRow(
        attempt_id=random_id(),
        variant_id=reply.variant_id,
        step=reply.step,
        teacher_id=reply.teacher_id,
        prompt_id=reply.prompt_id,
        number=reply.number,
        worker_id=worker,
        sent_at=now,
        reserved_usd=0.0002,
    )
    again = reply._replace(attempt_id=attempt.attempt_id, request_id="req-2", duration_ms=999, created_at=now)
    with store.write() as conn:
        store.insert(conn, [attempt, repeated(again)])


def fill(store: Store, samples: int = 4) -> Target:
    """Fill an empty store; return what it fulfils."""
    wanted = target()
    wanted.register(store)
    ids = add_samples(store, [texts(f"number {i}", with_input=i % 2 == 1) for i in range(samples)])
    add_samples(store, [texts(f"number {i}", with_input=i % 2 == 1) for i in range(1, samples)])  # closes places
    with store.write() as conn:
        store.insert(conn, [import_row("d", samples)])
    worker = start_worker(store)
    _answer(store, wanted, worker, ids)
    _score(store, wanted)
    _repeat(store, worker)
    teacher = wanted.wanted.teacher_id if wanted.wanted else ""
    batch = batches.start(store, teacher, worker)
    batches.note(store, batch, "submitted", "batch_1", "2 requests")
    batches.note(store, batch, "taken", "batch_1")
    end_worker(store, worker)
    with store.write() as conn:  # as a process leaves it that is killed
        leases.take(conn, worker, [Lease("ask", teacher)], store.backend.now(conn))
    with store.write() as conn:
        derive(store, conn, ids[1:3], "sound")
    select(store, get_recipe("cherry"), {"top": "2"})
    select(store, get_recipe("selective"))
    return wanted


def make(url: str) -> None:
    """Make such a store at `url`; in DuckDB from one in SQLite in one transaction, which leaves a file of a tenth of the size."""
    new(url, _make)


def _make(url: str) -> None:
    if url.startswith("sqlite"):
        with Store.open(url) as store:
            fill(store)
        return
    with Store.open(f"sqlite:///{made('sqlite', _make)}") as source, Store.open(url) as store, store.write() as conn:
        for table in metadata.sorted_tables:
            kind = ROWS[table.name]
            flags = [isinstance(table.columns[name].type, Boolean) for name in kind._fields]
            rows = [
                kind(*(bool(value) if flag else value for value, flag in zip(row, flags, strict=True)))
                for row in source.rows(f"SELECT {', '.join(kind._fields)} FROM {table.name}")
            ]
            store.insert(conn, rows)


def counted(store: Store) -> dict[str, int]:
    """Return how many rows each table has."""
    with store.read() as conn:
        return {name: int(conn.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()) for name in metadata.tables}
