"""Batches: hand questions to the teacher's batch service, return, and take what it has answered when a later sync looks.

Invariant: a question is claimed before it is written to a file, and the claim lasts until the batch is taken or abandoned, so it is
asked in one place at a time, online or in a batch. A batch carries our id; one whose creation was not heard of is looked for by it,
and given up only when the service does not know it some time after its process died: a batch that may be paid for is never made again.
What came back is committed group by group, so a kill while taking costs nothing.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from recycledb.errors import TeacherError
from recycledb.reflection.prompts import render
from recycledb.reflection.teachers import Message, Reply
from recycledb.reflection.teachers.batch import MOST_BYTES, MOST_REQUESTS, BatchTeacher, Remote, unfinished
from recycledb.schema import ReplyStatus, Step, Texts
from recycledb.store import SQLRow, Store, batches
from recycledb.store.pending import Wanted
from recycledb.sync.budget import Budget
from recycledb.sync.progress import Asked
from recycledb.sync.reading import reply_row
from recycledb.sync.target import Target

GRACE_S = 120.0  # how long a batch may stay unheard of after it was begun before it is given up
GROUP = 250  # questions claimed, or replies committed, in one transaction
ID_LENGTH = 32  # of an attempt


@dataclass
class Batched:
    """What came of a look at the batch service."""

    submitted: int = 0  # batches
    requests: int = 0  # in them
    taken: int = 0  # batches
    waiting: int = 0  # batches that are not done yet


@dataclass
class Ready:
    """A question with its messages, the length of its line, and what it may cost."""

    row: SQLRow
    messages: Sequence[Message]
    size: int
    reserved: float | None


class Batches:
    """One look at the batch service: take what is done, then hand over what is open."""

    def __init__(
        self,
        store: Store,
        target: Target,
        wanted: Wanted,
        *,
        budget: Budget,
        stop: threading.Event,
        grace_s: float = GRACE_S,
        most_requests: int = MOST_REQUESTS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        assert target.teacher is not None
        self.store, self.target, self.wanted, self.budget, self.stop = store, target, wanted, budget, stop
        self.teacher = BatchTeacher(target.teacher)
        self.grace_s, self.most_requests, self.most_bytes = grace_s, most_requests, most_bytes
        self.result, self.asked = Batched(), Asked()
        self._full = False  # the store's cap holds no further question

    def close(self) -> None:
        """Close the connections."""
        self.teacher.close()

    # -- taking

    def take(self) -> None:
        """Take every batch that has ended, and find again those that were handed over unheard.

        TeacherError where the service refused a whole batch; its questions are open again.
        """
        self._find_unheard()
        refused = []
        for batch in batches.live(self.store, self.wanted.teacher_id):
            if batch.remote_id is None:
                continue
            remote = self.teacher.look(batch.remote_id)
            if not remote.ended:
                self.result.waiting += 1
                if remote.status != batch.status:
                    batches.note(self.store, batch.batch_id, remote.status, remote.remote_id, remote.detail)
                continue
            self._take(batch.batch_id, remote)
            if remote.status == "failed":
                refused.append(remote)
        if refused:
            raise TeacherError(
                f"the service refused {_count(len(refused), 'batch', 'batches')} ({refused[0].remote_id}: "
                f"{refused[0].detail or 'it does not say why'}); nothing of it was answered; mend that, then run sync again"
            )

    def _find_unheard(self) -> None:
        """Find batches that have no id of the service's yet: it has them, or they were never created."""
        unheard = [row for row in batches.live(self.store, self.wanted.teacher_id) if row.remote_id is None]
        unheard = [row for row in unheard if not row.preparing]  # its process is still at it
        if not unheard:
            return
        oldest = min(_seconds(row.created_at) for row in unheard)
        found = self.teacher.find({row.batch_id for row in unheard}, oldest - 3600)
        for row in unheard:
            if row.batch_id in found:
                batches.note(self.store, row.batch_id, "submitted", found[row.batch_id], "found again")
            elif datetime.now(UTC).timestamp() - _seconds(row.created_at) > self.grace_s:
                batches.note(self.store, row.batch_id, "abandoned", None, "never handed over: its process died before")
            else:
                self.result.waiting += 1

    def _take(self, batch: str, remote: Remote) -> None:
        """Commit the replies of a batch that has ended; what it did not come to is open again."""
        for file in remote.output_files:
            replies = self.teacher.iter_replies(file)
            while group := dict(islice(replies, GROUP)):
                rows = batches.waiting(self.store, batch, list(group))
                self._commit((row, group[key]) for key, row in rows.items())
        kind, detail = f"batch_{remote.status}", f"the batch ended without an answer ({remote.detail or remote.status})"
        begun = remote.status != "failed" or bool(remote.output_files)
        for page in batches.iter_unanswered(self.store, batch):
            self._commit((row, unfinished(kind, detail, begun=begun)) for row in page)
        batches.note(
            self.store, batch, "taken", remote.remote_id, f"{remote.status}: {remote.detail or ''}".strip(": ")
        )
        self.result.taken += 1

    def _commit(self, replies: Iterable[tuple[SQLRow, Reply]]) -> None:
        replies = list(replies)
        self.store.add_replies(
            [
                reply_row(row.attempt_id, (row.variant_id, row.step, row.teacher_id, row.prompt_id, row.number), reply)
                for row, reply in replies
            ]
        )
        for row, reply in replies:
            self._note(row, reply)

    def _note(self, row: SQLRow, reply: Reply) -> None:
        asked = self.asked
        asked.prompt_tokens += reply.prompt_tokens or 0
        asked.completion_tokens += reply.completion_tokens or 0
        asked.add_cost(reply, row.reserved_usd)
        if reply.status is ReplyStatus.OK:
            asked.answered += 1
            return
        kind = reply.kind or reply.status.value
        asked.reasons[kind] = asked.reasons.get(kind, 0) + 1
        asked.failed += reply.status is ReplyStatus.FAILED
        asked.errors += reply.status is ReplyStatus.ERROR

    # -- handing over

    def submit(self, worker: str, limit: int | None) -> None:
        """Hand over what is open, in as many batches as the service's limits make of it."""
        self.budget.begin(self.store)  # what was taken above is counted with it
        ready = self._ready(limit)
        with TemporaryDirectory(prefix="recycledb-") as folder:
            left: list[Ready] = []
            while (left or (left := list(islice(ready, 1)))) and not (self.stop.is_set() or self._too_dear(left[0])):
                left = self._submit_one(Path(folder), worker, left, ready)

    def _too_dear(self, first: Ready) -> bool:
        """Say whether the store's cap does not hold even the next question: then no batch is begun."""
        if self.budget.spending and not self.budget.spending.fits(first.reserved or 0.0):
            self._end_for_money()
        return self._full

    def _end_for_money(self) -> None:
        self._full, self.asked.stopped = True, self.budget.store_reached

    def _submit_one(self, folder: Path, worker: str, first: list[Ready], ready: Iterator[Ready]) -> list[Ready]:
        """Fill one file, hand it over and record it; return the question that it had no room for."""
        batch = batches.start(self.store, self.wanted.teacher_id, worker)
        path = folder / f"recycledb-{batch}.jsonl"
        with path.open("wb") as file:
            requests, left = self._fill(file, batch, first, ready)
        if requests and not self.stop.is_set():
            remote_id = self.teacher.hand_over(path, batch)
            batches.note(self.store, batch, "submitted", remote_id, _count(requests, "request", "requests"))
            self.result.submitted += 1
            self.result.waiting += 1
            self.result.requests += requests
            self.asked.asked += requests
        else:
            batches.note(
                self.store, batch, "abandoned", None, "never handed over: stopped before" if requests else "empty"
            )
        path.unlink()
        return left

    def _fill(self, file: IO[bytes], batch: str, first: list[Ready], ready: Iterator[Ready]) -> tuple[int, list[Ready]]:
        """Write lines until the file or the questions are at their end; return how many, and what had no room."""
        requests, size, group = 0, 0, first
        while group and not self.stop.is_set():
            taken: list[Ready] = []
            for question in group:
                written = requests + len(taken)
                if written and (written >= self.most_requests or size + question.size > self.most_bytes):
                    break
                taken.append(question)
                size += question.size
            requests += self._write(file, batch, taken)
            if len(taken) < len(group):
                return requests, group[len(taken) :]
            group = list(islice(ready, GROUP))
        return requests, []

    def _write(self, file: IO[bytes], batch: str, questions: Sequence[Ready]) -> int:
        """Claim these questions for the batch, and write the lines of those that were still open."""
        money = ([question.reserved for question in questions], self.budget.spending)
        claims = self.store.claim(self.wanted, batch, [question.row for question in questions], *money)
        if self.budget.spending and self.budget.spending.refused:
            self._end_for_money()
        won = {(row.variant_id, row.step): attempt for attempt, _, row in claims}
        for question in questions:
            attempt = won.get((question.row.variant_id, question.row.step))
            if attempt is None:
                self.budget.release(question.reserved)
            else:
                file.write(self.teacher.line(attempt, question.messages))
        return len(won)

    def _ready(self, limit: int | None) -> Iterator[Ready]:
        """Yield open questions in dataset order, until the limit or the budget is reached."""
        count = 0
        for samples in self.store.iter_places():
            for row in self.store.pending_questions(self.wanted, samples):
                if self._full:
                    return
                if limit is not None and count >= limit:
                    self.asked.stopped = f"the limit of {limit} calls is reached"
                    return
                messages = render(self.target.prompts[Step(row.step)], Texts(row.instruction, row.input, row.output))
                reserved = self.budget.most(messages)
                if not self.budget.reserve(reserved):
                    self.asked.stopped = self.budget.reached
                    return
                size = len(self.teacher.line("0" * ID_LENGTH, messages))
                count += 1
                yield Ready(row, messages, size, reserved)


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
