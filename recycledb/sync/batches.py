"""Batches: submit questions to the teacher's batch service, return, and store the replies when a later sync finds them ready.

Invariant: a question is claimed before it is written to a file, and the claim lasts until the batch is taken (its replies are stored)
or abandoned, so it is asked once at a time, online or in a batch. A batch carries our id in its metadata: if a process dies before it
stores the service's id, the next sync finds the batch by ours, and abandons it only if the service does not list it after GRACE_S. A
batch that may be billed is never submitted again. Replies are committed group by group, so a kill in between loses nothing. A truncated
output file is fetched again, by this sync and by later ones, before its missing replies are asked for again. Prompts are written to
unnamed temporary files, which a kill does not leave behind.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from tempfile import TemporaryFile
from typing import IO

from recycledb import methods
from recycledb.errors import TeacherError
from recycledb.reflection.prompts import render
from recycledb.reflection.teachers.batch import MOST_BYTES, MOST_REQUESTS, BatchTeacher, Output, Remote, unfinished
from recycledb.reflection.teachers.calls import Stopped
from recycledb.reflection.teachers.contract import Message, Reply
from recycledb.schema import ReplyStatus, Texts
from recycledb.store import SQLRow, Store, batches
from recycledb.store.pending import Wanted
from recycledb.store.places import iter_places
from recycledb.store.questions import claim, key_of, pending_questions, texts_beside
from recycledb.store.rows import AttemptRow
from recycledb.sync.budget import Budget
from recycledb.sync.progress import Asked
from recycledb.sync.refusals import all_refused, is_refusal, message, retriable
from recycledb.sync.replies import Arrived, store_replies
from recycledb.sync.target import Target

GRACE_S = 120.0  # how long after its start a batch may be unknown to the service before it is abandoned
FETCHES = 3  # of a truncated output file, in one sync
CUT_SHORT_S = 86_400.0  # how long an output file may stay truncated before its missing replies are asked for again
GROUP = 250  # questions claimed, or replies committed, in one transaction
ID_LENGTH = 32  # of an attempt


@dataclass
class Batched:
    """Counts of one visit to the batch service."""

    submitted: int = 0  # batches
    requests: int = 0  # in them
    taken: int = 0  # batches
    waiting: int = 0  # batches that are not finished yet
    cut_short: list[str] = field(default_factory=list)  # what is wrong with output files that will be fetched again

    def after(self, earlier: "Batched | None") -> "Batched":
        """Return the counts that begin with those of an earlier visit in the same run."""
        if earlier is None:
            return self
        return replace(earlier, cut_short=list(earlier.cut_short))


@dataclass
class Ready:
    """A question with its messages, the length of its line, and the most it can cost."""

    row: SQLRow
    messages: Sequence[Message]
    size: int
    reserved: float | None


class Batches:
    """One visit to the batch service: store the replies of finished batches, then submit open questions."""

    def __init__(
        self,
        store: Store,
        target: Target,
        wanted: Wanted,
        *,
        budget: Budget,
        stop: threading.Event,
        grace_s: float = GRACE_S,
        cut_short_s: float = CUT_SHORT_S,
        most_requests: int = MOST_REQUESTS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        assert target.teacher is not None
        self.store, self.target, self.wanted, self.budget, self.stop = store, target, wanted, budget, stop
        self.teacher, self.teacher_name = BatchTeacher(target.teacher, stop), target.teacher.name
        self.grace_s, self.cut_short_s = grace_s, cut_short_s
        self.most_requests, self.most_bytes = most_requests, most_bytes
        self.result, self.asked = Batched(), Asked()
        self._refused: Reply | None = None  # an example of identical refusals of a whole batch
        self._full = False  # the store's budget has no room for another question

    def close(self) -> None:
        """Close the connections."""
        self.teacher.close()

    # -- taking

    def take(self) -> None:
        """Store the replies of every batch that has ended, and find batches whose creation was not confirmed.

        TeacherError where the service refused a whole batch, or all of its questions alike; its questions are open again. Stopped when a
        stop is requested.
        """
        self._find_unsubmitted()
        refused = []
        for batch in batches.live(self.store, self.wanted.teacher_ids):
            if batch.remote_id is None:
                continue
            remote = self.teacher.look(batch.remote_id)
            if not remote.ended:
                self.result.waiting += 1
                if remote.status != batch.status:
                    batches.note(self.store, batch.batch_id, remote.status, remote.remote_id, remote.detail)
                continue
            self._take(batch, remote)
            if remote.status == "failed":
                refused.append(remote)
        if refused:
            raise TeacherError(
                f"the service refused {_count(len(refused), 'batch', 'batches')} ({refused[0].remote_id}: "
                f"{refused[0].detail or 'it does not say why'}); no request in it was answered; fix this, then run sync again"
            )

        if self._refused is not None:
            raise TeacherError(message(self.teacher_name, self._refused))

    def _find_unsubmitted(self) -> None:
        """Look up the batches without a remote id: the service has them, or they were never created."""
        unheard = [row for row in batches.live(self.store, self.wanted.teacher_ids) if row.remote_id is None]
        unheard = [row for row in unheard if not row.preparing]  # its process is still working on it
        if not unheard:
            return
        oldest = min(_seconds(row.created_at) for row in unheard)
        found = self.teacher.find({row.batch_id for row in unheard}, oldest - 3600)
        for row in unheard:
            if row.batch_id in found:
                batches.note(self.store, row.batch_id, "submitted", found[row.batch_id], "found again")
            elif datetime.now(UTC).timestamp() - _seconds(row.created_at) > self.grace_s:
                batches.give_up(self.store, row.batch_id, "never handed over: its process died before")
            else:
                self.result.waiting += 1

    def _take(self, row: SQLRow, remote: Remote) -> None:
        """Commit the replies of a batch that has ended; its unanswered questions are open again if its files are complete."""
        batch = row.batch_id
        problem = self._take_files(batch, row.requests, remote)
        if problem and next(batches.iter_unanswered(self.store, batch), None):
            since = batches.first_noted(self.store, batch, "cut_short")
            if since is None or datetime.now(UTC).timestamp() - _seconds(since) < self.cut_short_s:
                batches.note(self.store, batch, "cut_short", remote.remote_id, problem)
                self.result.cut_short.append(f"batch {remote.remote_id}: {problem}")
                self.result.waiting += 1
                return
        kind, detail = f"batch_{remote.status}", f"the batch ended without an answer ({remote.detail or remote.status})"
        begun = remote.status != "failed" or bool(remote.output_files)
        for page in batches.iter_unanswered(self.store, batch):
            self._commit((row, unfinished(kind, detail, begun=begun)) for row in page)
        batches.note(
            self.store, batch, "taken", remote.remote_id, f"{remote.status}: {remote.detail or ''}".strip(": ")
        )
        self.result.taken += 1

    def _take_files(self, batch: str, requests: int, remote: Remote) -> str | None:
        """Commit the replies in the files of a batch; return what is wrong where they are truncated at every fetch."""
        for left in reversed(range(FETCHES)):
            with ExitStack() as stack:
                outputs: list[Output] = []
                for file in remote.output_files:
                    outputs.append(self.teacher.fetch(file, requests))
                    stack.callback(outputs[-1].close)
                problem = _cut_short(outputs, remote)
                if problem is None or not left:
                    alike = all_refused(reply for output in outputs for _, reply in output.iter_replies())
                    self._refused = self._refused or alike
                    for output in outputs:
                        self._take_output(batch, output, again=alike is not None)
                    return problem
        return None

    def _take_output(self, batch: str, output: Output, *, again: bool) -> None:
        """Commit the replies in a file; with `again`, refusals as retriable errors."""
        replies = output.iter_replies()
        while group := dict(islice(replies, GROUP)):
            if self.stop.is_set():
                raise Stopped
            rows = batches.waiting(self.store, batch, list(group))
            judged = {key: retriable(reply) if again and is_refusal(reply) else reply for key, reply in group.items()}
            self._commit((row, judged[key]) for key, row in rows.items())

    def _commit(self, replies: Iterable[tuple[AttemptRow, Reply]]) -> None:
        group = [Arrived(attempt, reply) for attempt, reply in replies]
        store_replies(self.store, group)
        for arrived in group:
            self._note(arrived.attempt, arrived.reply)

    def _note(self, attempt: AttemptRow, reply: Reply) -> None:
        asked = self.asked
        asked.prompt_tokens += reply.prompt_tokens or 0
        asked.completion_tokens += reply.completion_tokens or 0
        asked.add_cost(reply, attempt.reserved_usd)
        if reply.status is ReplyStatus.OK:
            asked.answered += 1
            return
        asked.note_failure(reply)
        asked.failed += reply.status is ReplyStatus.FAILED
        asked.errors += reply.status is ReplyStatus.ERROR

    # -- submitting

    def submit(self, worker: str, limit: int | None) -> None:
        """Submit the open questions, in as many batches as the service's limits require."""
        self.budget.begin(self.store)  # after `take`, so that the replies stored there are counted
        ready = self._ready(limit)
        left: list[Ready] = []
        while (left or (left := list(islice(ready, 1)))) and not (self.stop.is_set() or self._exceeds_budget(left[0])):
            with TemporaryFile() as file:  # unnamed: a killed process leaves no prompts behind
                left = self._submit_one(file, worker, left, ready)

    def _exceeds_budget(self, first: Ready) -> bool:
        """Return whether the store's budget has no room for even the next question: then no batch is started."""
        if self.budget.spending and not self.budget.spending.fits(first.reserved or 0.0):
            self._end_for_money()
        return self._full

    def _end_for_money(self) -> None:
        self._full, self.asked.stopped = True, self.budget.store_reached

    def _submit_one(self, file: IO[bytes], worker: str, first: list[Ready], ready: Iterator[Ready]) -> list[Ready]:
        """Fill one file, submit it and record it; return the questions that did not fit."""
        batch = batches.start(self.store, self.wanted.teacher_id, worker)
        requests, left = self._fill(file, batch, first, ready)
        if requests and (remote_id := self._hand_over(file, batch, worker)):
            batches.note(self.store, batch, "submitted", remote_id, _count(requests, "request", "requests"))
            self.result.submitted += 1
            self.result.waiting += 1
            self.result.requests += requests
            self.asked.asked += requests
        else:
            batches.note(
                self.store, batch, "abandoned", None, "never handed over: stopped before" if requests else "empty"
            )
        return left

    def _hand_over(self, file: IO[bytes], batch: str, worker: str) -> str | None:
        """Upload the file and create the batch; None after a stop, or where another process abandoned it and asks its questions."""
        try:
            file_id = self.teacher.upload(file, batch)
        except Stopped:
            return None
        return self.teacher.create(file_id, batch) if batches.keep(self.store, batch, worker) else None

    def _fill(self, file: IO[bytes], batch: str, first: list[Ready], ready: Iterator[Ready]) -> tuple[int, list[Ready]]:
        """Write lines until the file is full or no question is left; return how many, and the questions that did not fit."""
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
        claims = claim(self.store, self.wanted, batch, [question.row for question in questions], *money)
        if self.budget.spending and self.budget.spending.refused:
            self._end_for_money()
        won = {key_of(row): attempt for attempt, row in claims}
        for question in questions:
            attempt = won.get(key_of(question.row))
            if attempt is None:
                self.budget.release(question.reserved)
            else:
                stop = _stop_of(question.row, attempt.number)
                file.write(self.teacher.line(attempt.attempt_id, question.messages, stop))
        return len(won)

    def _ready(self, limit: int | None) -> Iterator[Ready]:
        """Yield open questions in dataset order, until the limit or the budget is reached."""
        count = 0
        for samples in iter_places(self.store, datasets=self.wanted.datasets):
            rows = pending_questions(self.store, self.wanted, samples)
            beside = texts_beside(self.store, rows)
            for row in rows:
                if self._full:
                    return
                if limit is not None and count >= limit:
                    self.asked.stopped = f"the limit of {limit} calls is reached"
                    return
                messages = render(self.target.prompts[row.step], (Texts.of(row), *beside[row.others]))
                reserved = self.budget.most(messages)
                if not self.budget.reserve(reserved):
                    self.asked.stopped = self.budget.reached
                    return
                size = len(self.teacher.line("0" * ID_LENGTH, messages, _stop_of(row, 1)))
                count += 1
                yield Ready(row, messages, size, reserved)


def _stop_of(question: SQLRow, number: int) -> tuple[str, ...]:
    """Return the texts at which the teacher may stop; none where a question is asked again, since these may be why it failed."""
    return methods.steps()[question.step].stop if number == 1 else ()


def _cut_short(outputs: Sequence[Output], remote: Remote) -> str | None:
    """Return what is wrong where files of a batch are truncated, None where nothing shows that they are."""
    for output in outputs:
        if output.problem:
            return output.problem
    lines = sum(output.lines for output in outputs)
    if remote.lines is not None and lines < remote.lines:
        return f"its files have {lines:,} lines, and the service counts {remote.lines:,}"
    return None


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
