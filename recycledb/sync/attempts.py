"""Ask the teacher: many requests in flight at once; each attempt is stored before it is sent, each reply before it is read.

Invariant: memory is bounded by the number of requests in flight, whatever the plan's size; questions are fetched page by page:

    candidates → admit (the teacher's pace) → claim (attempt rows, in groups) → ask → commit (in groups) → read → candidates

Replies are committed on the event loop itself, before it reads more from the network; all other work on the store runs in threads.
Next to a busy loop a thread waits for the GIL far longer than a commit takes, and a kill in that time would lose the replies that
have arrived. Only those that arrive while a server is away wait for it in a thread.

A question whose request failed is asked again after a delay, as a new attempt. After a stop (signal, budget, limit, an error of the
run) nothing new is admitted; requests in flight are awaited for at most `DRAIN_S` and committed. Once the store has refused a reply,
no other is committed until the end of the run; then they are tried once more, since they are paid for.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from recycledb.errors import RecycledbError, TeacherError
from recycledb.reflection.teachers.contract import Question, Reply, Teacher, TeacherStop, failed
from recycledb.reflection.teachers.pace import Ticket, retry_delay
from recycledb.schema import ReplyStatus
from recycledb.store import SQLRow, Store
from recycledb.store.pending import Wanted
from recycledb.store.questions import claim, key_of
from recycledb.store.rows import AttemptRow
from recycledb.store.spending import Spending
from recycledb.sync.budget import Budget
from recycledb.sync.committing import Commits
from recycledb.sync.extraction import Complete, complete_of, results_of
from recycledb.sync.progress import Asked, Listener, Progress
from recycledb.sync.questions import Candidate, Questions
from recycledb.sync.refusals import Refusals, message
from recycledb.sync.replies import Arrived, Readings, not_sent, store_readings, store_replies
from recycledb.sync.stop import at_once, cancel, watched
from recycledb.sync.target import Target

T = TypeVar("T")

DRAIN_S = 60.0  # how long requests in flight are awaited after a stop, at most
REPORT_S = 0.2
STOP_CHECK_S = 0.05
CLAIM_GROUP = 16  # questions in one transaction: bounds how long a reply waits for the write lock
COMMIT_GROUP = 2  # replies: bounds how many that had arrived a kill can lose
READ_GROUP = 256
THREADS = 3  # fetching, claiming, reading
UNREAD_MOST = 1_000  # unread replies at which asking pauses, so that reading can catch up
DEFECTS_MOST = 10  # replies in a row on which our own code fails: then the fault is not in the replies


@dataclass(slots=True)
class Admitted:
    """A question that may be sent now, with its ticket (its slot in the teacher's pace) and the most it can cost."""

    candidate: Candidate
    ticket: Ticket
    reserved: float | None


@dataclass(slots=True)
class Answered:
    """A question that was asked, and its reply as it is stored."""

    admitted: Admitted
    arrived: Arrived


def _reply_of(answered: Answered) -> Reply:
    return answered.arrived.reply


def _replace_reply(answered: Answered, reply: Reply) -> None:
    answered.arrived.reply = reply


class TeacherRun:
    """One run of questions to one teacher."""

    def __init__(
        self,
        store: Store,
        teacher: Teacher,
        target: Target,
        worker: str,
        *,
        wanted: Wanted,
        limit: int | None = None,
        budget: Budget | None = None,
        stop: threading.Event | None = None,
        listener: Listener,
        totals: dict[str, int],
        may_ask: Callable[[], bool] = lambda: True,
    ) -> None:
        """Set up a run by a worker; once it may no longer ask, since another process does, it ends like after a stop."""
        assert target.teacher is not None
        self.store, self.teacher, self.target, self.worker = store, teacher, target, worker
        self.wanted, self.config = wanted, target.teacher
        self.may_ask, self.superseded = may_ask, False
        self.limit, self.stop, self.listener = limit, stop or threading.Event(), listener
        self.budget = budget or Budget(target.teacher, None)
        self.result = Asked()
        self.progress = {step: Progress(step, self.config.name, totals.get(step, 0)) for step in target.prompts}
        self.questions = Questions(store, teacher, target, wanted)
        self._loading: asyncio.Task[None] | None = None
        self._granted = 0  # admitted, claimed or asked: compared with the limit
        self._admitted: list[Admitted] = []
        self._under_way = 0  # admitted and not yet committed
        self._unsent: dict[str, AttemptRow] = {}  # stored and not yet sent, by attempt id
        self._defects = 0  # in a row
        self._asks: set[asyncio.Task[None]] = set()
        self._arrived: list[Answered] = []  # not yet committed
        self._refusals = Refusals(_reply_of, _replace_reply, judged=self.config.provider != "openai")
        self._commits = Commits(store, locked=self.budget.store_limit is not None)
        self._refusal: Exception | None = None  # the store's error when it refused a reply
        self._refused: list[Answered] = []  # replies that could not be stored
        self._unread: deque[Complete] = deque()
        self._reading = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._short = False  # the store's budget has no room for the next question, unless requests in flight cost less than reserved
        self._closed = False
        self._error: BaseException | None = None

    # -- the run

    async def run(self) -> Asked:
        """Ask until no question is left or the run is stopped; return the counts. Raises the error that ended it, if one did."""
        self._loop = asyncio.get_running_loop()
        self._wake, self._claimable, self._readable, self._ended = (asyncio.Event() for _ in range(4))
        self._threads = ThreadPoolExecutor(THREADS, "store")
        with watched(self.stop):
            try:
                for work in (self._draw(), self._claim(), self._read(), self._report(), self._watch()):
                    self._tasks.append(self._loop.create_task(self._guard(work)))
                await self._ended.wait()
                await self._drain()
            finally:
                await self._finish()
        if self._error is not None:
            raise self._error
        return self.result

    async def _guard(self, work: "Coroutine[Any, Any, None]") -> None:
        """Run a task of the run; one that fails ends the run in an orderly way."""
        try:
            await work
        except Exception as error:  # a bug of ours too: requests in flight are committed before it is raised
            self._halt(error)

    def _in_thread(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Run work on the store in a thread; it runs to its end even if nothing awaits it any more."""
        return self._loop.run_in_executor(self._threads, function, *arguments)

    async def _watch(self) -> None:
        """Watch for a request to stop, which comes from a signal handler or another thread, and for another process that asks."""
        while not self.stop.is_set() and self.may_ask():  # noqa: ASYNC110 - a signal handler cannot set an asyncio.Event
            await asyncio.sleep(STOP_CHECK_S)
        self.superseded = not self.stop.is_set()
        self._close(f"another process asks {self.config.name} now" if self.superseded else "stopped on request")

    def _halt(self, error: BaseException) -> None:
        self._error = self._error or error
        self._close(str(error))

    def _close(self, reason: str | None = None) -> None:
        """Ask nothing more."""
        if not self._closed:
            self._closed = True
            self.result.stopped = reason
        self._ended.set()
        self._wake.set()

    # -- choosing the next question

    @property
    def _limited(self) -> bool:
        return self.limit is not None and self._granted >= self.limit

    async def _draw(self) -> None:
        while not self._closed:
            candidate = await self._candidate()
            if candidate is None:
                self._close()
                continue
            while self._limited and self._admitted and not self._closed:
                await self._pause(0.05)  # closing withdraws admitted questions: let them be claimed first
            if self._limited:
                self._close(f"the limit of {self.limit} calls is reached")
                continue
            amount = self.budget.most(candidate.messages)
            if not await self._afford(amount):
                self._close(self.budget.reached)
            else:
                await self._admit(candidate, amount)

    async def _candidate(self) -> Candidate | None:
        """Wait for the next question and return it; None when none is left and none can follow, or when the run is closed."""
        while not self._closed:
            if again := self.questions.late(self._loop.time()):
                return again
            if len(self._unread) < UNREAD_MOST:
                if self.questions.low and self._loading is None:
                    self._loading = self._loop.create_task(self._guard(self._load()))
                if candidate := self.questions.next():
                    return candidate
            if not (self.questions.none_left and self._idle):
                await self._pause(self.questions.until_late(self._loop.time()))
            elif not await self._in_thread(self.questions.rewind):
                return None
        return None

    @property
    def _idle(self) -> bool:
        return not (self._under_way or self._unread or self._reading)

    async def _pause(self, seconds: float | None) -> None:
        """Wait until something happens, for at most `seconds`."""
        self._wake.clear()
        try:
            # Not `wait_for`: on Python 3.11 it swallows a cancellation that arrives together with the event.
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _load(self) -> None:
        await self._in_thread(self.questions.load)
        self._loading = None
        self._wake.set()

    async def _afford(self, amount: float | None) -> bool:
        """Reserve the most that the question can cost; while requests are in flight, wait for what they do not use."""
        while self._under_way and not self._closed and self._short:
            await self._pause(None)
        while not self.budget.reserve(amount):
            if self._under_way == 0 or self._closed:
                return False
            await self._pause(None)
        return not self._closed

    async def _admit(self, candidate: Candidate, amount: float | None) -> None:
        """Wait for a slot of the teacher's pace; then queue the question to be claimed."""
        ticket = await self.teacher.admit(candidate.tokens)
        self._admitted.append(Admitted(candidate, ticket, amount))
        self._granted += 1
        self._under_way += 1
        self._claimable.set()

    # -- claiming and asking

    async def _claim(self) -> None:
        while True:
            await self._claimable.wait()
            group, self._admitted = self._admitted[:CLAIM_GROUP], self._admitted[CLAIM_GROUP:]
            if not self._admitted:
                self._claimable.clear()
            if not group:
                continue
            rows = [admitted.candidate.row for admitted in group]
            money = ([admitted.reserved for admitted in group], self.budget.spending)
            try:
                claims = await self._in_thread(self._claim_group, rows, *money)
            except BaseException:  # cancellation too: none of them is sent
                for admitted in group:
                    self._withdraw(admitted)
                raise
            won = {key_of(row): attempt for attempt, row in claims}
            for admitted in group:
                attempt = won.pop(key_of(admitted.candidate.row), None)
                if (
                    attempt is None or self._refusal is not None
                ):  # claimed by another process, or the store refuses replies
                    self._withdraw(admitted)
                else:
                    self._send(admitted, attempt)
            self._put_back(group)

    def _put_back(self, group: list[Admitted]) -> None:
        """Ask later the questions that did not fit the store's budget; end the run if nothing in flight can free any of it."""
        refused = self.budget.spending.refused if self.budget.spending else ()
        late = [a.candidate for a in group if key_of(a.candidate.row) in refused]
        if late:
            self.questions.put_back(late)
            self._short = True
            if self._under_way == 0:
                self._close(self.budget.store_reached)

    def _claim_group(
        self, rows: list[SQLRow], reserved: list[float | None], spending: Spending | None
    ) -> list[tuple[AttemptRow, SQLRow]]:
        """Claim questions, and note their attempts as stored but not sent. Runs in a thread."""
        self.budget.look_elsewhere(self.store, self.worker)
        claims = claim(self.store, self.wanted, self.worker, rows, reserved, spending)
        self._unsent.update((attempt.attempt_id, attempt) for attempt, _ in claims)
        return claims

    def _withdraw(self, admitted: Admitted) -> None:
        """Release the slot and the reservation of a question that is not asked."""
        admitted.ticket.close()
        self.budget.release(admitted.reserved)
        self._granted -= 1
        self._under_way -= 1
        self._wake.set()

    def _send(self, admitted: Admitted, attempt: AttemptRow) -> None:
        del self._unsent[attempt.attempt_id]
        self.result.asked += 1
        admitted.candidate.tries += 1
        self.progress[admitted.candidate.step].in_flight += 1
        task = self._loop.create_task(self._guard(self._ask(admitted, attempt)))
        self._asks.add(task)
        task.add_done_callback(self._asks.discard)

    async def _ask(self, admitted: Admitted, attempt: AttemptRow) -> None:
        candidate = admitted.candidate
        question = Question(
            attempt_id=attempt.attempt_id,
            step=candidate.step,
            messages=candidate.messages,
            shown=candidate.shown,
            number=attempt.number,
            stop=candidate.stop,
            prompt_id=attempt.prompt_id,
        )
        with admitted.ticket:
            try:
                reply = await self.teacher.ask(question, admitted.ticket)
            except TeacherStop as stop:
                reply = stop.reply
                self._halt(stop)
            except (RecycledbError, MemoryError, asyncio.CancelledError):  # the attempt has no reply and counts as lost
                self._under_way -= 1
                self._wake.set()
                raise
            except Exception as error:  # a bug that one reply triggers must not cost the others
                reply = self._defect(error)
        self._arrived.append(Answered(admitted, Arrived(attempt, reply)))
        if len(self._arrived) >= COMMIT_GROUP:
            self._commit()
        elif len(self._arrived) == 1:
            self._loop.call_soon(self._commit)  # with the other replies of this iteration of the loop

    def _defect(self, error: Exception) -> Reply:
        self._defects += 1
        if self._defects >= DEFECTS_MOST:
            self._halt(error)
        return failed("defect", f"{type(error).__name__}: {error}")

    # -- committing

    def _commit(self) -> None:
        """Commit the replies that have arrived, but for refusals that cannot be judged yet."""
        arrived, self._arrived = self._arrived, []
        now, released = self._refusals.sift(arrived)
        self._under_way -= len(arrived) - len(now)  # nothing waits for those held back
        self._wake.set()
        if self._refusals.example is not None:
            self._halt(TeacherError(message(self.config.name, self._refusals.example)))
        self._store(released, waited=False)
        self._store(now)

    def _store(self, group: Sequence[Answered], *, waited: bool = True) -> None:
        """Commit these replies; `waited` where the run still counts them as under way."""
        if group and self._refusal is None:
            self._commits.add([answered.arrived for answered in group], partial(self._stored, group, waited))
        else:
            self._stored(group, waited, None)

    def _stored(self, group: Sequence[Answered], waited: bool, error: Exception | None) -> None:
        self._under_way -= len(group) if waited else 0
        self._refusal = self._refusal or error
        if self._refusal is None:
            self._committed(group)
        else:
            self._refused += group
            self._halt(self._refusal)

    def _committed(self, group: Sequence[Answered]) -> None:
        self._short = False  # check the budget again
        for answered in group:
            self._note(answered)
            reply, candidate = answered.arrived.row, answered.admitted.candidate
            if reply is not None and reply.status == ReplyStatus.OK:
                self._defects = 0
                self._unread.append(complete_of(reply, candidate.row, candidate.shown))
                self._readable.set()
        self._wake.set()

    def _note(self, answered: Answered) -> None:
        reply, candidate = answered.arrived.reply, answered.admitted.candidate
        result, progress = self.result, self.progress[candidate.step]
        result.prompt_tokens += reply.prompt_tokens or 0
        result.completion_tokens += reply.completion_tokens or 0
        known = self.budget.settle(answered.admitted.reserved, reply, candidate.messages)
        result.add_cost(reply, answered.admitted.reserved)
        progress.in_flight -= 1
        progress.tokens += (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
        progress.cost_unknown += not known
        if reply.cost_usd is not None and self.budget.priced:
            progress.cost_usd = (progress.cost_usd or 0.0) + reply.cost_usd
        if reply.status is ReplyStatus.OK:
            result.answered += 1
            progress.done += 1
            return
        result.note_failure(reply)
        if reply.retriable and candidate.tries < self.wanted.max_attempts and not self._closed:
            # A server's Retry-After is handled by the teacher's pace, which knows when waiting is pointless.
            delay = retry_delay(candidate.tries, reply) if reply.retry_after_s is None else 0.0
            self.questions.ask_again(candidate, self._loop.time() + delay)
            return
        result.failed += reply.status is ReplyStatus.FAILED
        result.errors += reply.status is ReplyStatus.ERROR
        progress.failed += 1

    # -- extraction, and the questions that follow from it

    async def _read(self) -> None:
        while True:
            await self._readable.wait()
            group = [self._unread.popleft() for _ in range(min(READ_GROUP, len(self._unread)))]
            if not self._unread:
                self._readable.clear()
            self._reading = len(group)
            verdicts, follow = await self._in_thread(self._read_and_follow, group)
            self._reading = 0
            self.result.variants += len(verdicts.variants)
            self.result.ratings += verdicts.numbers
            self.result.unusable += verdicts.unusable
            self.questions.add(follow)
            self._wake.set()

    def _read_and_follow(self, group: list[Complete]) -> tuple[Readings, list[Candidate]]:
        """Extract and store the results of these replies; return them, and the questions about new variants. Runs in a thread."""
        verdicts = results_of(group)
        store_readings(self.store, verdicts)
        return verdicts, [] if self._closed else self.questions.following(verdicts.variants)

    # -- ending

    async def _drain(self) -> None:
        """Wait, for a bounded time, until the requests in flight are answered and committed."""
        drawing, _, reading, *_ = self._tasks
        drawing.cancel()
        for admitted in self._admitted:
            self._withdraw(admitted)
        self._admitted = []
        started = self._loop.time()
        deadline = started + min(DRAIN_S, self.config.timeout_s)
        while self._under_way or ((self._unread or self._reading) and not reading.done()):
            if (left := deadline - self._loop.time()) <= 0 or at_once(self.stop):
                self._gave_up(len(self._asks), self._loop.time() - started)
                break
            await self._pause(min(left, STOP_CHECK_S))

    def _gave_up(self, requests: int, seconds: float) -> None:
        """Add the requests that were not awaited to the reason why the run ended."""
        if requests:
            said = f"gave up on {requests:,} requests that had no answer after {seconds:.0f} s, and which may be billed"
            self.result.stopped = f"{self.result.stopped}; {said}"
            if self._error is not None:
                self._error.add_note(said)

    async def _finish(self) -> None:
        """End every task, commit the replies that have arrived, and release the claims on questions that were never sent."""
        if self._loading is not None:
            self._tasks.append(self._loading)
        await cancel((*self._asks, *self._tasks))
        self._threads.shutdown(cancel_futures=True)
        self._commit()
        self._store(self._refusals.release(failed=self.result.stopped is None), waited=False)
        await self._commits.settle()
        with suppress(
            Exception
        ):  # a store that refuses these has refused a reply or a claim before: that error is reported
            if self._refused:  # the disk may have room again
                store_replies(self.store, [answered.arrived for answered in self._refused])
                self._committed(self._refused)
            if self._unsent:  # they cost nothing, and the next process may ask them
                store_replies(self.store, [not_sent(attempt) for attempt in self._unsent.values()])
        for progress in self.progress.values():
            progress.ended = True
        self._tell()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self._tell()

    def _tell(self) -> None:
        for progress in self.progress.values():
            self.listener(progress)
